"""Softmax and log-softmax along rows, forward and backward: each row is read from memory once.

Reference: ops/softmax.py. Parallel over the rows. Scratch: with a mask, its distinct rows and one offset per row of x.
An axis other than the last is copied to be the last, and the result is a view of rows along it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import scale
from attnarray.kernels.numba.vector.lanes import Lanes, exp, maximum, multiply_add, where
from attnarray.kernels.numba.vector.memory import as_bytes, pointer_at
from attnarray.kernels.numba.vector.rows import Max, Row, Scalar, Sum, row_pass

NONE = np.zeros(0, np.int64)


def softmax_forward(x: Any, mask: Any, axis: int) -> Any:
    """See the reference."""
    return normalized(softmax, 0.5, x, mask, axis)


def softmax_backward(dout: Any, out: Any, axis: int) -> Any:
    """See the reference."""
    return differentiated(softmax_gradient, 0.3, dout, out, axis)


def log_softmax_forward(x: Any, mask: Any, axis: int) -> Any:
    """See the reference."""
    return normalized(log_softmax, 0.5, x, mask, axis)


def log_softmax_backward(dout: Any, out: Any, axis: int) -> Any:
    """See the reference."""
    return differentiated(log_softmax_gradient, 0.5, dout, out, axis)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    minus_inf = np.dtype(dtype).type(-math.inf)
    for forward in (softmax, log_softmax):
        forward(0, 0, 0, 0, 0, 0, 0, 0, 0, minus_inf)
    for backward in (softmax_gradient, log_softmax_gradient):
        backward(0, 0, 0, 0, 0, 0, 0, 0, 0, minus_inf)


def normalized(kernel: Any, each: float, x: Any, mask: Any, axis: int) -> Any:
    real = ra.compute_dtype(x)
    rows, out = ra.rows_along(x, axis, real), ra.results_along(x, axis, real)
    has_mask = mask is not None and x.size > 0
    table, offsets = _mask_rows(mask, x.shape, axis) if has_mask else (NONE, NONE)
    split_rows(
        kernel, len(rows.array), ra.nanoseconds(x.size, each, real), x.shape[axis], rows.address, rows.stride,
        out.address, out.stride, address(table) if has_mask else 0, address(offsets), real.type(-math.inf),
    )  # fmt: skip
    return ra.reshape_like(x, axis, out)


def differentiated(kernel: Any, each: float, dout: Any, y: Any, axis: int) -> Any:
    real = ra.compute_dtype(y)
    drows, rows, out = ra.rows_along(dout, axis, real), ra.rows_along(y, axis, real), ra.results_along(y, axis, real)
    split_rows(
        kernel, len(rows.array), ra.nanoseconds(y.size, each, real), y.shape[axis], drows.address, drows.stride,
        rows.address, rows.stride, out.address, out.stride, real.type(-math.inf),
    )  # fmt: skip
    return ra.reshape_like(y, axis, out)


def _mask_rows(mask: Any, shape: tuple[int, ...], axis: int) -> tuple[Any, Any]:
    """The distinct rows of a mask, and the offset in bytes of that of each row of x."""
    full = np.reshape(mask, (*[1] * (len(shape) - mask.ndim), *mask.shape))
    last = np.moveaxis(full, axis, -1)
    table = np.ascontiguousarray(np.broadcast_to(last, (*last.shape[:-1], shape[axis])))
    starts = shape[axis] * np.arange(table.size // shape[axis]).reshape(table.shape[:-1])
    return table, np.broadcast_to(starts, (*shape[:axis], *shape[axis + 1 :])).flatten()


@row_pass(vectors=2)
def find_max(x: Row, row_max: Max) -> dict[str, Lanes]:
    return {"row_max": maximum(x, row_max)}


@row_pass(vectors=2)
def hide(x: Row, mask: Row, out: Row, row_max: Max) -> dict[str, Lanes]:
    seen = where(mask.equals(0), -math.inf, x)
    return {"out": seen, "row_max": maximum(seen, row_max)}


@row_pass(vectors=1)
def exponentiate(x: Row, out: Row, shift: Scalar, row_sum: Sum) -> dict[str, Lanes]:
    weights = exp(x - shift)
    return {"out": weights, "row_sum": row_sum + weights}


@row_pass(vectors=1)
def add_exponentials(x: Row, shift: Scalar, row_sum: Sum) -> dict[str, Lanes]:
    return {"row_sum": row_sum + exp(x - shift)}


@row_pass(vectors=2)
def subtract(x: Row, out: Row, shift: Scalar, log_sum: Scalar) -> dict[str, Lanes]:
    return {"out": x - shift - log_sum}


@row_pass(vectors=2)
def add_products(dout: Row, y: Row, row_sum: Sum) -> dict[str, Lanes]:
    return {"row_sum": multiply_add(where(y.equals(0.0), 0.0, dout), y, row_sum)}


@row_pass(vectors=2)
def differentiate(dout: Row, y: Row, dx: Row, row_sum: Scalar) -> dict[str, Lanes]:
    return {"dx": where(y.equals(0.0), 0.0, y * (dout - row_sum))}


@row_pass(vectors=2)
def add_seen(dout: Row, y: Row, row_sum: Sum) -> dict[str, Lanes]:
    return {"row_sum": row_sum + where(y.equals(-math.inf), 0.0, dout)}


@row_pass(vectors=1)
def differentiate_log(dout: Row, y: Row, dx: Row, row_sum: Scalar) -> dict[str, Lanes]:
    return {"dx": where(y.equals(-math.inf), 0.0, dout - exp(y) * row_sum)}


def masked(n: int, count: int, row: Any, out: Any, mask: int, offsets: int, minus_inf: Any) -> Any:
    """The row to normalize, `out` if there is a mask, and its shift: the maximum, but 0 for -inf."""
    if mask != 0:
        row_max = hide(count, row, as_bytes(pointer_at(minus_inf, mask + pointer_at(n, offsets)[n])), out)
        row = out
    else:
        row_max = find_max(count, row)
    return row, row_max if row_max != minus_inf else 0.0


def softmax(
    first: int, past: int, count: int, x: int, x_stride: int, out: int, out_stride: int, mask: int, offsets: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        result = pointer_at(minus_inf, out + n * out_stride)
        row, shift = masked(n, count, pointer_at(minus_inf, x + n * x_stride), result, mask, offsets, minus_inf)
        row_sum = exponentiate(count, row, result, shift)
        scale(count, result, 1.0 / row_sum if row_sum != 0 else 1.0)


def log_softmax(
    first: int, past: int, count: int, x: int, x_stride: int, out: int, out_stride: int, mask: int, offsets: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        result = pointer_at(minus_inf, out + n * out_stride)
        row, shift = masked(n, count, pointer_at(minus_inf, x + n * x_stride), result, mask, offsets, minus_inf)
        row_sum = add_exponentials(count, row, shift)
        subtract(count, row, result, shift, math.log(row_sum) if row_sum != 0 else 0.0)


def softmax_gradient(
    first: int, past: int, count: int, dout: int, dout_stride: int, y: int, y_stride: int, dx: int, dx_stride: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        drow, row = pointer_at(minus_inf, dout + n * dout_stride), pointer_at(minus_inf, y + n * y_stride)
        differentiate(count, drow, row, pointer_at(minus_inf, dx + n * dx_stride), add_products(count, drow, row))


def log_softmax_gradient(
    first: int, past: int, count: int, dout: int, dout_stride: int, y: int, y_stride: int, dx: int, dx_stride: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        drow, row = pointer_at(minus_inf, dout + n * dout_stride), pointer_at(minus_inf, y + n * y_stride)
        differentiate_log(count, drow, row, pointer_at(minus_inf, dx + n * dx_stride), add_seen(count, drow, row))


masked, softmax, log_softmax, softmax_gradient = jit(masked, softmax, log_softmax, softmax_gradient, fastmath=EXACT)
log_softmax_gradient = jit(log_softmax_gradient, fastmath=EXACT)

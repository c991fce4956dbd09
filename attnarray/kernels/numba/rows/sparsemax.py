"""Sparsemax and entmax with alpha = 1.5 along rows, forward and backward, without sorting.

Reference: ops/entmax_core.py. Parallel over the rows. Scratch: as rows/softmax.py.

Newton's method for sum_i y_i(tau) = 1, where the sum is convex in tau: tau increases from max - 1, by passes over a
row that is in the cache. For sparsemax the sum is piecewise linear, and this is Michelot's method: the support
shrinks until it no longer changes, and tau is exact then. In rows of 4,096 normal numbers that takes about five passes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.rows.softmax import differentiated, normalized
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, maximum, multiply_add, sqrt, where
from attnarray.kernels.numba.vector.memory import as_bytes, pointer_at
from attnarray.kernels.numba.vector.rows import Max, Row, Scalar, Sum, row_pass

FORWARD, BACKWARD = 0.6, 0.4  # nanoseconds for each number


def entmax_forward(x: Any, mask: Any, axis: int, alpha: float) -> Any:
    """See the reference."""
    return normalized(_served(alpha, sparsemax, entmax), FORWARD, x, mask, axis)


def entmax_backward(dout: Any, out: Any, axis: int, alpha: float) -> Any:
    """See the reference."""
    return differentiated(_served(alpha, sparsemax_gradient, entmax_gradient), BACKWARD, dout, out, axis)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    minus_inf = np.dtype(dtype).type(-math.inf)
    for forward in (sparsemax, entmax):
        forward(0, 0, 0, 0, 0, 0, 0, 0, 0, minus_inf)
    for backward in (sparsemax_gradient, entmax_gradient):
        backward(0, 0, 0, 0, 0, 0, 0, 0, 0, minus_inf)


def _served(alpha: float, two: Any, three_halves: Any) -> Any:
    if alpha not in (1.5, 2.0):
        raise Declined(f"alpha {alpha:g}: 1.5 and 2 only")
    return two if alpha == 2 else three_halves


def positive(x: Lanes) -> Lanes:
    return where(x > 0.0, x, 0.0)


@row_pass(vectors=2)
def find_max(x: Row, row_max: Max, nan_count: Sum) -> dict[str, Lanes]:
    """`nan_count` counts NaN, which a maximum ignores."""
    return {"row_max": maximum(x, row_max), "nan_count": nan_count + where(x.equals(x), x.constant(0.0), 1.0)}


@row_pass(vectors=2)
def hide(x: Row, mask: Row, out: Row, row_max: Max, nan_count: Sum) -> dict[str, Lanes]:
    seen = where(mask.equals(0), -math.inf, x)
    nan_count += where(seen.equals(seen), x.constant(0.0), 1.0)
    return {"out": seen, "row_max": maximum(seen, row_max), "nan_count": nan_count}


@row_pass(vectors=2)
def add_support(x: Row, row_max: Scalar, tau: Scalar, total: Sum, count: Sum) -> dict[str, Lanes]:
    z = x - row_max
    inside = z > tau
    return {"total": total + where(inside, z, 0.0), "count": count + where(inside, z.constant(1.0), 0.0)}


@row_pass(vectors=2)
def add_roots(x: Row, row_max: Scalar, tau: Scalar, total: Sum, squares: Sum) -> dict[str, Lanes]:
    root = positive((x - row_max) * 0.5 - tau)
    return {"total": total + root, "squares": multiply_add(root, root, squares)}


@row_pass(vectors=2)
def subtract(x: Row, out: Row, row_max: Scalar, tau: Scalar) -> dict[str, Lanes]:
    return {"out": positive(x - row_max - tau)}


@row_pass(vectors=2)
def square(x: Row, out: Row, row_max: Scalar, tau: Scalar) -> dict[str, Lanes]:
    root = positive((x - row_max) * 0.5 - tau)
    return {"out": root * root}


def sparsemax_slope(y: Lanes) -> Lanes:
    return where(y.equals(0.0), 0.0, y / y)  # NaN where y is


@row_pass(vectors=2)
def add_slopes(dout: Row, y: Row, products: Sum, total: Sum) -> dict[str, Lanes]:
    slope, seen = sparsemax_slope(y), where(y.equals(0.0), 0.0, dout)
    return {"products": multiply_add(slope, seen, products), "total": total + slope}


@row_pass(vectors=2)
def add_root_slopes(dout: Row, y: Row, products: Sum, total: Sum) -> dict[str, Lanes]:
    slope, seen = sqrt(y), where(y.equals(0.0), 0.0, dout)
    return {"products": multiply_add(slope, seen, products), "total": total + slope}


@row_pass(vectors=2)
def differentiate(dout: Row, y: Row, dx: Row, mean: Scalar) -> dict[str, Lanes]:
    return {"dx": sparsemax_slope(y) * where(y.equals(0.0), 0.0, dout - mean)}


@row_pass(vectors=2)
def differentiate_roots(dout: Row, y: Row, dx: Row, mean: Scalar) -> dict[str, Lanes]:
    return {"dx": sqrt(y) * where(y.equals(0.0), 0.0, dout - mean)}


def prepared(n: int, count: int, row: Any, out: Any, mask: int, offsets: int, minus_inf: Any) -> Any:
    """The row to normalize, `out` if there is a mask; its maximum; whether `out` is the result already."""
    if mask != 0:
        row_max, nan_count = hide(count, row, as_bytes(pointer_at(minus_inf, mask + pointer_at(n, offsets)[n])), out)
        row = out
    else:
        row_max, nan_count = find_max(count, row)
    if nan_count != 0 or row_max == -minus_inf:
        fill(count, out, minus_inf - minus_inf)
        return row, row_max, True
    if row_max == minus_inf:
        fill(count, out, 0.0)
        return row, row_max, True
    return row, row_max, False


def sparsemax(
    first: int, past: int, count: int, x: int, x_stride: int, out: int, out_stride: int, mask: int, offsets: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        result = pointer_at(minus_inf, out + n * out_stride)
        row, row_max, done = prepared(
            n, count, pointer_at(minus_inf, x + n * x_stride), result, mask, offsets, minus_inf
        )
        if done:
            continue
        tau, before = -1.0, 2.0 * count
        while True:
            total, size = add_support(count, row, row_max, tau)
            tau = (float(total) - 1.0) / float(size)
            if size >= before:  # the same support again
                break
            before = float(size)
        subtract(count, row, result, row_max, tau)


def entmax(
    first: int, past: int, count: int, x: int, x_stride: int, out: int, out_stride: int, mask: int, offsets: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        result = pointer_at(minus_inf, out + n * out_stride)
        row, row_max, done = prepared(
            n, count, pointer_at(minus_inf, x + n * x_stride), result, mask, offsets, minus_inf
        )
        if done:
            continue
        tau, step = -1.0, 1.0
        smallest = 2.0**-24 if item_bytes(row) == 4 else 2.0**-53
        while step > smallest:  # tau only increases, so that the loop ends
            total, squares = add_roots(count, row, row_max, tau)
            step = (float(squares) - 1.0) / (2.0 * float(total))
            tau += step
        square(count, row, result, row_max, tau)


def sparsemax_gradient(
    first: int, past: int, count: int, dout: int, dout_stride: int, y: int, y_stride: int, dx: int, dx_stride: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        drow, row = pointer_at(minus_inf, dout + n * dout_stride), pointer_at(minus_inf, y + n * y_stride)
        products, total = add_slopes(count, drow, row)
        differentiate(
            count, drow, row, pointer_at(minus_inf, dx + n * dx_stride), products / total if total != 0 else 0.0
        )


def entmax_gradient(
    first: int, past: int, count: int, dout: int, dout_stride: int, y: int, y_stride: int, dx: int, dx_stride: int,
    minus_inf: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        drow, row = pointer_at(minus_inf, dout + n * dout_stride), pointer_at(minus_inf, y + n * y_stride)
        products, total = add_root_slopes(count, drow, row)
        differentiate_roots(
            count, drow, row, pointer_at(minus_inf, dx + n * dx_stride), products / total if total != 0 else 0.0
        )


prepared, sparsemax, entmax, sparsemax_gradient = jit(prepared, sparsemax, entmax, sparsemax_gradient, fastmath=EXACT)
entmax_gradient = jit(entmax_gradient, fastmath=EXACT)

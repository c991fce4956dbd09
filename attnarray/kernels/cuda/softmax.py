"""Softmax and log-softmax along rows. References: ops/softmax.py; source: softmax.cu."""

from __future__ import annotations

import math
from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import HELD_BYTES, MOST_THREADS, Grid
from attnarray.kernels.cuda.loader import Kernel, cupy, empty, launch, multiprocessors
from attnarray.kernels.cuda.loader import warmup as load_kernels
from attnarray.kernels.cuda.rows import LONG, ONE, TWO, RowKernel, are_held, launch_rows, load, row_kernel, wide_grid

SOFTMAX = row_kernel("softmax.cu", "softmax_forward", "ppipii", ONE, 1024)
LOG_SOFTMAX = row_kernel("softmax.cu", "log_softmax_forward", "ppipii", ONE, 1024)
SOFTMAX_BACKWARD = row_kernel("softmax.cu", "softmax_backward", "pppii", TWO, 1024)
LOG_SOFTMAX_BACKWARD = row_kernel("softmax.cu", "log_softmax_backward", "pppii", TWO, 1024)
WIDE = {
    kernel.any: Kernel("softmax.cu", f"{kernel.any.name}_wide", parameters)
    for kernel, parameters in (
        (SOFTMAX, "ppii"), (LOG_SOFTMAX, "ppii"), (SOFTMAX_BACKWARD, "pppii"), (LOG_SOFTMAX_BACKWARD, "pppii"),
    )
}  # fmt: skip
KERNELS = (SOFTMAX, LOG_SOFTMAX, SOFTMAX_BACKWARD, LOG_SOFTMAX_BACKWARD)


def softmax_forward(x: Any, mask: Any, axis: int) -> Any:
    """See the reference."""
    return _normalized(SOFTMAX, x, mask, axis)


def softmax_backward(dout: Any, out: Any, axis: int) -> Any:
    """See the reference."""
    return _differentiated(SOFTMAX_BACKWARD, dout, out, axis)


def log_softmax_forward(x: Any, mask: Any, axis: int) -> Any:
    """See the reference."""
    return _normalized(LOG_SOFTMAX, x, mask, axis)


def log_softmax_backward(dout: Any, out: Any, axis: int) -> Any:
    """See the reference."""
    return _differentiated(LOG_SOFTMAX_BACKWARD, dout, out, axis)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    load(KERNELS, dtype)
    load_kernels(tuple(WIDE.values()), dtype)


def _normalized(kernel: RowKernel, x: Any, mask: Any, axis: int) -> Any:
    how = ga.stored(x)
    rows = ga.rows_along(x, axis)
    out, count, width = empty(rows.shape, x.dtype), ga.row_count(rows.shape), rows.shape[-1]
    table, apart = (None, 0) if mask is None else _mask_rows(mask, x.shape, axis)
    # In 16 bits such a long row is limited by arithmetic, not by memory bandwidth.
    long = how.stored_itemsize == 2 and width > LONG and mask is None
    wide = wide_grid(how, width, (rows, out), 1) if long else None
    if wide:
        _launch_wide(kernel, how, wide, count, width, rows, out)
    else:
        launch_rows(kernel, how, count, width, rows, table, apart, out)
    return ga.from_rows(out, axis)


def _differentiated(kernel: RowKernel, dout: Any, y: Any, axis: int) -> Any:
    how = ga.stored(y)
    rows, drows = ga.rows_along(y, axis), ga.rows_along(ga.contiguous_like(dout, y), axis)
    dx, count, width = empty(rows.shape, y.dtype), ga.row_count(rows.shape), rows.shape[-1]
    arrays, wide = (drows, rows, dx), None
    if not are_held(kernel, how, width, arrays) and width * how.itemsize > HELD_BYTES * MOST_THREADS:
        wide = wide_grid(how, width, arrays, 2 if how.stored_itemsize == 2 else 1)
    if wide:
        _launch_wide(kernel, how, wide, count, width, *arrays)
    else:
        launch_rows(kernel, how, count, width, *arrays)
    return ga.from_rows(dx, axis)


def _launch_wide(kernel: RowKernel, how: ga.Stored, grid: Grid, count: int, width: int, *arguments: Any) -> None:
    blocks = min(count, multiprocessors(int(arguments[0].data.device_id)))
    launch(WIDE[kernel.any], how.name, grid._replace(blocks=(blocks, 1, 1)), *arguments, count, width)


def _mask_rows(mask: Any, shape: tuple[int, ...], axis: int) -> tuple[Any, int]:
    """The rows of a mask, and the stride between them: 0 for one that all rows of x share."""
    full = mask.reshape((1,) * (len(shape) - mask.ndim) + tuple(mask.shape))
    others = [size for index, size in enumerate(full.shape) if index != axis]
    if math.prod(others) == 1:
        return ga.flags(full.reshape(full.shape[axis]), (shape[axis],)), 0
    return ga.rows_along(cupy().broadcast_to(full, shape), axis), shape[axis]

"""Softmax and log-softmax along rows. References: ops/softmax.py; source: softmax.cu."""

from __future__ import annotations

import math
from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import plan_rows
from attnarray.kernels.cuda.loader import Kernel, cupy, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

SOFTMAX = Kernel("softmax.cu", "softmax_forward", "ppipii")
LOG_SOFTMAX = Kernel("softmax.cu", "log_softmax_forward", "ppipii")
SOFTMAX_BACKWARD = Kernel("softmax.cu", "softmax_backward", "pppii")
LOG_SOFTMAX_BACKWARD = Kernel("softmax.cu", "log_softmax_backward", "pppii")
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


def _normalized(kernel: Kernel, x: Any, mask: Any, axis: int) -> Any:
    how = ga.stored(x)
    rows = ga.rows_along(x, axis)
    out, count, width = empty(rows.shape, x.dtype), ga.row_count(rows.shape), rows.shape[-1]
    table, apart = (None, 0) if mask is None else _mask_rows(mask, x.shape, axis)
    launch(kernel, how.name, plan_rows(count, width, how.itemsize), rows, table, apart, out, count, width)
    return ga.from_rows(out, axis)


def _differentiated(kernel: Kernel, dout: Any, y: Any, axis: int) -> Any:
    how = ga.stored(y)
    rows, drows = ga.rows_along(y, axis), ga.rows_along(ga.beside(dout, y), axis)
    dx, count, width = empty(rows.shape, y.dtype), ga.row_count(rows.shape), rows.shape[-1]
    launch(kernel, how.name, plan_rows(count, width, how.itemsize), drows, rows, dx, count, width)
    return ga.from_rows(dx, axis)


def _mask_rows(mask: Any, shape: tuple[int, ...], axis: int) -> tuple[Any, int]:
    """The rows of a mask, and how far they lie apart: 0 for one that all rows of x share."""
    full = mask.reshape((1,) * (len(shape) - mask.ndim) + tuple(mask.shape))
    others = [size for place, size in enumerate(full.shape) if place != axis]
    if math.prod(others) == 1:
        return ga.flags(full.reshape(full.shape[axis]), (shape[axis],)), 0
    return ga.rows_along(cupy().broadcast_to(full, shape), axis), shape[axis]

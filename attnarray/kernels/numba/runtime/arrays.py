"""How NumPy arrays are brought to kernels along rows, and their results back.

Kernels take addresses and strides in bytes, so that each dtype is compiled once, whatever the layout of its arrays.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime.call import address
from attnarray.numpy_arrays import PLAIN


class Matrix(NamedTuple):
    """An array (R, N) whose rows are contiguous, its address, and how many bytes its rows lie apart."""

    array: Any
    address: int
    stride: int

    @property
    def step(self) -> int:
        """How many numbers its rows lie apart."""
        return int(self.stride // self.array.itemsize)


def computed_in(x: Any) -> Any:
    """The dtype to compute in: float64 for float64, float32 for float32 and the 16-bit types."""
    if type(x) not in PLAIN and not isinstance(x, np.generic):
        raise Declined(f"{type(x).__name__}: plain NumPy arrays only")
    return wide(x.dtype)


@functools.lru_cache(maxsize=64)  # a name takes NumPy microseconds
def wide(dtype: Any) -> Any:
    """The dtype to compute in for a dtype of arrays."""
    if dtype.name not in ("float32", "float64", "float16", "bfloat16"):
        raise Declined(f"dtype {dtype.name}: float64, float32, float16 and bfloat16 only")
    return np.dtype(np.float64 if dtype.name == "float64" else np.float32)


def aligned(x: Any, real: Any) -> Any:
    """`x` in the dtype `real` and aligned; a copy only if it is not so."""
    return x if x.dtype == real and x.flags.aligned else np.require(x, real, "A")


def matrix(rows: Any) -> Matrix:
    return Matrix(rows, address(rows), rows.strides[0])


def rows_along(x: Any, axis: int, real: Any) -> Matrix:
    """`x` with `axis` last and the others made one; a copy only where dtype or strides ask for it."""
    last = aligned(x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1), real)
    rows = last.reshape(math.prod(last.shape[:-1]), last.shape[-1])
    contiguous = rows.strides[1] == real.itemsize or rows.shape[1] == 1
    return matrix(rows if contiguous else np.ascontiguousarray(rows))


def results_along(like: Any, axis: int, real: Any) -> Matrix:
    """Memory for results with the shape of `like`, as rows along `axis`."""
    others = (*like.shape[:axis], *like.shape[axis + 1 :])
    return matrix(np.empty((math.prod(others), like.shape[axis]), real))


def in_shape_of(like: Any, axis: int, rows: Matrix) -> Any:
    """Rows along `axis` in the shape and dtype of `like`."""
    shape = (*like.shape[:axis], *like.shape[axis + 1 :], like.shape[axis])
    out = rows.array.reshape(shape)
    return (out if axis == like.ndim - 1 else np.moveaxis(out, -1, axis)).astype(like.dtype, copy=False)


def flat(x: Any, real: Any) -> Any:
    """All numbers of `x` side by side."""
    return aligned(x, real).ravel()


def nanoseconds(count: int, each: float, real: Any) -> int:
    """What one thread takes for `count` numbers, about, when it takes `each` for a number of float32."""
    return int(count * each * real.itemsize / 4)

"""NumPy arrays as rows for kernels, and rows of results as arrays.

Kernels take addresses and strides in bytes, so that each dtype is compiled once, whatever the layout of its arrays.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.vector.conversion import converted
from attnarray.numpy_arrays import PLAIN


class Matrix(NamedTuple):
    """An array (R, N) whose rows are contiguous, its address, and the stride between its rows in bytes."""

    array: Any
    address: int
    stride: int

    @property
    def step(self) -> int:
        """The stride between its rows in elements."""
        return int(self.stride // self.array.itemsize)


def compute_dtype(x: Any) -> Any:
    """The dtype to compute in: float64 for float64, float32 for float32 and the 16-bit types."""
    if type(x) not in PLAIN and not isinstance(x, np.generic):
        raise Declined(f"{type(x).__name__}: plain NumPy arrays only")
    return wide(x.dtype)


@functools.lru_cache(maxsize=64)  # `dtype.name` takes NumPy microseconds
def wide(dtype: Any) -> Any:
    """The dtype to compute in for a dtype of arrays."""
    if dtype.name not in ("float32", "float64", "float16", "bfloat16"):
        raise Declined(f"dtype {dtype.name}: float64, float32, float16 and bfloat16 only")
    return np.dtype(np.float64 if dtype.name == "float64" else np.float32)


@functools.lru_cache(maxsize=64)
def stored(dtype: Any) -> Any:
    """The dtype in native byte order, in which kernels read and write."""
    return np.dtype(np.float16) if dtype.name == "float16" else dtype if dtype.name == "bfloat16" else wide(dtype)


def aligned(x: Any, real: Any) -> Any:
    """`x` in the dtype `real` and aligned; copied only if needed."""
    return x if x.dtype == real and x.flags.aligned else np.require(converted(x, real), None, "A")


def matrix(rows: Any) -> Matrix:
    return Matrix(rows, address(rows), rows.strides[0])


def rows_along(x: Any, axis: int, real: Any) -> Matrix:
    """`x` with `axis` last and the others flattened; copied only where dtype or strides require it."""
    last = aligned(x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1), real)
    rows = last.reshape(math.prod(last.shape[:-1]), last.shape[-1])
    contiguous = rows.strides[1] == real.itemsize or rows.shape[1] == 1
    return matrix(rows if contiguous else np.ascontiguousarray(rows))


def results_along(like: Any, axis: int, real: Any) -> Matrix:
    """Memory for results with the shape of `like`, as rows along `axis`."""
    others = (*like.shape[:axis], *like.shape[axis + 1 :])
    return matrix(np.empty((math.prod(others), like.shape[axis]), real))


def reshape_like(like: Any, axis: int, rows: Matrix) -> Any:
    """Rows along `axis` in the shape and dtype of `like`."""
    shape = (*like.shape[:axis], *like.shape[axis + 1 :], like.shape[axis])
    out = rows.array.reshape(shape)
    return converted(out if axis == like.ndim - 1 else np.moveaxis(out, -1, axis), like.dtype)


def flat(x: Any, real: Any) -> Any:
    """All numbers of `x` as one contiguous row."""
    return aligned(x, real).ravel()


def nanoseconds(count: int, each: float, real: Any) -> int:
    """The estimated time of one thread for `count` numbers, from the nanoseconds for one of float32."""
    return int(count * each * real.itemsize / 4)

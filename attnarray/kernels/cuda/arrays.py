"""CuPy arrays as arguments and results of kernels: dtypes, layouts, rows. Nothing waits for the GPU."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda.grid import plan_columns
from attnarray.kernels.cuda.loader import STORED, Kernel, cupy, empty, launch

COLUMN_SUMS = Kernel("columns.cu", "column_sums", "ppii")


class Stored(NamedTuple):
    """The dtype that numbers are stored in, and the one that they are computed in."""

    name: str
    real: Any

    @property
    def itemsize(self) -> int:
        """Bytes of a number as computed."""
        return 8 if self.name == "float64" else 4

    @property
    def stored_itemsize(self) -> int:
        return 2 if self.name.endswith("16") else self.itemsize


@functools.lru_cache(maxsize=64, typed=True)  # `dtype.name` takes NumPy microseconds
def _stored(dtype: Any, wide_only: bool) -> Stored:
    known = ("float32", "float64") if wide_only else tuple(STORED)
    if dtype.name not in known:
        raise Declined(f"dtype {dtype.name}: {', '.join(known)} only")
    return Stored(dtype.name, np.float64 if dtype.name == "float64" else np.float32)


def stored(x: Any, *, wide_only: bool = False) -> Stored:
    """The dtype of `x`; Declined if kernels do not support it, or with `wide_only` if it has 16 bits."""
    return _stored(x.dtype, wide_only)


def contiguous(x: Any) -> Any:
    """`x`, C-contiguous; copied only if needed."""
    if x.flags.c_contiguous:
        return x
    if x.dtype.name == "bfloat16":  # which CuPy stores, but has few functions for
        return cupy().ascontiguousarray(x.view(np.uint16)).view(x.dtype)
    return cupy().ascontiguousarray(x)


def contiguous_like(x: Any, like: Any) -> Any:
    """`x` in the dtype of `like`, contiguous."""
    return contiguous(x if x.dtype == like.dtype else x.astype(like.dtype))


def rows_along(x: Any, axis: int) -> Any:
    """`x` with `axis` last, contiguous."""
    return contiguous(x if axis == x.ndim - 1 else cupy().moveaxis(x, axis, -1))


def from_rows(rows: Any, axis: int) -> Any:
    """Back from the order of `rows_along`: a view."""
    return rows if axis == rows.ndim - 1 else cupy().moveaxis(rows, -1, axis)


def row_count(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def flags(mask: Any, shape: tuple[int, ...]) -> Any:
    """A boolean mask broadcast to the shape, contiguous."""
    return contiguous(mask if tuple(mask.shape) == tuple(shape) else cupy().broadcast_to(mask, shape))


def column_sums(partial: Any, like: Any) -> Any:
    """The sums of the columns of `partial` (P, N), in the compute dtype, as the dtype of `like`."""
    how = stored(like)
    count, width = partial.shape
    out = empty((width,), like.dtype)
    launch(COLUMN_SUMS, how.name, plan_columns(width, how.itemsize), partial, out, count, width)
    return out

"""Copies of tiles in the order in which the micro-kernel reads them; only here do the strides of inputs matter.

`x` is a matrix (rows, N) of any strides, `packed` a pointer. M and W are those of the micro-kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import load, store
from attnarray.kernels.numba.vector.lanes import lanes, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import ahead, row_pointer
from attnarray.kernels.numba.vector.row_products import row_lanes
from attnarray.kernels.numba.vector.transpose import interleave


@intrinsic
def copy_tile(_context: Any, source: Any, packed: Any) -> Any:
    """Copy M contiguous numbers."""
    return types.void(source, packed), _copy(1)


@intrinsic
def copy_third(_context: Any, source: Any, packed: Any) -> Any:
    """Copy M / 3 contiguous numbers."""
    return types.void(source, packed), _copy(3)


@intrinsic
def clear_tile(_context: Any, packed: Any) -> Any:
    """Write M zeros."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        vector = ir.VectorType(context.get_value_type(packed.dtype), tile_size(packed.dtype.bitwidth)[1])
        store(builder, ir.Constant(vector, [0.0] * vector.count), arguments[0])
        return context.get_dummy_value()

    return types.void(packed), emit


def _copy(parts: int) -> Callable[..., ir.Value]:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        dtype = signature.args[1].dtype
        vector = ir.VectorType(context.get_value_type(dtype), tile_size(dtype.bitwidth)[1] // parts)
        store(builder, load(builder, arguments[0], vector), arguments[1])
        return context.get_dummy_value()

    return emit


def has_contiguous_rows(x: Any) -> Any:
    """Whether each row is contiguous, and the stride between rows a multiple of the item size."""
    return x.strides[1] == x.itemsize and x.strides[0] % x.itemsize == 0


def pack_rows(x: Any, first: int, past: int, packed: Any) -> None:
    """Rows [first, past) in groups of M, as (groups, N, M): the A of a product over N. The last group is padded."""
    tile, columns, half = tile_rows(packed), x.shape[1], lanes(packed) // 2
    done = columns // half * half if has_contiguous_rows(x) else 0
    for start in range(first, past, tile):
        group, count = ahead(packed, (start - first) * columns), min(tile, past - start)
        if done:
            interleave(done, row_pointer(x, start), x.strides[0] // x.itemsize, count, group)
        for n in range(done, columns):
            for m in range(tile):
                group[n * tile + m] = x[start + m, n] if m < count else 0


def pack_columns(x: Any, first: int, past: int, packed: Any) -> None:
    """Rows [first, past) with columns in groups of M, as (groups, rows, M): the A of a product over the rows."""
    tile, columns, rows = tile_rows(packed), x.shape[1], past - first
    whole, third, dense = columns // tile * tile, tile // 3, has_contiguous_rows(x)
    done = whole + (columns - whole) // third * third if dense else 0
    for row in range(rows):
        source, at = row_pointer(x, first + row), ahead(packed, row * tile)
        if whole < columns:
            clear_tile(ahead(at, whole * rows))
        for n in range(0, whole if dense else 0, tile):
            copy_tile(ahead(source, n), ahead(at, n * rows))
        for n in range(whole, done, third):
            copy_third(ahead(source, n), ahead(at, whole * rows + n - whole))
        for n in range(done, columns):
            at[n // tile * tile * rows + n % tile] = x[first + row, n]


def pack_row(x: Any, row: int, factor: Any, packed: Any) -> None:
    """One row times `factor`, padded with 0 to whole vectors: a row of the B of a product over the rows."""
    columns = x.shape[1]
    if x.strides[1] == x.itemsize:
        numbers = row_pointer(x, row)
        for n in range(columns):
            packed[n] = numbers[n] * factor
    else:
        for n in range(columns):
            packed[n] = x[row, n] * factor
    for n in range(columns, whole_lanes(columns, packed)):
        packed[n] = 0


def whole_lanes(columns: int, packed: Any) -> Any:
    """`columns` padded to a multiple of W."""
    return (columns + lanes(packed) - 1) // lanes(packed) * lanes(packed)


def row_length(columns: int, packed: Any) -> Any:
    """`columns` padded to a multiple of the lanes of a register."""
    return (columns + row_lanes(packed) - 1) // row_lanes(packed) * row_lanes(packed)


def stride_in_place(x: Any, like: Any) -> Any:
    """The stride in elements between rows that can be read without a copy, else -1."""
    if x.shape[1] % row_lanes(like) == 0 and has_contiguous_rows(x) and x.strides[0] >= 0:
        return x.strides[0] // x.itemsize
    return -1


def whole_tiles(columns: int, packed: Any) -> Any:
    """`columns` padded to a multiple of M."""
    return (columns + tile_rows(packed) - 1) // tile_rows(packed) * tile_rows(packed)


def remove_nonfinite(packed: Any, count: int) -> bool:
    """Replace NaN and infinities by 0; return whether there were any. `put_nan` then writes NaN to dependent sums."""
    found = 0
    for n in range(count):
        found |= not (abs(packed[n]) < np.inf)
    if found:
        for n in range(count):
            packed[n] = packed[n] if abs(packed[n]) < np.inf else 0
    return found != 0


def put_nan(
    x: Any, first: int, past: int, weights: Any, weight_row: int, weight_step: int, count: int, total: Any,
    total_column: int, total_step: int,
) -> None:  # fmt: skip
    """Write NaN into sums over the rows [first, past) of `x` where a nonzero weight multiplies NaN or an infinity.

    So a weight of zero masks non-finite values, and all other results have the bits that they have without these.
    """
    for row in range(first, past):
        for d in range(x.shape[1]):
            if not abs(x[row, d]) < np.inf:
                for n in range(count):
                    if weights[(row - first) * weight_row + n * weight_step] != 0:
                        total[d * total_column + n * total_step] = np.nan


whole_lanes, whole_tiles, row_length = jit(whole_lanes, whole_tiles, row_length, inner=True)
stride_in_place, has_contiguous_rows, pack_row, pack_rows = jit(
    stride_in_place, has_contiguous_rows, pack_row, pack_rows, inner=True
)
pack_columns = jit(pack_columns, inner=True)
remove_nonfinite, put_nan = jit(remove_nonfinite, put_nan, fastmath=EXACT, inner=True)

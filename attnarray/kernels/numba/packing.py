"""Copies of tiles in the order in which the micro-kernel reads them; here alone are the strides of the inputs seen.

`x` is a matrix (rows, N) of any strides, `packed` a pointer. M and W are those of the micro-kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.jit import EXACT, jit
from attnarray.kernels.numba.lanes import lanes, tile_rows


def pack_rows(x: Any, first: int, past: int, packed: Any) -> None:
    """Rows [first, past) in groups of M, as (groups, N, M): the A of a product over N. Rows are filled up with 0."""
    tile, columns = tile_rows(packed), x.shape[1]
    whole = (past - first) // tile
    for group in range(whole):
        at, row = group * tile * columns, first + group * tile
        for n in range(columns):
            for m in range(tile):
                packed[at + n * tile + m] = x[row + m, n]
    rest = past - first - whole * tile
    if rest:
        at, row = whole * tile * columns, first + whole * tile
        for n in range(columns):
            for m in range(tile):
                packed[at + n * tile + m] = x[row + m, n] if m < rest else 0


def pack_columns(x: Any, first: int, past: int, packed: Any) -> None:
    """Rows [first, past) with columns in groups of M, as (groups, rows, M): the A of a product over the rows."""
    tile, columns, rows = tile_rows(packed), x.shape[1], past - first
    whole = columns // tile
    for row in range(rows):
        for group in range(whole):
            at = (group * rows + row) * tile
            for m in range(tile):
                packed[at + m] = x[first + row, group * tile + m]
        rest = columns - whole * tile
        if rest:
            at = (whole * rows + row) * tile
            for m in range(tile):
                packed[at + m] = x[first + row, whole * tile + m] if m < rest else 0


def pack_lane(x: Any, row: int, factor: Any, packed: Any, lane: int) -> None:
    """One row times `factor` as one lane of (N, W): of the B of a product over N."""
    width = lanes(packed)
    for n in range(x.shape[1]):
        packed[n * width + lane] = x[row, n] * factor


def pack_row(x: Any, row: int, factor: Any, packed: Any) -> None:
    """One row times `factor`, filled up with 0 to whole vectors: of the B of a product over the rows."""
    columns = x.shape[1]
    for n in range(columns):
        packed[n] = x[row, n] * factor
    for n in range(columns, whole_lanes(columns, packed)):
        packed[n] = 0


def whole_lanes(columns: int, packed: Any) -> Any:
    """`columns` filled up to a multiple of W."""
    return (columns + lanes(packed) - 1) // lanes(packed) * lanes(packed)


def whole_tiles(columns: int, packed: Any) -> Any:
    """`columns` filled up to a multiple of M."""
    return (columns + tile_rows(packed) - 1) // tile_rows(packed) * tile_rows(packed)


def remove_unfinite(packed: Any, count: int) -> bool:
    """Write 0 for NaN and infinities; whether there were any. `spoil` then says what they would have reached."""
    found = 0
    for n in range(count):
        found |= not (abs(packed[n]) < np.inf)
    if found:
        for n in range(count):
            packed[n] = packed[n] if abs(packed[n]) < np.inf else 0
    return found != 0


def spoil(
    x: Any, first: int, past: int, weights: Any, weight_row: int, weight_step: int, count: int, total: Any,
    total_column: int, total_step: int,
) -> None:  # fmt: skip
    """Write NaN into sums over the rows [first, past) of `x` where a weight other than 0 meets NaN or an infinity.

    So a weight of zero hides what it multiplies, and all else has the bits that it has without them.
    """
    for row in range(first, past):
        for d in range(x.shape[1]):
            if not abs(x[row, d]) < np.inf:
                for n in range(count):
                    if weights[(row - first) * weight_row + n * weight_step] != 0:
                        total[d * total_column + n * total_step] = np.nan


whole_lanes, whole_tiles = jit(whole_lanes, inner=True), jit(whole_tiles, inner=True)
pack_rows, pack_columns = jit(pack_rows, inner=True), jit(pack_columns, inner=True)
pack_lane, pack_row = jit(pack_lane, inner=True), jit(pack_row, inner=True)
remove_unfinite, spoil = jit(remove_unfinite, fastmath=EXACT, inner=True), jit(spoil, fastmath=EXACT, inner=True)

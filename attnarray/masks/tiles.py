"""A mask as a table of tiles, for what has no band of positions: empty tiles are skipped, full ones need no mask.

Only tiles that are neither are looked at pair by pair, and of those that a mask knows to be equal one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import record
from attnarray.masks.geometry import Grid, Pairs, Sizes, Tiles
from attnarray.masks.mask import Mask

SIZE = 64  # positions of a tile, of queries and of keys
AT_ONCE = 2**20  # pairs that are looked at together
EMPTY, FULL = 0, 1


class TileMask(NamedTuple):
    """For each tile of queries and keys which bits it has; tile 0 has none and tile 1 all."""

    table: np.ndarray  # (B|1, H|1, Q, K) int32
    tiles: Array  # (2 + N, size, size) bool: (query, key)
    keys: int

    @property
    def size(self) -> int:
        return int(self.tiles.shape[1])

    def dense(self, start: int, stop: int) -> Array:
        """The boolean array (B|1, H|1, stop - start, S) of the queries [start, stop)."""
        xp, size = namespace_of(self.tiles), self.size
        first = start // size
        table = self.table[:, :, first : -(-stop // size), :]
        batch, heads, rows, columns = table.shape
        numbers = xp.asarray(np.ascontiguousarray(table).reshape(-1), device=device_of(self.tiles))
        taken = xp.reshape(xp.take(self.tiles, numbers, axis=0), (batch, heads, rows, columns, size, size))
        wide = xp.reshape(xp.permute_dims(taken, (0, 1, 2, 4, 3, 5)), (batch, heads, rows * size, columns * size))
        return wide[:, :, start - first * size : stop - first * size, : self.keys]

    def columns(self, row: int) -> list[tuple[int, int]]:
        """The keys that some query of a row of tiles may attend to, as ranges [first, past)."""
        seen = np.flatnonzero((self.table[:, :, row, :] != EMPTY).any(axis=(0, 1)))
        if not len(seen):
            return []
        runs = np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1)
        return [(int(run[0]) * self.size, min((int(run[-1]) + 1) * self.size, self.keys)) for run in runs]


def tile_mask(
    mask: Mask, sizes: Sizes, q_offset: Any, kv_offset: int | None, size: int | None = None
) -> TileMask:  # fmt: skip
    """The tiles of a mask, for scores of these sizes; `q_offset` is an int or (B,), `kv_offset` is given for parts."""
    like = np.zeros(0) if sizes.like is None else sizes.like
    size = SIZE if size is None else size
    grid = _grid(sizes, np.asarray(q_offset, np.int32), kv_offset, size)
    if math.prod((*sizes.batch, sizes.heads, sizes.queries, sizes.keys)) == 0:
        table = np.zeros((1, 1, -(-sizes.queries // size), -(-sizes.keys // size)), np.int32)
        return TileMask(table, _bits(np.zeros((0, size, size), bool), size, like), sizes.keys)
    some, every = mask.kinds(grid)
    shape = (*np.broadcast_shapes(some.shape, every.shape)[:2], len(grid.i_first), len(grid.j_first))
    some, every = np.broadcast_to(some, shape), np.broadcast_to(every, shape)
    table = np.where(every & some, FULL, EMPTY).astype(np.int32)
    places = np.nonzero(some & ~every)
    bits, numbers = _partial_tiles(mask, places, grid, np.asarray(q_offset, np.int32), kv_offset or 0, size)
    table[places] = numbers
    _explain(mask, table, size)
    return TileMask(table, _bits(bits, size, like), sizes.keys)


def _grid(sizes: Sizes, q_offset: np.ndarray, kv_offset: int | None, size: int) -> Grid:
    i, j = (np.arange(0, n, size, dtype=np.int32) for n in (sizes.queries, sizes.keys))
    offset = q_offset.reshape(-1, 1, 1, 1)
    first, last = i[None, None, :, None] + offset, np.minimum(i + size, sizes.queries)[None, None, :, None] - 1 + offset
    start = kv_offset or 0
    k_last = np.minimum(j + size, sizes.keys) - 1 + start
    ends = first, last, (j + start)[None, None, None, :], k_last[None, None, None, :]
    return Grid(i, j, *ends, sizes, kv_offset is not None)


def _partial_tiles(
    mask: Mask, places: tuple[np.ndarray, ...], grid: Grid, q_offset: np.ndarray, kv_offset: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The bits (N, size, size) of different tiles, and for each place the number of its tile."""
    b, h, row, column = (place.astype(np.int32) for place in places)
    offset = q_offset.reshape(-1)[b if q_offset.size > 1 else np.zeros_like(b)]
    i, j = (np.arange(size, dtype=np.int32) + place[:, None] * size for place in (row, column))
    i, j = np.minimum(i, grid.sizes.queries - 1), np.minimum(j, grid.sizes.keys - 1)
    tiles = Tiles(b, h, row, column, i[:, 0] + offset, j[:, 0] + kv_offset, size, grid)
    labels = mask.labels(tiles)
    chosen: Any = np.arange(len(b))
    numbers: Any = chosen
    if labels is not None:
        _, chosen, numbers = np.unique(_with_edges(labels, tiles), return_index=True, return_inverse=True)
    bits = np.empty((len(chosen), size, size), bool)
    step = max(AT_ONCE // size**2, 1)
    for start in range(0, len(chosen), step):
        some = chosen[start : start + step]
        at = i[some][:, :, None], j[some][:, None, :]
        positions = at[0] + offset[some][:, None, None], at[1] + kv_offset
        pairs = Pairs(b[some][:, None, None], h[some][:, None, None], *at, *positions, grid.sizes)
        bits[start : start + step] = mask.allows(pairs)
    flat = bits.reshape(len(bits), size * size)
    every, some = flat.all(axis=1), flat.any(axis=1)
    kept = some & ~every
    number = np.where(every, FULL, EMPTY)
    number[kept] = 2 + np.arange(int(kept.sum()))
    return bits[kept], number[numbers.reshape(-1)]


def _with_edges(labels: Any, tiles: Tiles) -> np.ndarray:
    """The labels, other ones in the last row and column of tiles, which may be cut off."""
    (rows, columns), labels = (len(x) for x in (tiles.grid.i_first, tiles.grid.j_first)), np.asarray(labels, np.int64)
    return 4 * labels + 2 * (tiles.row == rows - 1) + (tiles.column == columns - 1)


def _bits(bits: np.ndarray, size: int, like: Any) -> Array:
    every = np.concatenate([np.zeros((1, size, size), bool), np.ones((1, size, size), bool), bits])
    return namespace_of(like).asarray(every, device=device_of(like))


def _explain(mask: Mask, table: np.ndarray, size: int) -> None:
    """Say to `explain` how many tiles are computed, and which masks were asked about every pair."""
    empty, full = np.mean(table == EMPTY), np.mean(table == FULL)
    what = f"{1 - empty:.0%} of the tiles of {size} x {size} are computed, {1 - empty - full:.0%} with a mask"
    names = ", ".join(dict.fromkeys(mask.without_rule()))
    fallback = f"; every pair was asked about, as {names} has no rule for tiles" if names else ""
    record("masks.tiles:tile_mask", "tiles", what + fallback)

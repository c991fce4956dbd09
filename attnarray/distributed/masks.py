"""Masks of which a part of the scores is computed here: the pairs of some queries and keys, at their own positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.options import FEWEST_PAIRS
from attnarray.backend import Array, namespace_of, to_numpy
from attnarray.distributed.sequence import Part, Segment
from attnarray.masks import (
    Blocks,
    Causal,
    Complement,
    Global,
    Intersection,
    Mask,
    Padding,
    Predicate,
    Prefix,
    RandomBlocks,
    Strided,
    Tree,
    Union,
    Window,
    to_constraints,
)
from attnarray.masks.geometry import Grid, Kinds, Pairs, Sizes, Tiles
from attnarray.masks.tiles import tile_mask

# Of these a pair's positions decide, not its indices among the queries and keys that are given.
POSITIONAL = (Blocks, Causal, Global, Padding, Predicate, Prefix, RandomBlocks, Strided, Tree, Window)


@dataclass(frozen=True, eq=False)
class _Excerpt(Mask):
    """A mask of whole scores, asked about a part of them that begins at these batches, heads, queries and keys."""

    mask: Mask
    sizes: Sizes
    first: tuple[int, int, int, int]

    def allows(self, pairs: Pairs) -> Any:
        b, h, i, j = self.first
        moved = pairs._replace(b=pairs.b + b, h=pairs.h + h, i=pairs.i + i, j=pairs.j + j, sizes=self.sizes)
        return self.mask.allows(moved)

    def kinds(self, grid: Grid) -> Kinds:
        if self._has_other_batches(grid):
            some = np.ones((*grid.sizes.batch, grid.sizes.heads, 1, 1), bool)
            return some, ~some
        some, every = self.mask.kinds(self._moved(grid))
        return self._own(some, grid), self._own(every, grid)

    def labels(self, tiles: Tiles) -> Any:
        if self._has_other_batches(tiles.grid):
            return None
        b, h = tiles.b + self.first[0], tiles.h + self.first[1]
        return self.mask.labels(tiles._replace(b=b, h=h, grid=self._moved(tiles.grid)))

    def _has_other_batches(self, grid: Grid) -> bool:
        """Whether the grid has positions of some of the batches, which do not fit to numbers of all."""
        return grid.q_first.shape[0] > 1 and grid.sizes.batch != (int(np.prod(self.sizes.batch)),)

    def _moved(self, grid: Grid) -> Grid:
        i, j = self.first[2:]
        return grid._replace(i_first=grid.i_first + i, j_first=grid.j_first + j, sizes=self.sizes, is_part=False)

    def _own(self, kind: Any, grid: Grid) -> Any:
        """Of an array over all batches and heads (B|1, H|1, Q|1, K|1) those of the part."""
        kind = np.asarray(kind)
        for axis, count in ((0, int(np.prod(grid.sizes.batch))), (1, grid.sizes.heads)):
            if kind.shape[axis] > 1:
                kind = np.take(kind, range(self.first[axis], self.first[axis] + count), axis=axis)
        return kind


class PartMask(NamedTuple):
    """A mask that is asked about pairs, and the sizes of the scores that it is for."""

    mask: Mask
    sizes: Sizes

    def modifiers(
        self, own: ScoreModifiers, q: Array, row: int, keys: Segment, first: tuple[int, int] = (0, 0)
    ) -> ScoreModifiers:
        """Those of a tile, `own`, with this mask; its offsets count from the first of these `keys`.

        q (B, H, T, D) are the queries of the tile, from this row, batch and head on.
        """
        heads, queries, offset = q.shape[1], q.shape[2], own.q_offset
        if not queries or not keys.length:
            return own
        part = _Excerpt(self.mask, self.sizes._replace(like=q), (*first, row, keys.start))
        sizes = Sizes((int(q.shape[0]),), heads, queries, keys.length, q)
        whole = (offset if isinstance(offset, int) else to_numpy(offset)) + keys.start
        tiles = tile_mask(part, sizes, whole, keys.start)
        if queries * keys.length >= FEWEST_PAIRS:
            return own._replace(tiles=tiles)
        dense = tiles.dense(0, queries)
        return own._replace(mask=dense if own.mask is None else own.mask & dense)

    def check(self, q: Array) -> None:
        """Ask about one pair, so that arrays of wrong shapes are errors before anything is computed."""
        if q.shape[0] and self.sizes.queries and self.sizes.keys:
            zero = np.zeros((1, 1, 1, 1), np.int32)
            self.mask.allows(Pairs(zero, zero, zero, zero, zero, zero, self.sizes._replace(like=q)))

    def into(self, modifiers: ScoreModifiers, q: Array, part: Part) -> ScoreModifiers:
        """The modifiers of queries (B, H, T, D) at these positions, with the mask as a boolean array of all keys."""
        keys, xp, row, found = Segment(0, self.sizes.keys), namespace_of(q), 0, []
        for segment in part:
            own, plain = q[:, :, row : row + segment.length, :], ScoreModifiers(1.0)
            tile = self.modifiers(plain._replace(q_offset=modifiers.q_offset + segment.start), own, row, keys)
            array = tile.without_tiles(segment.length).mask
            shape = (*q.shape[:2], segment.length, keys.length)
            found.append(xp.zeros(shape, dtype=xp.bool) if array is None else xp.broadcast_to(array, shape))
            row += segment.length
        dense = xp.concat(found, axis=2)
        return modifiers._replace(mask=dense if modifiers.mask is None else modifiers.mask & dense)


def split_mask(mask: Mask | None) -> tuple[Mask | None, Mask | None]:
    """The part of a mask that is bands, lengths and arrays, and the part that is asked about pairs."""
    simple, asked = list[Mask](), list[Mask]()
    for part in _intersected(mask):
        constraints = to_constraints(part)
        (asked if constraints.others or constraints.documents else simple).append(part)
    return _joined(simple), _joined(asked)


def _intersected(mask: Mask | None) -> list[Mask]:
    if isinstance(mask, Intersection):
        return [part for joined in mask.masks for part in _intersected(joined)]
    return [] if mask is None else [mask]


def _joined(masks: list[Mask]) -> Mask | None:
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else Intersection(tuple(masks))


def elements(mask: Mask) -> list[Mask]:
    """The masks that a mask joins by &, | and ~."""
    if isinstance(mask, Complement):
        return elements(mask.mask)
    if isinstance(mask, Intersection | Union):
        return [element for part in mask.masks for element in elements(part)]
    return [mask]

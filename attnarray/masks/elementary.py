"""Masks of positions, lengths, documents and arrays, which the fused kernels know when they are joined by `&`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, to_numpy
from attnarray.masks.constraints import LARGEST_POSITION, Constraints, position, smaller
from attnarray.masks.geometry import Grid, Kinds, Pairs, Sizes, Tiles
from attnarray.masks.mask import Mask


@dataclass(frozen=True)
class Causal(Mask):
    """Key position <= query position + offset. With `offset=S - T` the last query sees the last key.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.Causal().to_dense(2, 3).tolist()
    [[True, False, False], [True, True, False]]
    """

    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", position("Causal.offset", self.offset))

    def constrain(self, constraints: Constraints) -> Constraints:
        return constraints._replace(right=smaller(constraints.right, self.offset))

    def allows(self, pairs: Pairs) -> Any:
        return pairs.k <= pairs.q + self.offset

    def kinds(self, grid: Grid) -> Kinds:
        return grid.k_first <= grid.q_last + self.offset, grid.k_last <= grid.q_first + self.offset

    def labels(self, tiles: Tiles) -> Any:
        return tiles.q_first - tiles.k_first


@dataclass(frozen=True)
class Window(Mask):
    """Query position - left <= key position <= query position + right; None is unbounded.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.Window(0, 1).to_dense(2, 3).tolist()
    [[True, True, False], [False, True, True]]
    """

    left: int | None
    right: int | None

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            bound = getattr(self, name)
            if bound is not None:
                meaning = f"the number of keys to the {name} of the query; None = unbounded"
                object.__setattr__(self, name, checks.whole(f"window.{name}", bound, 0, 2**63, meaning))

    def constrain(self, constraints: Constraints) -> Constraints:
        left, right = smaller(constraints.left, self.left), smaller(constraints.right, self.right)
        return constraints._replace(left=left, right=right)

    def allows(self, pairs: Pairs) -> Any:
        left, right = self._bounds()
        return (pairs.k >= pairs.q - left) & (pairs.k <= pairs.q + right)

    def kinds(self, grid: Grid) -> Kinds:
        left, right = self._bounds()
        some = (grid.k_last >= grid.q_first - left) & (grid.k_first <= grid.q_last + right)
        return some, (grid.k_first >= grid.q_last - left) & (grid.k_last <= grid.q_first + right)

    def labels(self, tiles: Tiles) -> Any:
        return tiles.q_first - tiles.k_first

    def _bounds(self) -> tuple[int, int]:
        """Both, where unbounded is farther than all positions are apart."""
        left, right = (LARGEST_POSITION if b is None else min(b, LARGEST_POSITION) for b in (self.left, self.right))
        return left, right


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Keys at positions >= length do not exist; `lengths` is one int or an integer array (*batch,).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.Padding(np.array([1, 3])).to_dense(1, 3).tolist()
    [[[[True, False, False]]], [[[True, True, True]]]]
    """

    lengths: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", checks.integers("Padding.lengths", self.lengths))

    def constrain(self, constraints: Constraints) -> Constraints:
        return constraints._replace(lengths=(*constraints.lengths, self.lengths))

    def allows(self, pairs: Pairs) -> Any:
        lengths = pairs.sizes.per_batch("Padding.lengths", self.lengths)
        return pairs.k < (lengths if isinstance(lengths, int) else lengths[pairs.b, 0, 0, 0])

    def kinds(self, grid: Grid) -> Kinds:
        lengths = grid.sizes.per_batch("Padding.lengths", self.lengths)
        return grid.k_first < lengths, grid.k_last < lengths

    def labels(self, tiles: Tiles) -> Any:
        lengths = tiles.grid.sizes.per_batch("Padding.lengths", self.lengths)
        return (lengths if isinstance(lengths, int) else lengths[tiles.b, 0, 0, 0]) - tiles.k_first

    def extent(self) -> tuple[tuple[int, ...], int]:
        return (() if isinstance(self.lengths, int) else tuple(self.lengths.shape)), 1


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Query and key belong to the same document; ids are integer arrays (*batch, T) and (*batch, S).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> ids = np.array([0, 0, 1])
    >>> aa.Documents(ids, ids).to_dense(3, 3).tolist()
    [[[True, True, False], [True, True, False], [False, False, True]]]
    """

    ids_q: Array
    ids_k: Array

    def __post_init__(self) -> None:
        names = ("ids_q", "ids_k")
        if len({checks.integer_dtype(f"Documents.{name}", getattr(self, name)) for name in names}) > 1:
            for name in names:  # some libraries do not compare different dtypes
                object.__setattr__(self, name, checks.integer(f"Documents.{name}", getattr(self, name)))
        checks.namespace(**{"Documents.ids_q": self.ids_q, "Documents.ids_k": self.ids_k})
        shapes = tuple(self.ids_q.shape), tuple(self.ids_k.shape)
        if () in shapes or len(shapes[0]) != len(shapes[1]) or shapes[0][:-1] != shapes[1][:-1]:
            raise ValueError(
                f"`Documents` has ids_q of shape {shapes[0]} and ids_k of shape {shapes[1]}, expected (*batch, T) and "
                "(*batch, S) with equal batch axes."
            )

    def same(self, heads: bool = True) -> Array:
        """Whether query and key are of the same document: (*batch, 1, T, S), or (*batch, T, S) without heads."""
        ids_q, ids_k = (self.ids_q[..., None, :], self.ids_k[..., None, :]) if heads else (self.ids_q, self.ids_k)
        return ids_q[..., :, None] == ids_k[..., None, :]

    def constrain(self, constraints: Constraints) -> Constraints:
        return constraints._replace(documents=(*constraints.documents, self))

    def allows(self, pairs: Pairs) -> Any:
        ids_q, ids_k = self._by_batch(pairs.sizes)
        return ids_q[pairs.b, 0, pairs.i, 0] == ids_k[pairs.b, 0, 0, pairs.j]

    def kinds(self, grid: Grid) -> Kinds:
        ids_q, ids_k = self._by_batch(grid.sizes)
        q_least, q_most = (end.reduceat(ids_q, grid.i_first, axis=2) for end in (np.minimum, np.maximum))
        k_least, k_most = (end.reduceat(ids_k, grid.j_first, axis=3) for end in (np.minimum, np.maximum))
        same = (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
        return (q_least <= k_most) & (k_least <= q_most), same

    def extent(self) -> tuple[tuple[int, ...], int]:
        return tuple(self.ids_q.shape[:-1]), 1

    def _by_batch(self, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
        """Both as NumPy arrays (B, 1, T, 1) and (B, 1, 1, S)."""
        checks.broadcasts("Documents.ids_q", self.ids_q, (*sizes.batch, sizes.queries), "(*batch, T)")
        checks.broadcasts("Documents.ids_k", self.ids_k, (*sizes.batch, sizes.keys), "(*batch, S)")
        ids_q = np.broadcast_to(to_numpy(self.ids_q), (*sizes.batch, sizes.queries))
        ids_k = np.broadcast_to(to_numpy(self.ids_k), (*sizes.batch, sizes.keys))
        return ids_q.reshape(-1, 1, sizes.queries, 1), ids_k.reshape(-1, 1, 1, sizes.keys)


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any boolean array that broadcasts to (*batch, H, T, S); True = attend.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.Dense(np.eye(2, dtype=bool)).to_dense(2, 2).tolist()
    [[True, False], [False, True]]
    """

    array: Array

    def __post_init__(self) -> None:
        checks.boolean("Dense.array", self.array)

    def constrain(self, constraints: Constraints) -> Constraints:
        return constraints._replace(dense=(*constraints.dense, self.array))

    def allows(self, pairs: Pairs) -> Any:
        array = pairs.sizes.per_pair("Dense.array", self.array, pairs.sizes.queries, pairs.sizes.keys)
        batch, heads = (n > 1 for n in array.shape[:2])
        return array[pairs.b if batch else 0, pairs.h if heads else 0, pairs.i, pairs.j]

    def kinds(self, grid: Grid) -> Kinds:
        array = grid.sizes.per_pair("Dense.array", self.array, grid.sizes.queries, grid.sizes.keys)
        some, every = (
            end.reduceat(end.reduceat(array, grid.j_first, axis=3), grid.i_first, axis=2)
            for end in (np.logical_or, np.logical_and)
        )
        return some, every

    def extent(self) -> tuple[tuple[int, ...], int]:
        shape = (1,) * (3 - self.array.ndim) + tuple(self.array.shape)
        return shape[:-3], shape[-3]

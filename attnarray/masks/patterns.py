"""Masks by rules of positions: prefixes, global tokens, strides, blocks, trees, and any function of the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_name, namespace_of, to_numpy
from attnarray.masks.constraints import LARGEST_POSITION
from attnarray.masks.geometry import Grid, Kinds, Pairs, Tiles
from attnarray.masks.mask import Mask


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """The first keys, up to `length`, one int or an integer array (*batch,): `Causal() | Prefix(n)` is a prefix LM.

    Examples
    --------
    >>> import attnarray as aa
    >>> (aa.Causal() | aa.Prefix(2)).to_dense(3, 3).tolist()
    [[True, True, False], [True, True, False], [True, True, True]]
    """

    length: Any

    def __post_init__(self) -> None:
        length = checks.integers("Prefix.length", self.length)
        if isinstance(length, int):
            checks.whole("Prefix.length", length, 0, LARGEST_POSITION, "the number of keys that every query sees")
        object.__setattr__(self, "length", length)

    def allows(self, pairs: Pairs) -> Any:
        length = pairs.sizes.per_batch("Prefix.length", self.length)
        return pairs.k < (length if isinstance(length, int) else length[pairs.b, 0, 0, 0])

    def kinds(self, grid: Grid) -> Kinds:
        length = grid.sizes.per_batch("Prefix.length", self.length)
        return grid.k_first < length, grid.k_last < length

    def labels(self, tiles: Tiles) -> Any:
        length = tiles.grid.sizes.per_batch("Prefix.length", self.length)
        return (length if isinstance(length, int) else length[tiles.b, 0, 0, 0]) - tiles.k_first

    def extent(self) -> tuple[tuple[int, ...], int]:
        return (() if isinstance(self.length, int) else tuple(self.length.shape)), 1


@dataclass(frozen=True, eq=False)
class Global(Mask):
    """Global tokens attend to all keys, and all queries to them: the first ones, or those at positions (N,).

    `Window(256, 256) | Global(16)` is Longformer's pattern.

    References
    ----------
    Beltagy et al., "Longformer: the long-document transformer", 2020, arXiv:2004.05150.

    Examples
    --------
    >>> import attnarray as aa
    >>> (aa.Window(0, 0) | aa.Global(1)).to_dense(3, 3).tolist()
    [[True, True, True], [True, True, False], [True, False, True]]
    """

    tokens: Any

    def __post_init__(self) -> None:
        tokens = checks.integers("Global.tokens", self.tokens)
        if isinstance(tokens, int):
            checks.whole("Global.tokens", tokens, 0, LARGEST_POSITION, "how many of the first tokens are global")
        elif tokens.ndim != 1:
            given = checks.shown(tokens)
            raise ValueError(f"`Global.tokens` is {given}, expected an integer or the positions (N,) of global tokens.")
        else:
            tokens = np.unique(to_numpy(tokens))
        object.__setattr__(self, "tokens", tokens)

    def allows(self, pairs: Pairs) -> Any:
        return self._has(pairs.q) | self._has(pairs.k)

    def kinds(self, grid: Grid) -> Kinds:
        queries, keys = self._count(grid.q_first, grid.q_last), self._count(grid.k_first, grid.k_last)
        every = (queries == grid.q_last - grid.q_first + 1) | (keys == grid.k_last - grid.k_first + 1)
        return (queries > 0) | (keys > 0), every

    def labels(self, tiles: Tiles) -> Any:
        if not isinstance(self.tokens, int):
            return None
        q, k = (np.clip(self.tokens - first, 0, tiles.size) for first in (tiles.q_first, tiles.k_first))
        return q * (tiles.size + 1) + k

    def _has(self, positions: Any) -> Any:
        if isinstance(self.tokens, int):
            return positions < self.tokens
        return np.isin(positions, self.tokens)

    def _count(self, first: Any, last: Any) -> Any:
        """How many of the positions from first to last are global."""
        if isinstance(self.tokens, int):
            return np.maximum(np.minimum(last + 1, self.tokens) - first, 0)
        return np.searchsorted(self.tokens, last, "right") - np.searchsorted(self.tokens, first, "left")


@dataclass(frozen=True)
class Strided(Mask):
    """Keys whose distance from the query is a multiple of `stride`.

    `Causal() & (Window(n, 0) | Strided(n))` is the strided pattern of Sparse Transformers.

    References
    ----------
    Child et al., "Generating long sequences with sparse transformers", 2019, arXiv:1904.10509.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.Strided(2).to_dense(2, 4).tolist()
    [[True, False, True, False], [False, True, False, True]]
    """

    stride: int

    def __post_init__(self) -> None:
        stride = checks.whole("Strided.stride", self.stride, 1, LARGEST_POSITION, "a distance of positions")
        object.__setattr__(self, "stride", stride)

    def allows(self, pairs: Pairs) -> Any:
        return (pairs.q - pairs.k) % self.stride == 0

    def kinds(self, grid: Grid) -> Kinds:
        least, most = grid.k_first - grid.q_last, grid.k_last - grid.q_first
        return most // self.stride > (least - 1) // self.stride, np.full((1, 1, 1, 1), self.stride == 1)

    def labels(self, tiles: Tiles) -> Any:
        return (tiles.q_first - tiles.k_first) % self.stride


@dataclass(frozen=True, eq=False)
class Tree(Mask):
    """Positions from `start` on are nodes of a tree, which see their ancestors, themselves and all keys before `start`.

    Position start + n is node n, and `parents[n]` its parent, a smaller number, or -1 for what follows the context
    directly; earlier queries see the keys up to themselves. So one call verifies several drafts of a continuation.

    Parameters
    ----------
    parents : (N,) or (*batch, N) integers
    start : int
        The number of keys before the tree.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.Tree(np.array([-1, 0, 0]), start=1).to_dense(3, 4, q_offset=1).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    """

    parents: Any
    start: int = 0

    def __post_init__(self) -> None:
        parents = checks.integers("Tree.parents", self.parents)
        if isinstance(parents, int) or parents.ndim < 1:
            given = checks.shown(self.parents)
            raise ValueError(f"`Tree.parents` is {given}, expected the parents (N,) or (*batch, N) of the nodes.")
        parents = to_numpy(parents)
        nodes = np.arange(parents.shape[-1])
        if parents.size and bool(((parents < -1) | (parents >= nodes)).any()):
            raise ValueError(
                "`Tree.parents` has a parent that does not come before its node; number parents before their children, "
                "and give -1 for a node without parent."
            )
        object.__setattr__(self, "parents", parents)
        start = checks.whole("Tree.start", self.start, 0, LARGEST_POSITION, "the number of keys before the tree")
        object.__setattr__(self, "start", start)

    def allows(self, pairs: Pairs) -> Any:
        above, nodes = self._ancestors(pairs.sizes.batch), self.parents.shape[-1]
        q, k = pairs.q - self.start, pairs.k - self.start
        inside = (q >= 0) & (k >= 0) & (q < nodes) & (k < nodes)
        if nodes:
            row, column = np.clip(q, 0, nodes - 1), np.clip(k, 0, nodes - 1)
            inside = inside & above[pairs.b if len(above) > 1 else 0, row, column]
        return inside | ((k < 0) & ((q >= 0) | (k <= q)))

    def kinds(self, grid: Grid) -> Kinds:
        before = (grid.q_first >= self.start) | (grid.k_last <= grid.q_first)
        return grid.k_first <= grid.q_last, (grid.k_last < self.start) & before

    def extent(self) -> tuple[tuple[int, ...], int]:
        return self.parents.shape[:-1], 1

    def _ancestors(self, batch: tuple[int, ...]) -> np.ndarray:
        """Whether a node (column) is an ancestor of another (row), or itself: (B|1, N, N)."""
        lead, nodes = self.parents.shape[:-1], self.parents.shape[-1]
        if lead not in ((), batch):
            raise ValueError(f"`Tree.parents` has batch {lead}, expected {batch} or none: one tree for all.")
        parents = self.parents.reshape(-1, nodes)
        above = np.broadcast_to(np.eye(nodes, dtype=bool), (len(parents), nodes, nodes)).copy()
        for tree, own in zip(above, parents, strict=True):
            for n, parent in enumerate(own):
                if parent >= 0:
                    tree[n] |= tree[parent]
        return above


@dataclass(frozen=True, eq=False)
class Predicate(Mask):
    """What a function of batch, head and positions allows: `allowed(b, h, q_idx, kv_idx)`, in array code.

    It is called with integer arrays of the library of the queries, which broadcast together, and returns a boolean
    array of their joint shape, or with axes of size 1 where it depends on fewer. Every pair is asked about once.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.Predicate(lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 2 == 0).to_dense(2, 3).tolist()
    [[True, False, True], [False, True, False]]
    """

    allowed: Callable[..., Any]

    def __post_init__(self) -> None:
        if not callable(self.allowed):
            given = checks.shown(self.allowed)
            raise TypeError(f"`Predicate.allowed` is {given}, expected a function of (b, h, q_idx, kv_idx).")

    def allows(self, pairs: Pairs) -> Any:
        indices = pairs.b, pairs.h, pairs.q, pairs.k
        if pairs.sizes.like is not None:
            xp, device = namespace_of(pairs.sizes.like), device_of(pairs.sizes.like)
            indices = tuple(xp.asarray(np.asarray(index), device=device) for index in indices)
        shape = np.broadcast_shapes(*(index.shape for index in indices))
        try:
            found = self.allowed(*indices)
        except Exception as error:
            error.add_note("It was raised by the function of an attnarray.Predicate.")
            raise
        if not checks.is_array(found) or dtype_name(found.dtype) != "bool":
            raise TypeError(f"`Predicate.allowed` returned {checks.shown(found)}, expected a boolean array.")
        sizes = tuple(found.shape)
        fits = len(sizes) <= len(shape) and all(n in (1, m) for n, m in zip(sizes[::-1], shape[::-1], strict=False))
        if not fits:
            given = checks.shown(found)
            raise ValueError(f"`Predicate.allowed` returned {given}, expected one that broadcasts to {shape}.")
        return to_numpy(found)


@dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """A block of `size` queries attends to blocks of keys by a table.

    Parameters
    ----------
    table : (Q, K), (H, Q, K) or (*batch, H, Q, K) boolean
        Block n holds the positions from n size to (n + 1) size - 1; there must be an entry for every position.
    size : int or (int, int)
        Positions in a block, of queries and of keys.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.Blocks(np.array([[True, False], [True, True]]), 2).to_dense(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    table: Array
    size: Any

    def __post_init__(self) -> None:
        checks.boolean("Blocks.table", self.table)
        if self.table.ndim < 2:
            given = checks.shown(self.table)
            raise ValueError(f"`Blocks.table` is {given}, expected (Q, K), (H, Q, K) or (*batch, H, Q, K).")
        sizes = self.size if isinstance(self.size, tuple | list) else (self.size, self.size)
        if len(sizes) != 2:
            raise ValueError(f"`Blocks.size` is {checks.shown(self.size)}, expected an integer, or one for each side.")
        sizes = tuple(checks.whole("Blocks.size", n, 1, LARGEST_POSITION, "the positions of a block") for n in sizes)
        object.__setattr__(self, "size", sizes)

    def allows(self, pairs: Pairs) -> Any:
        table = pairs.sizes.per_pair("Blocks.table", self.table, *self.table.shape[-2:])
        rows, columns = pairs.q // self.size[0], pairs.k // self.size[1]
        self._check_range(rows, columns)
        return pick_blocks(table, pairs, rows, columns)

    def kinds(self, grid: Grid) -> Kinds:
        table = grid.sizes.per_pair("Blocks.table", self.table, *self.table.shape[-2:])
        ends = grid.q_first // self.size[0], grid.q_last // self.size[0], grid.k_first // self.size[1]
        last_column = grid.k_last // self.size[1]
        for rows, columns in ((ends[0], ends[2]), (ends[1], last_column)):
            self._check_range(rows, columns)
        return block_kinds(table, *ends, last_column)

    def extent(self) -> tuple[tuple[int, ...], int]:
        shape = (1,) * (3 - self.table.ndim) + tuple(self.table.shape)
        return shape[:-3], shape[-3]

    def _check_range(self, rows: Any, columns: Any) -> None:
        for axis, found, size in ((-2, rows, self.size[0]), (-1, columns, self.size[1])):
            count, name = self.table.shape[axis], "queries" if axis == -2 else "keys"
            if found.size and not 0 <= found.min() <= found.max() < count:
                raise ValueError(
                    f"`Blocks.table` has {count} blocks of {size} {name}, for positions from 0 to {count * size - 1}, "
                    f"but there are {name} in the blocks {int(found.min())} to {int(found.max())}."
                )


def pick_blocks(table: np.ndarray, pairs: Pairs, rows: Any, columns: Any) -> Any:
    """The entries of a table (B|1, H|1, Q, K) for pairs in these blocks."""
    batch, heads = (n > 1 for n in table.shape[:2])
    return table[pairs.b if batch else 0, pairs.h if heads else 0, rows, columns]


def block_kinds(table: np.ndarray, row: Any, last_row: Any, column: Any, last_column: Any) -> Kinds:
    """The kinds of tiles that reach over the blocks from `row` to `last_row` and from `column` to `last_column`."""
    sums = np.zeros((*table.shape[:2], table.shape[2] + 1, table.shape[3] + 1), np.int64)
    np.cumsum(np.cumsum(table, axis=2, dtype=np.int64), axis=3, out=sums[:, :, 1:, 1:])
    b, h = np.arange(table.shape[0]).reshape(-1, 1, 1, 1), np.arange(table.shape[1]).reshape(1, -1, 1, 1)
    past_row, past_column = last_row + 1, last_column + 1
    count = sums[b, h, past_row, past_column] - sums[b, h, row, past_column]
    count = count - sums[b, h, past_row, column] + sums[b, h, row, column]
    return count > 0, count == (past_row - row) * (past_column - column)

"""Masks as values: which key each query may attend to. `a & b` intersects.

Queries and keys stand at positions: query i at i + q_offset, key j at j.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of

TileKind = Literal["full", "partial", "empty"]
# Sums of two positions fit into 32 bits, the widest integers that every library has.
LARGEST_POSITION = 2**30
POSITION = "a position, or a distance of positions"


class Mask:
    """Base of all masks; `a & b` is the mask that allows what both allow.

    Examples
    --------
    >>> import attnarray as aa
    >>> both = aa.Causal() & aa.Padding(2)
    >>> aa.materialize(both, 3, 3).tolist()
    [[True, False, False], [True, True, False], [True, True, False]]
    """

    __array_ufunc__ = None  # so that NumPy arrays leave `array & mask` to the mask

    def __and__(self, other: Mask) -> Intersection:
        if not isinstance(other, Mask):
            given = checks.shown(other)
            raise TypeError(f"`&` joins masks, but got {given}. Wrap a boolean array first: attnarray.Dense(array).")
        return Intersection((*_parts(self), *_parts(other)))

    __rand__ = __and__


@dataclass(frozen=True)
class Causal(Mask):
    """Key position <= query position + offset. With `offset=S - T` the last query sees the last key.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.materialize(aa.Causal(), 2, 3).tolist()
    [[True, False, False], [True, True, False]]
    """

    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", position("Causal.offset", self.offset))


@dataclass(frozen=True)
class Window(Mask):
    """Query position - left <= key position <= query position + right; None is unbounded.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.materialize(aa.Window(0, 1), 2, 3).tolist()
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


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Keys at positions >= length do not exist; `lengths` is one int or an integer array (*batch,).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.materialize(aa.Padding(np.array([1, 3])), 1, 3).tolist()
    [[[[True, False, False]]], [[[True, True, True]]]]
    """

    lengths: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", checks.integers("Padding.lengths", self.lengths))


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Query and key belong to the same document; ids are integer arrays (*batch, T) and (*batch, S).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> ids = np.array([0, 0, 1])
    >>> aa.materialize(aa.Documents(ids, ids), 3, 3).tolist()
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
        """Whether query and key are of one document: (*batch, 1, T, S), or (*batch, T, S) where there are no heads."""
        ids_q, ids_k = (self.ids_q[..., None, :], self.ids_k[..., None, :]) if heads else (self.ids_q, self.ids_k)
        return ids_q[..., :, None] == ids_k[..., None, :]


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any boolean array that broadcasts to (*batch, H, T, S); True = attend.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.materialize(aa.Dense(np.eye(2, dtype=bool)), 2, 2).tolist()
    [[True, False], [False, True]]
    """

    array: Array

    def __post_init__(self) -> None:
        checks.boolean("Dense.array", self.array)


@dataclass(frozen=True, eq=False)
class Intersection(Mask):
    """What all `masks` allow; made by `a & b`.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.materialize(aa.Causal() & aa.Window(0, None), 2, 2).tolist()
    [[True, False], [False, True]]
    """

    masks: tuple[Mask, ...]


class Constraints(NamedTuple):
    """Any masks as a band of positions, lengths, documents and dense boolean arrays, all of which must allow a key."""

    left: int | None = None
    right: int | None = None
    lengths: tuple[Any, ...] = ()
    documents: tuple[Documents, ...] = ()
    dense: tuple[Array, ...] = ()


def constraints_of(*masks: Mask) -> Constraints:
    """Take masks apart. The band is position_q - left <= position_k <= position_q + right."""
    left: int | None = None
    right: int | None = None
    lengths: list[Any] = []
    documents: list[Documents] = []
    dense: list[Array] = []
    for part in (part for mask in masks for part in _parts(mask)):
        if isinstance(part, Causal):
            right = smaller(right, part.offset)
        elif isinstance(part, Window):
            left, right = smaller(left, part.left), smaller(right, part.right)
        elif isinstance(part, Padding):
            lengths.append(part.lengths)
        elif isinstance(part, Documents):
            documents.append(part)
        elif isinstance(part, Dense):
            dense.append(part.array)
        else:
            known = "Causal, Window, Padding, Documents, Dense or some of them joined by &"
            raise TypeError(f"`mask` is {checks.shown(part)}, expected {known}.")
    return Constraints(left, right, tuple(lengths), tuple(documents), tuple(dense))


def smaller(a: int | None, b: int | None) -> int | None:
    """The tighter of two bounds, where None, like all that is farther than any position, is unbounded."""
    tighter = b if a is None else a if b is None else min(a, b)
    return None if tighter is not None and tighter >= LARGEST_POSITION else tighter


def position(name: str, value: Any) -> int:
    """Check for a position, or an offset between positions."""
    return checks.whole(name, value, -LARGEST_POSITION, LARGEST_POSITION, POSITION)


def band(
    left: int | None, right: int | None, queries: int, keys: int, q_offset: int | Array, like: Array
) -> Array | None:
    """The boolean band (..., T, S), or None where it allows everything; `q_offset` is an int or (..., 1, 1)."""
    if left is None and right is None:
        return None
    xp = namespace_of(like)
    place = {"device": device_of(like)}
    i = xp.arange(queries, **place)[:, None] + q_offset  # (..., T, 1)
    j = xp.arange(keys, **place)[None, :]  # (1, S)
    bounds = []
    if left is not None:
        bounds.append(j >= i - left)
    if right is not None:
        bounds.append(j <= i + right)
    return reduce(operator.and_, bounds)


def materialize(mask: Mask, queries: int, keys: int, *, q_offset: int = 0) -> Array:
    """The boolean array of a mask, broadcastable to (*batch, H, T, S).

    Parameters
    ----------
    mask : Mask
    queries, keys : int
        T and S.
    q_offset : int
        Query i stands at position i + q_offset.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.materialize(aa.Causal(), 1, 3, q_offset=2).tolist()
    [[True, True, True]]
    """
    parts = constraints_of(mask)
    queries = checks.whole("queries", queries, 0, LARGEST_POSITION, "the number of queries")
    keys = checks.whole("keys", keys, 0, LARGEST_POSITION, "the number of keys")
    dense = [*parts.dense, *(documents.same() for documents in parts.documents)]
    for array in dense:
        checks.broadcasts("mask", array, (*array.shape[:-2], queries, keys), "(..., T, S)")
    like = next((a for a in (*dense, *parts.lengths) if checks.is_array(a)), np.zeros(()))
    xp = namespace_of(like)
    inside = band(parts.left, parts.right, queries, keys, position("q_offset", q_offset), like)
    every = xp.ones((queries, keys), dtype=xp.bool, device=device_of(like))
    existing = [within(checks.beside("Padding.lengths", n, "mask", like), keys, like) for n in parts.lengths]
    return reduce(operator.and_, [*existing, *dense], every if inside is None else inside)


def within(lengths: int | Array, keys: int, like: Array) -> Array:
    """Keys below the length: (S,) for one int, (*batch, 1, 1, S) for an array (*batch,)."""
    j = namespace_of(like).arange(keys, device=device_of(like))
    return j < (lengths if isinstance(lengths, int) else lengths[..., None, None, None])


def tile_kind(mask: Mask, queries: tuple[int, int], keys: tuple[int, int], *, q_offset: int = 0) -> TileKind:
    """Whether a tile of query rows [start, stop) and keys [start, stop) is allowed wholly, in part or not at all.

    A Python-level answer over all batches and heads at once: "partial" whenever they differ. For code that goes tile by
    tile: it may skip empty tiles, and needs no mask in full ones. Kernels have their own bounds of queries and keys.

    Examples
    --------
    >>> import attnarray as aa
    >>> [aa.tile_kind(aa.Causal(), (4, 8), keys) for keys in [(0, 4), (4, 8), (8, 12)]]
    ['full', 'partial', 'empty']
    """
    queries, keys = _tile("queries", queries), _tile("keys", keys)
    q_offset = position("q_offset", q_offset)
    kinds = {_tile_kind_of(constraints_of(part), queries, keys, q_offset) for part in _parts(mask)}
    return "empty" if "empty" in kinds else "partial" if "partial" in kinds else "full"


def _tile(name: str, given: Any) -> tuple[int, int]:
    numbers = [checks.integral(n) for n in given] if isinstance(given, tuple) else []
    start, stop = numbers if len(numbers) == 2 else (None, None)
    if start is None or stop is None or not 0 <= start < stop:
        raise ValueError(f"`{name}` is {checks.shown(given)}, expected (start, stop) with 0 <= start < stop.")
    return start, stop


def _tile_kind_of(part: Constraints, queries: tuple[int, int], keys: tuple[int, int], q_offset: int) -> TileKind:
    if part.lengths:
        lengths = part.lengths[0]
        xp = np if isinstance(lengths, int) else namespace_of(lengths)
        shortest, longest = int(xp.min(lengths)), int(xp.max(lengths))
        return "full" if keys[1] <= shortest else "empty" if keys[0] >= longest else "partial"
    if part.dense or part.documents:
        tile = part.dense[0] if part.dense else part.documents[0].same()
        xp = namespace_of(tile)
        if tile.ndim and tile.shape[-1] != 1:  # an axis of size 1 stands for all
            tile = tile[..., slice(*keys)]
        if tile.ndim > 1 and tile.shape[-2] != 1:
            tile = tile[..., slice(*queries), :]
        return "full" if bool(xp.all(tile)) else "partial" if bool(xp.any(tile)) else "empty"
    first, last = queries[0] + q_offset, queries[1] - 1 + q_offset
    return _band_kind(part.left, part.right, (first, last), (keys[0], keys[1] - 1))


def _band_kind(left: int | None, right: int | None, i: tuple[int, int], j: tuple[int, int]) -> TileKind:
    beyond = (right is not None and j[0] > i[1] + right) or (left is not None and j[1] < i[0] - left)
    inside = (right is None or j[1] <= i[0] + right) and (left is None or j[0] >= i[1] - left)
    return "empty" if beyond else "full" if inside else "partial"


def _parts(mask: Mask) -> tuple[Mask, ...]:
    return tuple(p for m in mask.masks for p in _parts(m)) if isinstance(mask, Intersection) else (mask,)

"""Masks as values: which keys each query may attend to; `a & b` is their intersection.

Query i has position i + q_offset, key j position j.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of

# Sums of two positions fit into 32 bits, the widest integers that every library has.
LARGEST_POSITION = 2**30
POSITION = "a position, or a distance of positions"


class Mask:
    """Base of all masks; `a & b` is the mask that allows what both allow.

    Examples
    --------
    >>> import attnarray as aa
    >>> both = aa.Causal() & aa.Padding(2)
    >>> both.to_dense(3, 3).tolist()
    [[True, False, False], [True, True, False], [True, True, False]]
    """

    __array_ufunc__ = None  # so that NumPy arrays leave `array & mask` to the mask

    def __and__(self, other: Mask) -> Intersection:
        if not isinstance(other, Mask):
            given = checks.shown(other)
            raise TypeError(f"`&` joins masks, but got {given}. Wrap a boolean array first: attnarray.Dense(array).")
        return Intersection((*_parts(self), *_parts(other)))

    __rand__ = __and__

    def to_dense(self, queries: int, keys: int, *, q_offset: int = 0) -> Any:
        """Return the mask as a boolean array, broadcastable to (*batch, H, T, S).

        Parameters
        ----------
        queries, keys : int
            T and S.
        q_offset : int
            Query i has position i + q_offset.

        Examples
        --------
        >>> import attnarray as aa
        >>> aa.Causal().to_dense(1, 3, q_offset=2).tolist()
        [[True, True, True]]
        """
        parts = to_constraints(self)
        queries = checks.whole("queries", queries, 0, LARGEST_POSITION, "the number of queries")
        keys = checks.whole("keys", keys, 0, LARGEST_POSITION, "the number of keys")
        dense = [*parts.dense, *(documents.same() for documents in parts.documents)]
        for array in dense:
            checks.broadcasts("mask", array, (*array.shape[:-2], queries, keys), "(..., T, S)")
        like = next((a for a in (*dense, *parts.lengths) if checks.is_array(a)), np.zeros(()))
        xp = namespace_of(like)
        inside = band(parts.left, parts.right, queries, keys, position("q_offset", q_offset), like)
        every = xp.ones((queries, keys), dtype=xp.bool, device=device_of(like))
        existing = [within(checks.same_device("Padding.lengths", n, "mask", like), keys, like) for n in parts.lengths]
        return reduce(operator.and_, [*existing, *dense], every if inside is None else inside)


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


@dataclass(frozen=True, eq=False)
class Intersection(Mask):
    """What all `masks` allow; made by `a & b`.

    Examples
    --------
    >>> import attnarray as aa
    >>> (aa.Causal() & aa.Window(0, None)).to_dense(2, 2).tolist()
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


def to_constraints(*masks: Mask) -> Constraints:
    """All masks together as one `Constraints`. The band is position_q - left <= position_k <= position_q + right."""
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
    """The tighter of two bounds, where None, or anything beyond all positions, is unbounded."""
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
    kind = {"device": device_of(like)}
    i = xp.arange(queries, **kind)[:, None] + q_offset  # (..., T, 1)
    j = xp.arange(keys, **kind)[None, :]  # (1, S)
    bounds = []
    if left is not None:
        bounds.append(j >= i - left)
    if right is not None:
        bounds.append(j <= i + right)
    return reduce(operator.and_, bounds)


def within(lengths: int | Array, keys: int, like: Array) -> Array:
    """Keys below the length: (S,) for one int, (*batch, 1, 1, S) for an array (*batch,)."""
    j = namespace_of(like).arange(keys, device=device_of(like))
    return j < (lengths if isinstance(lengths, int) else lengths[..., None, None, None])


def _parts(mask: Mask) -> tuple[Mask, ...]:
    return tuple(p for m in mask.masks for p in _parts(m)) if isinstance(mask, Intersection) else (mask,)

"""The base of all masks, and `a & b`, `a | b` and `~a`."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from attnarray import checks
from attnarray.backend import device_of, namespace_of
from attnarray.masks.constraints import LARGEST_POSITION, Constraints, band, position, within
from attnarray.masks.geometry import Grid, Kinds, Pairs, Sizes, Tiles


class Mask:
    """Base of all masks: `a & b` allows what both allow, `a | b` what either does, `~a` what a does not.

    A mask of your own is a subclass with a method `allows`; `kinds` and `labels` make it fast.

    Examples
    --------
    >>> import attnarray as aa
    >>> both = aa.Causal() & aa.Padding(2)
    >>> both.to_dense(3, 3).tolist()
    [[True, False, False], [True, True, False], [True, True, False]]
    >>> (aa.Causal() | ~aa.Padding(2)).to_dense(2, 3).tolist()
    [[True, False, True], [True, True, True]]
    """

    __array_ufunc__ = None  # so that NumPy arrays leave `array & mask` to the mask

    def __and__(self, other: Mask) -> Intersection:
        _join("&", other)
        return Intersection((*self._parts(Intersection), *other._parts(Intersection)))

    def __or__(self, other: Mask) -> Union:
        _join("|", other)
        return Union((*self._parts(Union), *other._parts(Union)))

    def __invert__(self) -> Mask:
        return self.mask if isinstance(self, Complement) else Complement(self)

    __rand__, __ror__ = __and__, __or__

    def _parts(self, kind: type[Mask]) -> tuple[Mask, ...]:
        return getattr(self, "masks", ()) if isinstance(self, kind) else (self,)

    def constrain(self, constraints: Constraints) -> Constraints:
        """The constraints with this mask among them."""
        if type(self).allows is Mask.allows:
            raise _unknown(self)
        return constraints._replace(others=(*constraints.others, self))

    def allows(self, pairs: Pairs) -> Any:
        """Whether each query may attend to each key: booleans that broadcast to the pairs."""
        raise _unknown(self)

    def kinds(self, grid: Grid) -> Kinds:
        """Two boolean arrays over the tiles (B|1, H|1, Q|1, K|1): may something be allowed, and is surely all of it.

        Without a rule, all tiles may be anything, and every pair is asked about: those of one batch and head where
        `allows` does not depend on them, as one pair of two batches and heads shows.
        """
        first = [axis.reshape(-1)[:1].reshape(1, 1, 1, 1) for axis in (grid.q_first, grid.k_first)]
        b, h, zero = np.zeros((2, 1, 1, 1), np.int32), np.zeros((1, 2, 1, 1), np.int32), np.zeros_like(first[0])
        found = np.shape(self.allows(Pairs(b, h, zero, zero, first[0], first[1], grid.sizes)))
        batch, heads = ((1,) * (4 - len(found)) + found)[:2]
        batches = math.prod(grid.sizes.batch) if batch > 1 else 1
        some = np.ones((batches, grid.sizes.heads if heads > 1 else 1, 1, 1), bool)
        return some, ~some

    def labels(self, tiles: Tiles) -> Any:
        """Integers (N,), equal only for tiles with the same bits; None where it is not known which are."""
        return None

    def extent(self) -> tuple[tuple[int, ...], int]:
        """The batch and the number of heads of its arrays."""
        return (), 1

    def without_rule(self) -> tuple[str, ...]:
        """The names of the masks in this one that have no rule for tiles, so that every pair is asked about."""
        return (type(self).__name__,) if type(self).kinds is Mask.kinds else ()

    def to_dense(
        self, queries: int, keys: int, *, q_offset: int = 0, batch: tuple[int, ...] = (), heads: int = 1
    ) -> Any:
        """Return the mask as a boolean array, broadcastable to (*batch, H, T, S).

        Parameters
        ----------
        queries, keys : int
            T and S.
        q_offset : int
            Query i has position i + q_offset.
        batch : tuple of int
        heads : int
            For a mask that depends on batch or head by a rule; those of its arrays are known.

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
        first = position("q_offset", q_offset)
        inside = band(parts.left, parts.right, queries, keys, first, like)
        every = xp.ones((queries, keys), dtype=xp.bool, device=device_of(like))
        existing = [within(checks.same_device("Padding.lengths", n, "mask", like), keys, like) for n in parts.lengths]
        others = [_every_pair(mask, queries, keys, first, batch, heads) for mask in parts.others]
        ruled = [xp.asarray(other, device=device_of(like)) for other in others]
        return reduce(operator.and_, [*existing, *dense, *ruled], every if inside is None else inside)


def _unknown(mask: Mask) -> TypeError:
    known = "Causal, Window, Padding, Documents, Dense, another mask of attnarray, or some joined by &, | and ~"
    return TypeError(f"`mask` is {checks.shown(mask)}, expected {known}.")


def _join(operator_name: str, other: Any) -> None:
    if not isinstance(other, Mask):
        given = checks.shown(other)
        hint = "Wrap a boolean array first: attnarray.Dense(array)."
        raise TypeError(f"`{operator_name}` joins masks, but got {given}. {hint}")


def _every_pair(
    mask: Mask, queries: int, keys: int, q_offset: int, batch: tuple[int, ...], heads: int
) -> np.ndarray:  # fmt: skip
    """What a mask allows, (T, S), (H, T, S) or (*batch, H, T, S)."""
    own_batch, own_heads = mask.extent()
    batch, heads = np.broadcast_shapes(own_batch, batch), max(own_heads, heads)
    sizes = Sizes(batch, heads, queries, keys)
    b, h, i, j = (
        np.arange(n, dtype=np.int32).reshape([-1 if axis == a else 1 for a in range(4)])
        for axis, n in enumerate((math.prod(batch), heads, queries, keys))
    )
    allowed = np.asarray(mask.allows(Pairs(b, h, i, j, i + q_offset, j, sizes)))
    allowed = np.broadcast_to(allowed, (*allowed.shape[:-2], queries, keys))
    if not batch and allowed.shape[:-2] in ((), (1,), (1, 1)):
        return allowed.reshape(queries, keys)
    lead = (1,) * (4 - allowed.ndim) + allowed.shape
    return np.broadcast_to(allowed, (math.prod(batch), *lead[1:])).reshape(*batch, *lead[1:])


@dataclass(frozen=True, eq=False)
class _Joined(Mask):
    """What `join` makes of `masks`, pair by pair."""

    join: ClassVar[Any]  # operator.and_ or operator.or_

    masks: tuple[Mask, ...]

    def allows(self, pairs: Pairs) -> Any:
        return reduce(self.join, (mask.allows(pairs) for mask in self.masks))

    def kinds(self, grid: Grid) -> Kinds:
        some, every = zip(*(mask.kinds(grid) for mask in self.masks), strict=True)
        return reduce(self.join, some), reduce(self.join, every)

    def labels(self, tiles: Tiles) -> Any:
        """Equal only for tiles that are equal for every mask; 0 and 1 are those that are empty and full for it."""
        joint = np.zeros(len(tiles.b), np.int64)
        for mask in self.masks:
            some, every = (tiles.pick(kind) for kind in mask.kinds(tiles.grid))
            own = mask.labels(tiles)
            own = np.arange(len(joint)) if own is None else np.unique(own, return_inverse=True)[1].reshape(-1)
            own = np.where(every, 1, np.where(some, 2 + own, 0))
            joint = np.unique(joint * (own.max(initial=0) + 1) + own, return_inverse=True)[1].reshape(-1)
        return joint

    def extent(self) -> tuple[tuple[int, ...], int]:
        batches, heads = zip(*(mask.extent() for mask in self.masks), strict=True)
        return np.broadcast_shapes(*batches), max(heads)

    def without_rule(self) -> tuple[str, ...]:
        return tuple(name for mask in self.masks for name in mask.without_rule())


@dataclass(frozen=True, eq=False)
class Intersection(_Joined):
    """What all `masks` allow; made by `a & b`.

    Examples
    --------
    >>> import attnarray as aa
    >>> (aa.Causal() & aa.Window(0, None)).to_dense(2, 2).tolist()
    [[True, False], [False, True]]
    """

    join = operator.and_

    def constrain(self, constraints: Constraints) -> Constraints:
        return reduce(lambda joined, mask: mask.constrain(joined), self.masks, constraints)


@dataclass(frozen=True, eq=False)
class Union(_Joined):
    """What any of `masks` allows; made by `a | b`.

    Examples
    --------
    >>> import attnarray as aa
    >>> (aa.Window(0, 0) | aa.Padding(1)).to_dense(2, 3).tolist()
    [[True, False, False], [True, True, False]]
    """

    join = operator.or_


@dataclass(frozen=True, eq=False)
class Complement(Mask):
    """What `mask` does not allow; made by `~a`.

    Examples
    --------
    >>> import attnarray as aa
    >>> (~aa.Causal()).to_dense(2, 3).tolist()
    [[False, True, True], [False, False, True]]
    """

    mask: Mask

    def allows(self, pairs: Pairs) -> Any:
        return np.logical_not(self.mask.allows(pairs))

    def kinds(self, grid: Grid) -> Kinds:
        some, every = self.mask.kinds(grid)
        return np.logical_not(every), np.logical_not(some)

    def labels(self, tiles: Tiles) -> Any:
        return self.mask.labels(tiles)

    def extent(self) -> tuple[tuple[int, ...], int]:
        return self.mask.extent()

    def without_rule(self) -> tuple[str, ...]:
        return self.mask.without_rule()


def to_constraints(*masks: Mask) -> Constraints:
    """All masks together as one `Constraints`. The band is position_q - left <= position_k <= position_q + right."""
    return reduce(lambda constraints, mask: mask.constrain(constraints), masks, Constraints())

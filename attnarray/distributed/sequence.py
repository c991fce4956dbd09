"""How a sequence is divided among ranks: positions, pairs of queries and keys that a mask allows, their number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from attnarray import checks
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.backend import Array, ArrayT, namespace_of, to_numpy

OrderName = Literal["contiguous", "zigzag"]
ORDERS: tuple[OrderName, ...] = get_args(OrderName)
MOST_PARTS = 2**20


class Segment(NamedTuple):
    """Consecutive positions [start, stop) of the whole sequence."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


Part = tuple[Segment, ...]  # what one rank holds, in the order in which it holds it


def sequence_parts(lengths: Sequence[int], order: OrderName) -> tuple[Part, ...]:
    """The positions of each rank, which holds `lengths[rank]` of them.

    With "zigzag" each rank's sequence is two halves (the first has one more if the length is odd): the first halves of
    all ranks are the beginning of the whole, in the order of the ranks; the second halves follow in reverse order.
    """
    if order == "contiguous":
        return tuple((segment,) for segment in _consecutive(lengths))
    halves = [-(-length // 2) for length in lengths]
    rest = [length - half for length, half in zip(lengths, halves, strict=True)]
    segments = _consecutive([*halves, *reversed(rest)])
    return tuple((segments[rank], segments[-1 - rank]) for rank in range(len(lengths)))


def _consecutive(lengths: Sequence[int]) -> list[Segment]:
    ends = list(itertools.accumulate(lengths, initial=0))
    return [Segment(start, stop) for start, stop in itertools.pairwise(ends)]


def part_lengths(total: int, parts: int, order: OrderName) -> list[int]:
    """Lengths that differ by 1 at most (2 for "zigzag") and whose sum is `total`."""
    chunks = parts if order == "contiguous" else 2 * parts
    sizes = [total // chunks + (n < total % chunks) for n in range(chunks)]
    return sizes if order == "contiguous" else [sizes[n] + sizes[-1 - n] for n in range(parts)]


def split_sequence(x: ArrayT, parts: int, *, order: OrderName = "contiguous", axis: int = -2) -> list[ArrayT]:
    """Divide an array among ranks along an axis of positions; `join_sequence` is its inverse.

    Parameters
    ----------
    x : array
    parts : int
        The number of ranks.
    order : {"contiguous", "zigzag"}
        That of `ring_attention`. With "zigzag" the sequence is cut into 2 n chunks, and rank r has the chunks r and
        2 n - 1 - r, so that each has as many pairs to compute under a causal mask.
    axis : int
        That of the positions.

    Returns
    -------
    list of arrays
        One for each rank. Sizes differ by 1 at most, by 2 for "zigzag".

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray.distributed import split_sequence
    >>> [part.tolist() for part in split_sequence(np.arange(8), 2, order="zigzag", axis=0)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    checks.choice("order", order, ORDERS)
    parts = checks.whole("parts", parts, 1, MOST_PARTS, "the number of ranks")
    axis = checks.axis("axis", axis, x.ndim)
    xp = namespace_of(x)
    return [
        xp.concat([x[(*(slice(None),) * axis, slice(*segment))] for segment in part], axis=axis)
        for part in sequence_parts(part_lengths(x.shape[axis], parts, order), order)
    ]


def join_sequence(parts: Sequence[ArrayT], *, order: OrderName = "contiguous", axis: int = -2) -> ArrayT:
    """The whole array from the parts of all ranks.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray.distributed import join_sequence
    >>> join_sequence([np.array([0, 3]), np.array([1, 2])], order="zigzag", axis=0).tolist()
    [0, 1, 2, 3]
    """
    checks.choice("order", order, ORDERS)
    if not parts:
        raise ValueError("`parts` is empty, expected one array for each rank.")
    axis = checks.axis("axis", axis, parts[0].ndim)
    placed = []
    for x, part in zip(parts, sequence_parts([x.shape[axis] for x in parts], order), strict=True):
        first = 0
        for segment in part:
            cut = slice(first, first + segment.length)
            placed.append((segment, x[(*(slice(None),) * axis, cut)]))
            first += segment.length
    placed.sort(key=lambda pair: pair[0])
    return namespace_of(*parts).concat([x for _, x in placed], axis=axis)


class Band(NamedTuple):
    """The keys that queries may see by position: first <= key - query <= last, and key < length."""

    first: float
    last: float
    length: float

    def sees(self, queries: Segment, keys: Segment) -> bool:
        """Whether any of these queries may see any of these keys."""
        stop = min(keys.stop, self.length)
        if not queries.length or stop <= keys.start:
            return False
        return keys.start <= queries.stop - 1 + self.last and stop - 1 >= queries.start + self.first

    def pairs(self, queries: Segment, keys: Segment) -> int:
        """The number of pairs that are allowed: the work of a tile."""
        i = np.arange(*queries, dtype=np.float64)
        low = np.maximum(i + self.first, keys.start)
        high = np.minimum(i + self.last, min(keys.stop, self.length) - 1)
        return int(np.maximum(high - low + 1, 0).sum())


def position_band(modifiers: ScoreModifiers) -> Band:
    """What the modifiers of a whole sequence allow by position, in any batch."""
    low, high = _range(modifiers.q_offset, 0)
    left, right = modifiers.left, modifiers.right
    length = np.inf if modifiers.kv_lengths is None else _range(modifiers.kv_lengths, 0)[1]
    return Band(-np.inf if left is None else low - left, np.inf if right is None else high + right, length)


def _range(numbers: int | Array, empty: int) -> tuple[int, int]:
    values: Any = np.asarray(numbers) if isinstance(numbers, int) else to_numpy(numbers)
    return (int(values.min()), int(values.max())) if values.size else (empty, empty)


class Route(NamedTuple):
    """Which ranks the keys of each part travel to: those that see some of them, in the order of the ring."""

    queries: tuple[Part, ...]
    keys: tuple[Part, ...]
    band: Band

    def sees(self, rank: int, part: int) -> bool:
        return any(self.band.sees(q, k) for q in self.queries[rank] for k in self.keys[part])

    def parts(self, rank: int) -> list[int]:
        """The parts that come to a rank, in the order of computation: its own, then those of the ranks before."""
        size = len(self.keys)
        others = [(rank - step) % size for step in range(1, size)]
        return [rank, *(part for part in others if self.sees(rank, part))]

    def previous(self, rank: int, part: int) -> int:
        """The rank that the part comes from; the part's own rank has nothing before it."""
        size = len(self.keys)
        steps = range((rank - part) % size - 1, 0, -1)
        return next((r for r in ((part + step) % size for step in steps) if self.sees(r, part)), part)

    def next(self, rank: int, part: int) -> int | None:
        """The rank that the part goes on to."""
        size = len(self.keys)
        steps = range((rank - part) % size + 1, size)
        return next((r for r in ((part + step) % size for step in steps) if self.sees(r, part)), None)

    def last(self, part: int) -> int | None:
        """The last rank that sees a part of another rank."""
        size = len(self.keys)
        ranks = ((part + step) % size for step in range(size - 1, 0, -1))
        return next((rank for rank in ranks if self.sees(rank, part)), None)

    def work(self, rank: int) -> int:
        """The number of allowed pairs of query and key that a rank computes."""
        own, parts = self.queries[rank], (self.keys[part] for part in self.parts(rank))
        return sum(self.band.pairs(q, k) for part in parts for k in part for q in own)

"""The exchange of heads for positions among ranks, and back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from attnarray.backend import Array, device_of, namespace_of
from attnarray.distributed.communicator import Communicator, Incoming, Outgoing, wait
from attnarray.distributed.sequence import Part, Segment

EXCHANGE = 7104  # the tag of messages


class Heads(NamedTuple):
    """The heads of one rank."""

    queries: slice
    keys: slice
    key_of: list[int] | None  # the key head of each query head, where they are not equal groups

    def grouped(self, keys: Array) -> Any:
        """Keys or values (B, Hkv, S, N) of these heads, so that query heads are equal groups."""
        if self.key_of is None:
            return keys
        xp = namespace_of(keys)
        return xp.take(keys, xp.asarray(self.key_of, device=device_of(keys)), axis=1)

    def grouped_backward(self, dkeys: Array) -> Any:
        """Its gradient: the sum over the query heads of each key head."""
        if self.key_of is None:
            return dkeys
        xp = namespace_of(dkeys)
        sums = []
        for head in range(self.keys.stop - self.keys.start):
            own = [n for n, key in enumerate(self.key_of) if key == head]
            sums.append(xp.sum(dkeys[:, own[0] : own[-1] + 1, :, :], axis=1, keepdims=True))
        return xp.concat(sums, axis=1)


def assign_heads(heads: int, kv_heads: int, ranks: int) -> list[Heads]:
    """The heads of each rank: whole groups where there are as many key heads as ranks, else parts of groups."""
    group = heads // kv_heads
    unit = group if kv_heads >= ranks else 1
    count = heads // unit
    bounds = [unit * (count * rank // ranks) for rank in range(ranks + 1)]
    found = []
    for first, past in itertools.pairwise(bounds):
        index = [head // group - first // group for head in range(first, past)]
        kv = index[-1] + 1
        equal = len(index) % kv == 0 and all(key == n * kv // len(index) for n, key in enumerate(index))
        keys = slice(first // group, first // group + kv)
        found.append(Heads(slice(first, past), keys, None if equal else index))
    return found


class Rows(NamedTuple):
    """The positions of the ranks that exchange heads, and where they are when they are brought into order."""

    parts: tuple[Part, ...]
    lengths: tuple[int, ...]  # of the parts
    order: tuple[tuple[int, slice], ...]  # in the order of positions: whose they are, and where that rank has them
    places: tuple[tuple[slice, ...], ...]  # of each rank's segments in the ordered array
    ordered: Part


def make_rows(parts: Sequence[Part]) -> Rows:
    """Bring the segments of some ranks into the order of positions."""
    lengths = tuple(sum(segment.length for segment in part) for part in parts)
    pieces = []
    for rank, part in enumerate(parts):
        first = 0
        for n, segment in enumerate(part):
            pieces.append((segment, rank, n, slice(first, first + segment.length)))
            first += segment.length
    pieces.sort(key=lambda piece: piece[0])
    places: list[dict[int, slice]] = [{} for _ in parts]
    first, ordered = 0, list[Segment]()
    for segment, rank, n, _ in pieces:
        places[rank][n] = slice(first, first + segment.length)
        first += segment.length
        if ordered and ordered[-1].stop == segment.start:
            ordered[-1] = Segment(ordered[-1].start, segment.stop)
        else:
            ordered.append(segment)
    order = tuple((rank, cut) for _, rank, _, cut in pieces)
    return Rows(tuple(parts), lengths, order, tuple(tuple(p[n] for n in sorted(p)) for p in places), tuple(ordered))


def to_heads(comm: Communicator, x: Array, heads: Sequence[slice], rows: Rows) -> Any:
    """(B, H, T, N) of this rank's positions -> (B, own heads, all positions of the ranks in order, N)."""
    xp, own = namespace_of(x), heads[comm.Get_rank()]
    shapes = [(x.shape[0], own.stop - own.start, length, x.shape[3]) for length in rows.lengths]
    pieces = _exchange(comm, [x[:, cut, :, :] for cut in heads], shapes)
    return xp.concat([pieces[rank][:, :, cut, :] for rank, cut in rows.order], axis=2)


def to_rows(comm: Communicator, x: Array, heads: Sequence[slice], rows: Rows) -> list[Any]:
    """(B, own heads, all positions in order, N) -> the heads of each rank for this rank's positions."""
    xp, length = namespace_of(x), rows.lengths[comm.Get_rank()]
    shapes = [(x.shape[0], cut.stop - cut.start, length, x.shape[3]) for cut in heads]
    sent = [xp.concat([x[:, :, cut, :] for cut in places], axis=2) for places in rows.places]
    return _exchange(comm, sent, shapes)


def summed(pieces: Sequence[Array], heads: Sequence[slice], count: int) -> Any:
    """The heads of all ranks as one array (B, `count`, T, N); where ranks have the same heads, their sum."""
    xp = namespace_of(*pieces)
    if all(cut.start == past.stop for past, cut in itertools.pairwise(heads)):
        return xp.concat(list(pieces), axis=1)
    total: Any = None
    for piece, cut in zip(pieces, heads, strict=True):
        around = [_zeros(piece, cut.start), piece, _zeros(piece, count - cut.stop)]
        wide = xp.concat(around, axis=1)
        total = wide if total is None else total + wide
    return total


def _zeros(like: Array, heads: int) -> Any:
    shape = (like.shape[0], heads, *like.shape[2:])
    return namespace_of(like).zeros(shape, dtype=like.dtype, device=device_of(like))


def _exchange(comm: Communicator, arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Send one array to each rank and receive one from each."""
    rank, size = comm.Get_rank(), comm.Get_size()
    others = [(rank + step) % size for step in range(1, size)]
    incoming = {r: Incoming(comm, [arrays[rank]], [shapes[r]], r, EXCHANGE) for r in reversed(others)}
    outgoing = [Outgoing(comm, [arrays[r]], r, EXCHANGE) for r in others]
    found = [arrays[rank] if r == rank else incoming[r].wait()[0] for r in range(size)]
    for message in outgoing:
        wait(message.requests)
    return found

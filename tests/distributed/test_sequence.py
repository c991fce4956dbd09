"""How sequences are divided: every position once, balanced, and back again."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from attnarray.distributed import join_sequence, split_sequence
from attnarray.distributed.sequence import Band, Route, Segment, part_lengths, sequence_parts


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize(("total", "parts"), [(0, 1), (1, 3), (7, 3), (12, 4), (13, 2), (64, 5)])
def test_split_and_join(order: Any, total: int, parts: int) -> None:
    x = np.arange(2 * total * 3).reshape(2, total, 3)
    divided = split_sequence(x, parts, order=order)
    assert len(divided) == parts
    sizes = [part.shape[1] for part in divided]
    assert max(sizes) - min(sizes) <= (1 if order == "contiguous" else 2)
    np.testing.assert_array_equal(join_sequence(divided, order=order), x)


@pytest.mark.parametrize("lengths", [(3,), (4, 0, 1), (5, 5, 2, 9)])
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_each_position_is_on_one_rank(lengths: tuple[int, ...], order: Any) -> None:
    parts = sequence_parts(lengths, order)
    assert [sum(segment.length for segment in part) for part in parts] == list(lengths)
    assert sorted(n for part in parts for segment in part for n in range(*segment)) == list(range(sum(lengths)))


def test_a_part_of_zigzag_has_a_chunk_from_either_end() -> None:
    assert sequence_parts((4, 4), "zigzag") == ((Segment(0, 2), Segment(6, 8)), (Segment(2, 4), Segment(4, 6)))


@pytest.mark.parametrize("band", [Band(-np.inf, np.inf, np.inf), Band(-3, 0, np.inf), Band(-2, 4, 5), Band(1, 2, 9)])
def test_seen_pairs_are_those_of_the_band(band: Band) -> None:
    for q, k in itertools.product([Segment(0, 3), Segment(2, 2), Segment(4, 9)], [Segment(0, 4), Segment(6, 8)]):
        pairs = sum(
            band.first <= j - i <= band.last and j < band.length for i, j in itertools.product(range(*q), range(*k))
        )
        assert band.pairs(q, k) == pairs
        assert band.sees(q, k) == (pairs > 0)


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize(
    "band", [Band(-np.inf, np.inf, np.inf), Band(-np.inf, 0, np.inf), Band(-3, 2, 30), Band(9, 9, 50)]
)
def test_a_part_comes_from_the_rank_that_it_was_sent_by(band: Band, order: Any) -> None:
    parts = sequence_parts(part_lengths(41, 5, order), order)
    route = Route(parts, parts, band)
    for part in range(5):
        visited, rank = [part], route.next(part, part)
        while rank is not None:
            assert route.previous(rank, part) == visited[-1]
            visited.append(rank)
            rank = route.next(rank, part)
        assert visited[1:] == [r for r in ((part + n) % 5 for n in range(1, 5)) if route.sees(r, part)]
        assert route.last(part) == (visited[-1] if len(visited) > 1 else None)
        assert all(part in route.parts(rank) for rank in visited)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`order` is 'zag', expected one of 'contiguous', 'zigzag'"):
        split_sequence(np.ones((3, 2)), 2, order="zag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`parts` is 0"):
        split_sequence(np.ones((3, 2)), 0)
    with pytest.raises(ValueError, match="`axis` is 2"):
        split_sequence(np.ones((3, 2)), 2, axis=2)
    with pytest.raises(ValueError, match="`parts` is empty"):
        join_sequence([])

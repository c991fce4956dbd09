"""All-to-all attention and grids of ranks: equal to one process, whatever the numbers of heads and ranks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.distributed import (
    RankError,
    ThreadComm,
    all_to_all_attention,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    grid,
    join_sequence,
    split_sequence,
    tiles,
)
from attnarray.distributed.exchange import assign_heads
from tests.support.libraries import Library
from tests.support.ring_calls import OPTIONS, TOLERANCES, errors, joined, make_call, rank_results, whole_results
from tests.support.tiers import slow

# Ranks that exchange heads, and rings of them.
GRIDS = [(3, 2), slow((2, 1)), slow((4, 1)), slow((1, 3)), slow((2, 2)), slow((2, 3))]


def on_grid(comm: Any, call: Any, order: str, head_ranks: int) -> dict[str, Any]:
    own = grid(comm, head_ranks)
    return rank_results(own, call, order, all_to_all_attention_fwd, all_to_all_attention_bwd)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("ranks", GRIDS, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_equal_one_process(name: str, ranks: tuple[int, int], order: str, dtype: str) -> None:
    call = make_call(name, dtype)
    found = joined(ThreadComm(ranks[0] * ranks[1]).run(on_grid, call, order, ranks[0]), call, order)
    for result, error in errors(found, whole_results(call)).items():
        assert error <= TOLERANCES[dtype], result


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1), (7, 1), (5, 5)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_any_number_of_heads(heads: int, kv_heads: int, ranks: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, n, 11, 3)) for n in (heads, kv_heads, kv_heads, heads)]
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, *arrays[:3], is_causal=True, dropout_p=0.2, rng=3)
    parts = [split_sequence(x, ranks) for x in arrays]

    def on_rank(comm: Any) -> list[Any]:
        own = [x[comm.rank] for x in parts]
        found, back = aa.vjp(all_to_all_attention, comm, *own[:3], is_causal=True, dropout_p=0.2, rng=3)
        return [found, *back(own[3])[:3]]

    results = zip(*ThreadComm(ranks).run(on_rank), strict=True)
    for found, expected in zip(results, [out, *pullback(arrays[3])[:3]], strict=True):
        np.testing.assert_allclose(join_sequence(found), expected, rtol=0, atol=1e-12)


def test_every_array_library(library: Library) -> None:
    arrays = np.random.default_rng(0).standard_normal((4, 1, 3, 9, 4))
    arrays = [arrays[0], arrays[1, :, :1], arrays[2, :, :1], arrays[3]]
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, *arrays[:3], is_causal=True)
    parts = [[library.array(part, "float64") for part in split_sequence(x, 2)] for x in arrays]

    def on_rank(comm: Any) -> list[Any]:
        own = [x[comm.rank] for x in parts]
        found, ctx = all_to_all_attention_fwd(comm, *own[:3], is_causal=True)
        return [found, *all_to_all_attention_bwd(own[3], ctx)[:3]]

    results = ThreadComm(2).run(on_rank)
    for n, expected in enumerate([out, *pullback(arrays[3])[:3]]):
        found = join_sequence([aa.to_numpy(result[n]) for result in results])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (12, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("ranks", range(1, 7))
def test_each_head_is_on_one_rank(heads: int, kv_heads: int, ranks: int) -> None:
    found = assign_heads(heads, kv_heads, ranks)
    assert [h for own in found for h in range(own.queries.start, own.queries.stop)] == list(range(heads))
    group = heads // kv_heads
    for own in found:
        used = [h // group for h in range(own.queries.start, own.queries.stop)]
        assert (own.keys.start, own.keys.stop) == (used[0], used[-1] + 1)
        index = own.key_of
        if index is None:
            equal = len(used) // (own.keys.stop - own.keys.start)
            index = [n // equal for n in range(len(used))]
        assert [own.keys.start + n for n in index] == used


def test_more_ranks_than_heads_all_raise() -> None:
    x = np.ones((1, 2, 4, 3))

    def on_rank(comm: Any) -> None:
        with pytest.raises(ValueError, match="3 ranks exchange heads, but `query` has 2"):
            all_to_all_attention(comm, x, x, x)

    ThreadComm(3).run(on_rank)


def test_an_error_on_one_rank_of_a_grid_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, call = tiles.attention, make_call("causal", "float64")

    def failing(*args: Any) -> Any:
        if threading.current_thread().name == "rank 3":
            raise MemoryError("no memory left")
        return attention(*args)

    monkeypatch.setattr(tiles, "attention", failing)

    def on_rank(comm: Any) -> None:
        with pytest.raises(MemoryError if comm.rank == 3 else RankError, match="no memory left"):
            on_grid(comm, call, "zigzag", 2)

    ThreadComm(4).run(on_rank)


def test_a_wrong_context_and_wrong_rows() -> None:
    with pytest.raises(TypeError, match="expected the AllToAllContext"):
        all_to_all_attention_bwd(np.ones(1), None)

    def on_rank(comm: Any) -> None:
        with pytest.raises(ValueError, match=r"`head_ranks` \(2\) must divide the number of ranks \(3\)"):
            grid(comm, 2)

    ThreadComm(3).run(on_rank)

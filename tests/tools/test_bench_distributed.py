"""The model of time on many ranks: what it says of bytes and messages is what is sent; the committed runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from attnarray.distributed import (
    ThreadComm,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    ring_attention_bwd,
    ring_attention_fwd,
)
from benchmarks.distributed import Counting
from benchmarks.distributed_model import (
    MACHINES,
    RESULTS,
    RUN,
    Machine,
    Shape,
    all_to_all_counts,
    curves,
    measured,
    ring_counts,
    ring_seconds,
    shape_of,
)

CALLS = {
    "ring": (ring_attention_fwd, ring_attention_bwd),
    "all_to_all": (all_to_all_attention_fwd, all_to_all_attention_bwd),
}


def expected(shape: Shape, function: str, order: str, ranks: int, rank: int) -> list[tuple[int, float]]:
    if function == "ring":
        return [tuple(ring_counts(shape, ranks, order, rank, way)) for way in ("forward", "backward")]
    return [tuple(all_to_all_counts(shape, ranks, way)) for way in ("forward", "backward")]


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_bytes_and_messages_are_those_that_are_sent(function: str, order: Any, ranks: int) -> None:
    shape = Shape(T=24, heads=12, kv_heads=12 if function == "all_to_all" else 4, dim=5)
    forward, backward = CALLS[function]

    def on_rank(comm: Any) -> list[tuple[int, float]]:
        counting = Counting(comm)
        q = np.ones((1, shape.heads, 24 // ranks, 5), np.float32)
        out, ctx = forward(counting, q, q[:, : shape.kv_heads], q[:, : shape.kv_heads], is_causal=True, order=order)
        first = counting.take()
        backward(out, ctx)
        return [(found["messages"], found["bytes"]) for found in (first, counting.take())]

    for rank, found in enumerate(ThreadComm(ranks).run(on_rank)):
        assert found == expected(shape, function, order, ranks, rank), rank


def test_the_committed_runs_sent_what_the_model_says() -> None:
    cases = measured()
    assert {case["ranks"] for case in cases} == {1, 2, 4}
    for case in cases:
        for rank, result in enumerate(case["results"]):
            found = [(result[way]["messages"], result[way]["bytes"]) for way in ("forward", "backward")]
            assert found == expected(shape_of(case), case["function"], case["order"], case["ranks"], rank)


def test_the_time_of_one_rank_is_that_of_its_pairs() -> None:
    machine, shape = Machine("any", 1e-9, 3e-9, 1.0, 1.0), Shape(1000, 2, 2, 8)
    assert ring_seconds(shape, 1, "zigzag", machine) == pytest.approx(1000 * 1000 * 4e-9, rel=1e-12)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name.split()[0])
def test_zigzag_is_never_slower_than_contiguous_parts(machine: Machine) -> None:
    found = curves(machine)
    for (_, zigzag), (_, contiguous) in zip(found["ring, zigzag"], found["ring, contiguous"], strict=True):
        assert zigzag <= contiguous


def committed(name: str) -> Any:
    return json.loads((RESULTS / f"{RUN}-{name}.json").read_text(encoding="utf-8"))[name]


def test_memory_of_a_rank_grows_with_its_own_positions_only() -> None:
    """The committed run: as many positions for each rank, on 1, 2 and 4 ranks."""
    runs = committed("memory")
    assert [(run["ranks"], run["T"]) for run in runs] == [(1, 16_384), (2, 32_768), (4, 65_536)]
    two, four = (max(result["peak_bytes"] for result in run["results"]) for run in runs[1:])
    assert four <= 1.25 * two  # the ends of pages and MPI's own buffers
    assert four <= 8 * runs[2]["results"][0]["input_bytes"]


def test_keys_beyond_memory_gave_the_right_result() -> None:
    """The committed run: 8 GB of keys, workers limited to 2 GB."""
    run = committed("dask")
    assert run["key_bytes"] == 8e9
    assert max(run["peak_bytes_of_workers"]) < run["memory_limit_bytes"] == 2e9
    assert run["largest_error"] < 2e-6 * max(run["largest_output"], 1.0)  # the goal in float32


def test_twenty_killed_workers_changed_nothing() -> None:
    run = committed("kills")
    assert run["kills"] == run["right"] == len(run["rounds"]) == 20

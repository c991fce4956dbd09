"""The cases and the peers: costs counted by hand, and correct results of every peer on every case that it supports."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import attnarray
from attnarray import tree
from attnarray.bench.cases import BenchCase, allowed_pairs, sdpa, triple
from attnarray.bench.catalog import CASES, GROUPS, QUICK
from attnarray.bench.peers import PEERS, Problem, Unsupported
from attnarray.bench.problems import TOLERANCES, compute_reference, judge
from attnarray.checks import FLOATS

SMALL = 12  # keys, or rows: what a case is resized to
LIGHT = ("attnarray", "reference", "naive", "torch", "torch-eager")
COMPILED = ("jax", "keras", "onnxruntime")  # these need half a second for a case, so they run only the quick ones
# Peers that are known to be less accurate than required in that dtype: the benchmark reports it, and skips them.
INEXACT = {("jax", "float64"), ("keras", "float64"), ("onnxruntime", "float64")}
# XLA on a CPU has no product of 16-bit floats with 32-bit sums.
FAILING = {("jax", "float16"), ("keras", "float16")}

TRIED = [(case, name) for case in CASES for name in LIGHT] + [(case, name) for case in QUICK for name in COMPILED]


def small(case: BenchCase) -> BenchCase:
    return case.resized(SMALL) if case.resized else case


def test_names_are_unique_and_groups_known() -> None:
    assert max(Counter(case.name for case in CASES).values()) == 1
    assert {case.group for case in CASES} == set(GROUPS)
    assert {case.group for case in QUICK} == set(GROUPS)
    assert {case.name for case in QUICK} <= {case.name for case in CASES}
    assert {case.function for case in CASES} <= set(attnarray.TRIPLES)
    assert {case.dtype for case in CASES} == set(TOLERANCES)


def test_the_grid_of_prefill_and_causal() -> None:
    grid = [case for case in CASES if case.group in ("prefill", "causal")]
    assert len(grid) == 12
    assert {case.shapes["query"][3] for case in grid} == {64, 80, 128}
    lengths = {case.shapes["query"][2] for case in grid}
    assert (min(lengths), max(lengths)) == (384, 4096)


def test_the_grid_exists_as_inference_and_as_training() -> None:
    def called(names: str, direction: str) -> list[tuple[Any, ...]]:
        cases = [case for case in CASES if re.fullmatch(names, case.name)]
        assert {case.direction for case in cases} == {direction}
        assert {case.group for case in cases} <= ({"training"} if direction == "both" else {"prefill", "causal"})
        return sorted((case.text, dict(case.options) == {"is_causal": True}, case.dtype) for case in cases)

    grid = called(r"(prefill|causal)-\d+-d\d+", "forward")
    assert len(grid) == len(set(grid)) == 12
    assert called(r"(prefill|causal)-training-\d+-d\d+", "both") == grid


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_arrays_have_the_dtype_and_every_case_can_be_resized(case: BenchCase) -> None:
    made = small(case)
    assert made.size == (SMALL if case.shapes else 0)  # a case whose arguments are all drawn has one size
    assert made.group == case.group
    assert (made.direction, made.dtype) == (case.direction, case.dtype)
    arrays = made.arrays()
    assert {name: array.shape for name, array in arrays.items() if name in made.shapes} == dict(made.shapes)
    leaves = [leaf for _, leaf in tree.flatten(arrays)]
    assert {leaf.dtype.name for leaf in leaves if leaf.dtype.name in FLOATS} == {case.dtype}
    for again, leaf in zip([leaf for _, leaf in tree.flatten(made.arrays())], leaves, strict=True):
        np.testing.assert_array_equal(again, leaf)


@pytest.mark.parametrize(("case", "peer"), TRIED, ids=[f"{case.name}-{name}" for case, name in TRIED])
def test_a_peer_is_right_or_says_that_it_cannot(case: BenchCase, peer: str) -> None:
    missing = PEERS[peer].missing()
    if missing:
        pytest.skip(missing)
    made = small(case)
    truth = compute_reference(made if PEERS[peer].ours else made.without_dropout() or made)
    try:
        call = PEERS[peer].prepare(truth.problem)
    except Unsupported:
        assert not PEERS[peer].ours
        return
    with call.scope():
        if (peer, case.dtype) in FAILING:
            with pytest.raises(ValueError, match="not supported by dot_general"):
                call.run()
            return
        found = [call.named(call.run()) for _ in range(2)]
    for result in found:
        if (peer, case.dtype) in INEXACT:
            assert judge(result, truth.results, "float32").wrong == ""
            continue
        assert judge(result, truth.results, case.dtype).wrong == ""
        assert {name: array.dtype.name for name, array in result.items()} == dict.fromkeys(truth.results, case.dtype)


@pytest.mark.parametrize("peer", ["attnarray", "reference", "naive", "torch", "torch-eager", "jax", "keras"])
def test_the_backward_alone_gives_the_gradients_alone(peer: str) -> None:
    missing = PEERS[peer].missing()
    if missing:
        pytest.skip(missing)
    case = sdpa("alone", "training", H=6, Hkv=2, T=5, S=9, D=4, direction="backward", is_causal=True, bias=True)
    truth = compute_reference(case)
    assert set(truth.results) == {"query", "key", "value", "bias"}
    call = PEERS[peer].prepare(truth.problem)
    with call.scope():
        found = call.named(call.run())
    assert set(found) == set(truth.results)
    assert judge(found, truth.results, "float32").wrong == ""


def test_a_function_with_several_outputs_is_a_case_too() -> None:
    shapes = {"query": (2, 4, 5, 3), "key": (2, 4, 7, 3), "value": (2, 4, 7, 6)}
    truth = compute_reference(triple("attention_partial", direction="both", **shapes))
    assert set(truth.results) == {"out.out", "out.lse", "query", "key", "value"}
    for ours in ("attnarray", "reference"):
        call = PEERS[ours].prepare(truth.problem)
        with call.scope():
            assert judge(call.named(call.run()), truth.results, "float32").wrong == ""
    with pytest.raises(Unsupported, match="attention only"):
        PEERS["naive"].prepare(truth.problem)


def test_our_peers_run_on_another_library() -> None:
    case = sdpa("other", "training", H=4, Hkv=2, T=5, S=9, D=4, direction="both", mask=True, lengths=(0.5,), bias=True)
    truth = compute_reference(case, "array_api_strict")
    for ours in ("attnarray", "reference"):
        call = PEERS[ours].prepare(truth.problem)
        with call.scope():
            assert type(call.run()[0]).__module__.startswith("array_api_strict")
            assert judge(call.named(call.run()), truth.results, "float32").wrong == ""


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, (2, 1), (None, 0), (0, None)])
@pytest.mark.parametrize("q_offset", [0, 3])
def test_allowed_pairs_are_those_of_the_mask(is_causal: bool, window: Any, q_offset: int) -> None:
    lengths = np.array([7, 4, 0])
    shapes = {"query": (3, 1, 5, 2), "key": (3, 1, 7, 2), "value": (3, 1, 7, 2)}
    options = {"is_causal": is_causal, "window": window, "q_offset": q_offset}
    case = BenchCase("", "", "", shapes, sdpa("", "", T=1).cost, options, {"kv_lengths": lambda rng, shapes: lengths})
    mask = Problem(case, case.arrays(), None, ()).mask
    counted = np.broadcast_to(mask, (3, 1, 5, 7)).sum()
    assert allowed_pairs(5, 7, lengths, is_causal=is_causal, window=window, q_offset=q_offset) == counted


def test_costs_follow_the_convention() -> None:
    whole = sdpa("", "", B=2, H=3, T=5, S=7, D=4, Dv=6)
    assert whole.cost == (2 * 2 * 3 * 5 * 7 * (4 + 6), 2 * 3 * 5 * 7)
    assert sdpa("", "", T=8, D=4, direction="backward").cost.flops == 2.5 * sdpa("", "", T=8, D=4).cost.flops
    assert sdpa("", "", T=8, D=4, direction="both").cost.flops == 3.5 * sdpa("", "", T=8, D=4).cost.flops
    assert sdpa("", "", T=4, is_causal=True).cost.exps == 8 * (1 + 2 + 3 + 4)
    # The one query of decoding is at the end, so it attends to every key.
    assert sdpa("", "", T=1, S=9, is_causal=True).cost.exps == 8 * 9
    assert sdpa("", "", B=2, T=4, lengths=(1.0, 0.5)).cost.exps == 8 * (16 + 8)
    assert triple("linear", x=(3, 5), weight=(7, 5)).cost.flops == 2 * 3 * 5 * 7
    assert triple("linear", direction="both", x=(3, 5), weight=(7, 5)).cost.flops == 3 * 2 * 3 * 5 * 7


def test_bytes_are_those_of_all_inputs_and_results() -> None:
    read, written = 2 * (5 * 4 + 7 * 4 + 7 * 6), 2 * 5 * 6
    forward = compute_reference(sdpa("", "", H=2, T=5, S=7, D=4, Dv=6))
    assert forward.bytes_moved == 4 * (read + written)
    both = compute_reference(sdpa("", "", H=2, T=5, S=7, D=4, Dv=6, direction="both", dtype="float64"))
    assert both.bytes_moved == 8 * (read + written + written + read)  # dout is read, gradients are written


def test_masks_that_peers_build_are_ours() -> None:
    case = sdpa("", "", B=2, T=6, S=9, D=4, is_causal=True, window=(3, None), lengths=(1.0, 0.5), mask=True)
    problem = compute_reference(case).problem
    positions = attnarray.Causal() & attnarray.Window(3, None) & attnarray.Padding(np.array([9, 4]))
    whole = positions.to_dense(6, 9, q_offset=3) & problem.arrays["attn_mask"]
    np.testing.assert_array_equal(problem.mask, whole)
    assert not problem.plainly_causal
    assert compute_reference(sdpa("", "", T=4, is_causal=True)).problem.plainly_causal
    assert compute_reference(sdpa("", "", T=1, S=4, is_causal=True)).problem.mask is None


def test_every_public_function_is_a_case_by_its_name() -> None:
    assert {case.function for case in CASES} == set(attnarray.TRIPLES)


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert PEERS["torch"].missing() == ("torch not installed: pip install torch (its build for the CPU is enough)")
    assert PEERS["onnxruntime"].missing().startswith("onnx and onnxruntime not installed: pip install")
    assert PEERS["attnarray"].missing() == ""

"""Results never hold uninitialized memory, also with empty axes; empty sums have gradient 0."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.cases import CASES, Case
from attnarray.triples import find_triple
from tests.support.masked_calls import Sizes, calls
from tests.support.paths import ROOT
from tests.support.poisoned import DTYPES, LARGER, larger_calls, poisoned
from tests.support.tiers import slow

POISONS = math.nan, 1e30
# Kernels against array code in float64: sums of some hundred numbers, some of size 100, in another order.
TOLERANCE = 1e-11
Leaves = list[tuple[Any, Any]]


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run_case(case: Case, arguments: dict[str, Any]) -> Leaves:
    triple = find_triple(case.f)
    out, ctx = triple.fwd(**arguments)
    return tree.flatten((out, triple.bwd(tree.map(np.ones_like, out), ctx)))


def assert_free_of_poison(run: Any) -> Leaves:
    """Equal results bit by bit whatever new arrays hold; return the results."""
    with aa.use_kernels("auto"):
        expected: Leaves = run()
        for number in POISONS:
            with poisoned(number):
                found = run()
            for (path, one), (_, other) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=tree.format_path(path))
    return expected


def assert_close(found: Leaves, expected: Leaves) -> None:
    for (path, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, err_msg=tree.format_path(path))


def assert_empty_size_is_defined(run: Any) -> Leaves | None:
    """Kernels and array code agree, or raise the same error; only a logarithm of 0 is infinite."""
    with aa.use_kernels("reference"):
        try:
            expected: Leaves = run()
        except ValueError as error:
            refused = str(error)
            with aa.use_kernels("auto"), pytest.raises(ValueError, match=re.escape(refused)):
                run()
            return None
    assert all(np.all(np.isfinite(array) | (array == -math.inf)) for _, array in expected)
    found = assert_free_of_poison(run)
    assert_close(found, expected)
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_cases(case: Case) -> None:
    for dtype in DTYPES:
        arguments = case.arguments(dtype)
        assert_free_of_poison(lambda arguments=arguments: run_case(case, arguments))


@pytest.mark.parametrize("sizes", LARGER, ids=str)
def test_larger_calls(sizes: Sizes) -> None:
    for call in larger_calls(sizes).values():
        for dtype in DTYPES:
            given = call.filled(0.0, dtype)
            assert_free_of_poison(lambda given=given: tree.flatten(given.run(0.0)[:2]))


def emptied(arguments: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, Any]:
    """The arguments with axes of a size in `sizes` emptied."""

    def of(x: Any) -> Any:
        return x[tuple(slice(0 if n in sizes else n) for n in x.shape)] if isinstance(x, np.ndarray) else x

    return {name: tree.map(of, value) for name, value in arguments.items()}


@pytest.mark.parametrize("empty", [1, slow(2)])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_cases_with_empty_axes(case: Case, empty: int) -> None:
    """Sizes of a case are distinct, so that an axis is emptied in all arrays that have it."""
    given = case.arguments()
    sizes = sorted({n for _, x in tree.flatten(given) if isinstance(x, np.ndarray) for n in x.shape})
    for some in itertools.combinations(sizes, empty):
        arguments = emptied(given, some)
        assert_empty_size_is_defined(lambda arguments=arguments: run_case(case, arguments))


@pytest.mark.parametrize("size", ["small", slow("larger")])
@pytest.mark.parametrize("empty", [name for name in Sizes._fields if name != "kv_heads"])
def test_empty_sizes_behind_masks(empty: str, size: str) -> None:
    """With masks, and sizes that belong together, such as the distances of relative attention."""
    sizes = {empty: 0, **({"kv_heads": 0} if empty == "heads" else {})}
    made, others = (calls, Sizes()) if size == "small" else (larger_calls, Sizes(queries=33, keys=70))
    for name, call in made(others._replace(**sizes)).items():
        given = call.filled(0.0, "float64")
        found = assert_empty_size_is_defined(lambda given=given: tree.flatten(given.run(0.0)[:2]))
        assert found is not None or (empty == "heads" and "multi_head" in name), name
        if found is not None:
            grads = given.run(0.0)[1]
            for array in set(given.hidden) & set(grads._fields):
                assert getattr(grads, array).shape == given.arrays[array].shape
    if empty == "keys":
        assert not np.any(aa.scaled_dot_product_attention(np.ones((2, 3, 4)), np.ones((2, 0, 4)), np.ones((2, 0, 5))))


OF_ROWS = ("query", "key", "value", "memory", "x", "hidden", "gate", "score_scale", "inverse_temperature", "bias",
           "edge_features")  # fmt: skip


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("empty", ["queries", "keys"])
def test_empty_sums_have_gradient_0_next_to_infinities(empty: str, kernels: str) -> None:
    """All keys are masked, or there is none: all gradients of rows and of weights are 0."""
    for name, call in calls(Sizes()._replace(**{empty: 0})).items():
        if "attention" not in name or (empty == "keys" and ("convolutional" in name or "self" in name)):
            continue
        if empty == "queries" and "linear" in name:  # which has as many queries as keys
            continue
        for number in (math.nan, math.inf):
            filled = {
                n: np.full_like(x, number) if n in OF_ROWS and x.dtype.kind == "f" else x
                for n, x in call.arrays.items()
            }
            with aa.use_kernels(kernels):
                grads = call._replace(arrays=filled).run(0.0)[1]
            for path, array in tree.flatten(grads):
                if path != ("params", "out", "bias"):  # which is what multi-head attention gives without keys
                    assert not np.any(array), (name, path)


def test_graph_attention_without_features() -> None:
    """Scores of no features are 0, so that all edges of a node have equal weights."""
    value, edges = np.array([[[1.0]], [[3.0]]]), np.array([[0, 1], [0, 0]])
    nothing = np.zeros((2, 1, 0))
    for score in ("gat", "gatv2"):
        out, pullback = aa.vjp(aa.graph_attention, nothing, nothing, value, np.zeros((1, 0)), edges, score=score)
        assert out[:, 0, 0].tolist() == [2.0, 0.0]
        assert pullback(np.ones_like(out)).value[:, 0, 0].tolist() == [0.5, 0.5]


def test_memory_that_compiled_code_allocates() -> None:
    """Numba's own `np.empty` is `malloc`, which glibc fills on request; small blocks must not come from a cache."""
    found = []
    for byte in (127, 254):
        tunables = f"glibc.malloc.perturb={byte}:glibc.malloc.tcache_count=0"
        process = subprocess.run(
            [sys.executable, "-m", "tests.support.poisoned"], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "GLIBC_TUNABLES": tunables},
        )  # fmt: skip
        found.append(process.stdout.split())
    if [int(byte) for byte, _ in found] != [128, 1]:
        pytest.skip("malloc here does not fill new memory on request")
    assert len({digest for _, digest in found}) == 1


def test_array_code_makes_no_array_without_numbers() -> None:
    source = ROOT / "attnarray"
    folders = [source / name for name in ("ops", "attention", "layers", "models", "optim")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 50
    found = [file for file in files if re.search(r"\b(xp|np)\.empty(_like)?\(", file.read_text(encoding="utf-8"))]
    assert not found

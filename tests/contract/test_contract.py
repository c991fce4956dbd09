"""Every triple, for every case on every array library: values, gradients, types."""

from __future__ import annotations

import ast
import importlib
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray
from attnarray import gradcheck, random, to_numpy, tree, use_kernels
from attnarray.backend import device_of
from attnarray.cases import CASES, Case
from attnarray.checks import is_array
from attnarray.triples import find_triple
from tests.support.libraries import (
    EPS,
    JAX,
    LIBRARIES,
    NUMPY,
    STATUSES,
    Library,
    accumulator_of,
    assert_trees_close,
    is_floating,
    marks_of,
)
from tests.support.paths import TESTS

# Sums of at most 15 products and a few functions: a few dozen roundings of 1e-16, relative to the largest entry.
TOLERANCE = 1e-13
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.mark.parametrize("status", STATUSES, ids=[status.name for status in STATUSES])
def test_library_is_available(status: Any) -> None:
    if not status.available:
        pytest.skip(f"not tested on {status.name}: {status.reason}")


@each_case
def test_forward_equals_the_naive_implementation(case: Case, library: Library) -> None:
    naive = getattr(importlib.import_module(f"tests.naive.{case.function}"), case.function)
    out = case.f(**library.arguments(case))
    assert_trees_close(out, naive(**for_the_naive_implementation(case)), TOLERANCE)


def for_the_naive_implementation(case: Case) -> dict[str, Any]:
    """The case's arguments with an explicit mask instead of `rng`, and key positions from 0."""
    given = case.arguments()
    first_key = given.pop("kv_offset", 0)
    if "rng" in given and case.function == "dropout":
        given["mask"] = random.keep_mask(given.pop("rng"), given["p"], given["x"].shape, np, None)
    elif "rng" in given:
        query = given.get("query", given.get("x"))
        key = given.get("key", given.get("memory", query))  # self-attention
        batch_and_heads = query.shape[:2] if query.ndim == 4 else (query.shape[0], 1)
        shape = (*batch_and_heads, query.shape[-2], key.shape[-2])
        where = np, None, given.get("q_offset", 0), first_key
        mask = random.attention_keep_mask(given.pop("rng"), given["dropout_p"], shape, *where)
        given["dropout_mask"] = mask.reshape(*query.shape[:-1], key.shape[-2])
    if first_key:
        given["q_offset"] = given.get("q_offset", 0) - first_key
    if first_key and "kv_lengths" in given:
        given["kv_lengths"] = given["kv_lengths"] - first_key
    return given


@each_case
def test_gradients_are_the_differences_of_the_forward(case: Case) -> None:
    with use_kernels("reference"):
        report = gradcheck(case.f, tolerance=1e-8, max_elements=10**6, **case.arguments())
    assert report.inputs
    assert all(check.elements for check in report.inputs)
    # The differences are off by 1e-11 of the largest entry; by 4e-9 for the norm of a small vector (h^4 is not small).
    assert report, str(report)


@each_case
def test_backward(case: Case, library: Library) -> None:
    arguments = library.arguments(case)
    _, fwd, bwd = find_triple(case.f)
    out, ctx = fwd(**arguments)
    first, second = library.cotangent(out, 1), library.cotangent(out, 2)
    kept = pickle.dumps(ctx)
    grads = bwd(first, ctx)

    with use_kernels("reference"):  # whose gradients are those of the differences
        proven_out, proven_ctx = fwd(**case.arguments())
        proven = bwd(NUMPY.cotangent(proven_out, 1), proven_ctx)
    assert_trees_close(grads, proven, TOLERANCE)
    assert_same_bits(bwd(first, pickle.loads(kept)), grads)  # the context is a value
    assert_same_bits(bwd(first, ctx), grads)  # and may be used twice
    assert_same_bits(ctx, pickle.loads(kept))  # unchanged
    combined = bwd(tree.map(lambda a, b: 2.0 * a - 3.0 * b, first, second), ctx)
    expected = tree.map(lambda a, b: 2.0 * a - 3.0 * b, grads, bwd(second, ctx))
    assert_trees_close(combined, expected, 10 * TOLERANCE)  # three results, of which the two parts are larger

    assert_same_bits(case.f(**arguments), out)
    numbers = {name for name, given in arguments.items() if not any(is_array(x) for _, x in tree.flatten(given))}
    wanted = {name for name in type(grads)._fields if name in arguments} - numbers
    assert {name for name, grad in zip(grads._fields, grads, strict=True) if grad is not None} == wanted


def assert_same_bits(found: Any, expected: Any) -> None:
    for (path, leaf), (_, other) in zip(tree.flatten(found), tree.flatten(expected), strict=True):
        if hasattr(leaf, "dtype"):
            assert leaf.dtype == other.dtype
            np.testing.assert_array_equal(to_numpy(leaf), to_numpy(other), tree.format_path(path))


RECURRENCES = ("linear_attention", "generalized_delta_rule")
# JAX compiles every operation for every shape and dtype, which takes seconds: only the last case of each function.
LAST = list({case.function: case for case in CASES}.values())
ON_LIBRARIES = [
    pytest.param(library, case, marks=marks_of(library), id=f"{library.name}-{case.name}")
    for library in LIBRARIES
    for case in (LAST if library == JAX else CASES)
]


@pytest.mark.parametrize(("library", "case"), ON_LIBRARIES)
def test_dtype_and_device_are_kept(library: Library, case: Case) -> None:
    for dtype in library.dtypes:
        arguments = library.arguments(case, dtype)
        floats = [leaf for _, leaf in tree.flatten(arguments) if is_floating(leaf)]
        out, ctx = find_triple(case.f).fwd(**arguments)
        grads = find_triple(case.f).bwd(library.cotangent(out), ctx)
        for path, leaf in tree.flatten(out):
            # A log-sum-exp stays in the accumulator's dtype, and so does a state that is summed up.
            wide = path == ("lse",) or (path == ("state",) and case.function in RECURRENCES)
            assert leaf.dtype == (accumulator_of(floats[0]) if wide else floats[0].dtype), f"{dtype}: {path}"
            assert device_of(leaf) == device_of(floats[0]), f"{dtype}: {path}"
        for path, grad in tree.flatten(grads):
            given = tree.get(arguments, path)
            assert grad.dtype == given.dtype, f"{dtype}: gradient of {path}"
            assert tuple(grad.shape) == tuple(given.shape), f"{dtype}: gradient of {path}"
            assert device_of(grad) == device_of(given), f"{dtype}: gradient of {path}"


@each_case
def test_16_bit_floats_are_computed_in_32(case: Case) -> None:
    _, fwd, bwd = find_triple(case.f)
    for dtype in ("float16", "bfloat16"):
        rounded = NUMPY.arguments(case, dtype)
        exact = tree.map(lambda leaf: leaf.astype(np.float64) if is_floating(leaf) else leaf, rounded)
        out, ctx = fwd(**rounded)
        true_out, true_ctx = fwd(**exact)
        dout = NUMPY.cotangent(out)
        true_dout = tree.map(lambda leaf: leaf.astype(np.float64), dout)
        # One rounding of an output is half an eps; a backward starts from the rounded output and amplifies that.
        assert_trees_close(out, true_out, EPS[dtype])
        assert_trees_close(bwd(dout, ctx), bwd(true_dout, true_ctx), 6 * EPS[dtype])


def test_every_triple_has_a_case_and_a_naive_implementation() -> None:
    naive = {path.stem for path in (TESTS / "naive").glob("*.py")}
    cases = {case.function for case in CASES}
    assert set(attnarray.TRIPLES) == cases, "give each of attnarray.TRIPLES a Case in attnarray/cases/"
    assert set(attnarray.TRIPLES) <= naive, "give each of attnarray.TRIPLES a function in tests/naive/"


@pytest.mark.parametrize("path", sorted((TESTS / "naive").glob("*.py")), ids=lambda path: path.stem)
def test_naive_implementations_import_nothing_from_the_library(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").removeprefix("tests.").split(".")[0])
    assert imported <= {"math", "numpy", "naive"}


ATTENTION = [case for case in CASES if attnarray.TRIPLES[case.function].startswith("attention.")]


@pytest.mark.parametrize("case", ATTENTION, ids=[case.name for case in ATTENTION])
def test_sizes_are_distinct(case: Case) -> None:
    # Equal sizes would hide a transposed gradient. Numbers of key heads are exempt: they divide those of query heads.
    given = case.arguments()
    if case.function == "merge_partials":
        sizes = list(given["partials"][0].out.shape)
    elif "x" in given:  # self-attention: the sequence, the sizes of other inputs, and the hidden layer of the scores
        others = [given[name].shape[-1] for name in ("hidden", "value") if name in given]
        others += [given["memory"].shape[-2]] if "memory" in given else []
        weight = next(array for name, array in given.items() if name.endswith("weight"))
        sizes = [*given["x"].shape, *others, weight.shape[0]]
    elif "spatial_shapes" in given:
        sizes = [*given["value"].shape, given["attention_weights"].shape[1], given["attention_weights"].shape[4]]
    elif "context" in given:
        sizes = [*given["context"].shape, given["hidden"].shape[-1], given["context_weight"].shape[0]]
    else:
        keys = -3 if given.get("layout") == "BTHD" or "edges" in given else -2
        others = [given[name].shape[axis] for name, axis in (("key", keys), ("value", -1)) if name in given]
        same = case.function in RECURRENCES or attnarray.TRIPLES[case.function].startswith("attention.spatial")
        same = same or (case.function == "block_topk_attention" and bool(given.get("is_causal") or "gates" in given))
        others = others[1:] if same else others  # as many keys as queries
        sizes = [*given["query"].shape, *others]
    assert len(set(sizes)) == len(sizes)
    assert math.prod(sizes) > 0

"""The inputs of every triple: any strides, never changed, one clear error if they do not fit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree, use_kernels
from attnarray.cases import CASES, Case
from attnarray.cases.ops import OPS_CASES
from attnarray.checks import is_array
from attnarray.triples import find_triple
from tests.support.layouts import backwards, column_major, every_second, frozen
from tests.support.libraries import NUMPY, STRICT, assert_trees_close, is_floating

TOLERANCE = 1e-13  # other strides may change the order of summation
CASES_OF = {name: [case for case in CASES if case.function == name] for name in aa.TRIPLES}
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
each_function = pytest.mark.parametrize("cases", CASES_OF.values(), ids=list(CASES_OF))


def run(case: Case, arguments: dict[str, Any], layout: Callable[[Any], Any] = lambda array: array) -> tuple[Any, Any]:
    """The output and the gradients for a cotangent laid out by `layout`."""
    out, ctx = find_triple(case.f).fwd(**arguments)
    return out, find_triple(case.f).bwd(tree.map(layout, NUMPY.cotangent(out)), ctx)


def every_array(change: Callable[[Any], Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return tree.map(lambda leaf: change(leaf) if is_array(leaf) else leaf, arguments)


LAYOUTS = [every_second, backwards, column_major, frozen]


@each_case
def test_any_strides_and_read_only_arrays_are_accepted(case: Case) -> None:
    for kernels, layout in itertools.product(("reference", "auto"), LAYOUTS):
        with use_kernels(kernels):
            expected = run(case, case.arguments())
            given = every_array(layout, case.arguments())
            assert_trees_close(run(case, given, layout), expected, TOLERANCE)


@each_function
def test_inputs_are_never_written_to(cases: list[Case]) -> None:
    for case in cases:
        for kernels in ("auto", "reference"):
            arguments, dout = case.arguments(), None
            with use_kernels(kernels):
                out, ctx = find_triple(case.f).fwd(**arguments)
                dout, again = NUMPY.cotangent(out), NUMPY.cotangent(out)
                copy = tree.map(lambda leaf: leaf.copy() if is_array(leaf) else leaf, ctx)
                find_triple(case.f).bwd(dout, ctx)
            for changed, fresh in ((arguments, case.arguments()), (dout, again), (ctx, copy)):
                for (path, leaf), (_, other) in zip(tree.flatten(changed), tree.flatten(fresh), strict=True):
                    assert not is_array(leaf) or np.array_equal(leaf, other, equal_nan=True), f"{case.name}: {path}"


def changed_one_by_one(case: Case, change: Callable[[Any], Any], skipped: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(path, arguments) with one array after the other changed."""
    arguments = case.arguments()
    for path, leaf in tree.flatten(arguments):
        if is_array(leaf) and path[0] not in skipped:
            yield path, tree.map(lambda other, this=leaf: change(other) if other is this else other, arguments)


POSITIONS = ("q_offset", "kv_lengths", "lengths")  # numbers, which may come from anywhere
DIFFERENT = "different dtypes: .* Bring them to one dtype first"
INTEGERS = "has dtype int64, expected one of float16, .* Convert it first"


def refused(message: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether the call raises the TypeError."""
    try:
        function(*args, **kwargs)
    except TypeError as error:
        return re.search(message, str(error)) is not None
    return False


@each_function
def test_arrays_of_different_libraries_are_refused(cases: list[Case]) -> None:
    for case in cases:
        arrays = [path for path, leaf in tree.flatten(case.arguments()) if is_array(leaf) and path[0] not in POSITIONS]
        for path, given in changed_one_by_one(case, STRICT.array, POSITIONS):
            if len(arrays) > 1:
                assert refused("different libraries: ", case.f, **given), f"{case.name}: {path} is of another library"
        out, ctx = find_triple(case.f).fwd(**case.arguments())
        if any(is_array(leaf) for _, leaf in tree.flatten(ctx)):
            dout = STRICT.cotangent(out)
            assert refused("different libraries: ", find_triple(case.f).bwd, dout, ctx), (
                f"{case.name}: dout is of another"
            )


@each_function
def test_different_dtypes_are_refused(cases: list[Case]) -> None:
    for case in cases:
        floats = [path for path, leaf in tree.flatten(case.arguments()) if is_floating(leaf)]
        for path, given in changed_one_by_one(case, lambda array: array.astype(np.float32)):
            if path in floats and len(floats) > 1:
                assert refused(DIFFERENT, case.f, **given), f"{case.name}: {path} is of another dtype"


@each_function
def test_integers_are_refused(cases: list[Case]) -> None:
    for case in cases:
        for path, given in changed_one_by_one(case, lambda array: array.astype(np.int64)):
            if is_floating(tree.get(case.arguments(), path)):
                assert refused(INTEGERS, case.f, **given), f"{case.name}: {path} holds integers"


@pytest.mark.parametrize("case", [case for case in OPS_CASES if case.label != "one index"], ids=lambda case: case.name)
def test_a_cotangent_that_does_not_fit_is_refused(case: Case) -> None:
    out, ctx = find_triple(case.f).fwd(**case.arguments())
    bwd = find_triple(case.f).bwd
    with pytest.raises(ValueError, match=r"`dout` has shape \(5,.*the shape of the output"):
        bwd(np.ones((5, *out.shape)), ctx)
    with pytest.raises(TypeError, match="`dout` has dtype int64"):
        bwd(np.ones(out.shape, dtype=np.int64), ctx)

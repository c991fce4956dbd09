"""gradcheck and `attnarray check` work for arrays of any memory layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import check, tree
from attnarray.cases import CASES, Case
from attnarray.checks import is_array
from attnarray.memory_layout import overlaps, with_layout
from tests.support.layouts import backwards, column_major, every_second, frozen, unaligned

RNG = np.random.default_rng(0)
SIZE = 4  # equal sizes, so that a transposed gradient has the right shape


def permuted(array: np.ndarray) -> np.ndarray:
    """The same numbers with the first axis innermost and the last before it."""
    order = [*range(1, array.ndim - 1), *[array.ndim - 1] * (array.ndim > 1), *[0] * (array.ndim > 0)]
    return np.array(array.transpose(order), order="C").transpose(np.argsort(order))


def column(array: np.ndarray) -> np.ndarray:
    """A part of each row of a much wider array."""
    wide = np.full((*array.shape, 50), np.nan).astype(array.dtype) if array.dtype.kind == "f" else None
    if wide is None:
        return array
    wide[..., 7] = array
    return wide[..., 7]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C order": np.array,
    "Fortran order": column_major,
    "permuted": permuted,
    "reversed": backwards,
    "one axis reversed": lambda array: array[::-1].copy()[::-1] if array.ndim else array,
    "every second": every_second,
    "part of wide rows": column,
    "read-only": frozen,
    "unaligned": unaligned,
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
}
# Elements of these share memory: they are passed unchanged.
SHARED = {
    "a row for all": np.broadcast_to(RNG.standard_normal(SIZE), (SIZE, SIZE)),
    "a column for all": np.broadcast_to(RNG.standard_normal((SIZE, 1)), (SIZE, SIZE)),
    "a number for all": np.broadcast_to(RNG.standard_normal(()), (SIZE, SIZE)),
    "windows": np.lib.stride_tricks.sliding_window_view(RNG.standard_normal(2 * SIZE - 1), SIZE),
    "windows, reversed": np.lib.stride_tricks.sliding_window_view(RNG.standard_normal(2 * SIZE - 1), SIZE)[::-1, ::-1],
}
X, WEIGHT = RNG.standard_normal((2, SIZE, SIZE))
INPUTS = {**{name: layout(X) for name, layout in LAYOUTS.items()}, **SHARED}
each_input = pytest.mark.parametrize("x", INPUTS.values(), ids=list(INPUTS))


class Grads(NamedTuple):
    x: Any
    weight: Any


class Wave(NamedTuple):
    """sin(x W^T), whose gradients can be made wrong; it records the arrays that it is called with."""

    spoil: Callable[[Grads], Grads] = lambda grads: grads
    seen: list[Any] = []  # noqa: RUF012 - of the whole class

    def __call__(self, x: Any, weight: Any) -> Any:
        self.seen.append(x)
        return np.sin(x @ weight.T)

    def fwd(self, x: Any, weight: Any) -> Any:
        return self(x, weight), (x, weight)

    def bwd(self, dout: Any, ctx: Any) -> Grads:
        x, weight = ctx
        dscores = dout * np.cos(x @ weight.T)
        return self.spoil(Grads(dscores @ weight, dscores.T @ x))


def one_wrong(grads: Grads) -> Grads:
    x = grads.x.copy()
    x[1, 2] += 1e-5
    return grads._replace(x=x)


MISTAKES: dict[str, Callable[[Grads], Grads]] = {
    "zero": lambda grads: grads._replace(x=np.zeros_like(grads.x)),
    "transposed": lambda grads: grads._replace(x=grads.x.T),
    "reversed": lambda grads: grads._replace(x=grads.x[::-1, ::-1]),
    "in order of memory": lambda grads: grads._replace(x=grads.x.ravel(order="F").reshape(SIZE, SIZE)),
    "factor": lambda grads: grads._replace(x=1.0001 * grads.x),
    "one entry": one_wrong,
}


@each_input
def test_right_gradients_are_right_in_any_layout(x: np.ndarray) -> None:
    before = x.copy()
    assert aa.gradcheck(Wave(), x, WEIGHT)
    assert aa.gradcheck(Wave(), WEIGHT, x)
    assert aa.gradcheck(Wave(), x, x)  # one array as both: each has its own gradient
    np.testing.assert_array_equal(x, before)


@each_input
@pytest.mark.parametrize("spoil", MISTAKES.values(), ids=list(MISTAKES))
def test_wrong_gradients_are_wrong_in_any_layout(x: np.ndarray, spoil: Callable[[Grads], Grads]) -> None:
    for layout in (np.array, np.asfortranarray, np.flip):  # of the gradient
        report = aa.gradcheck(
            Wave(lambda grads, new=layout: spoil(grads._replace(x=_in_layout(new, grads.x)))), x, WEIGHT
        )
        assert [found.ok for found in report.inputs] == [False, True]


def _in_layout(change: Callable[..., Any], array: np.ndarray) -> np.ndarray:
    return np.flip(np.array(np.flip(array))) if change is np.flip else change(array)


@each_input
def test_the_function_sees_the_layout_that_was_given(x: np.ndarray) -> None:
    wave = Wave(seen=[])
    assert aa.gradcheck(wave, x, WEIGHT, wrt=["x"])
    first, *moved = wave.seen
    assert overlaps(first) == overlaps(x)
    assert len(moved) == 4 * SIZE**2
    for array in [first, *([] if overlaps(x) else moved)]:
        assert array.dtype == np.float64
        assert array.flags.writeable == x.flags.writeable
        for name in ("c_contiguous", "f_contiguous"):
            assert getattr(array.flags, name) == getattr(x.flags, name)
        assert np.sign(array.strides).tolist() == np.sign(x.strides).tolist()
        assert np.argsort(np.abs(array.strides)).tolist() == np.argsort(np.abs(x.strides)).tolist()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts_of_few_and_of_many_axes(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    for shape in ((), (1,), (3,), (0, 3), (1, 3, 1), (2, 3, 4), (2, 1, 3, 2)):
        like = layout(RNG.standard_normal(shape))
        values = RNG.standard_normal(shape)
        found = with_layout(like, values)
        np.testing.assert_array_equal(found, values)
        assert found.flags.c_contiguous == like.flags.c_contiguous
        assert not overlaps(found)
        assert math.prod(shape) == 0 or aa.gradcheck(aa.tanh, like)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_leaves_of_trees_in_any_layout(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    layer = aa.layers.FeedForward(4, 3, "silu", gated=True)
    params = tree.map(layout, layer.init(aa.Philox(0), "float64"))
    x = layout(RNG.standard_normal((2, 5, 4)))
    assert aa.gradcheck(layer, params, x)
    shared = params["hidden"]["weight"]
    assert aa.gradcheck(layer, tree.replace(params, ("gate", "weight"), shared), x)  # one array as two leaves


LAST = list({case.function: case for case in CASES}.values())


@pytest.mark.parametrize("case", LAST, ids=[case.name for case in LAST])
def test_cases_in_any_layout(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, layout in LAYOUTS.items():
        if name != "other byte order":
            given = tree.map(lambda leaf, new=layout: new(leaf) if is_array(leaf) else leaf, case.arguments())
            assert aa.gradcheck(case.f, **given, tolerance=check.TOLERANCE, max_elements=3), name


def test_the_command_checks_cases_in_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in LAYOUTS.values():
        arrays = {"x": layout(X), "weight": layout(WEIGHT), "bias": layout(X[0])}
        case = Case("linear", "layout", lambda rng, arrays=arrays: arrays)
        assert all(result.ok for result in check.check_gradients(case, "numpy", "reference"))
        with monkeypatch.context() as patch:
            right = aa.linear_bwd
            patch.setattr(
                "attnarray.ops.linear.linear_bwd", lambda d, ctx, f=right: f(d, ctx)._replace(x=np.zeros_like(ctx.x))
            )
            wrong = check.check_gradients(case, "numpy", "reference")
        assert [result.ok for result in wrong] == [False, True, True]


RESULTS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "of one number": lambda found: {**found, "x": found["x"][:1, :1]},  # which would broadcast
    "of another dtype": lambda found: {**found, "x": found["x"].astype(np.float64)},
    "NaN": lambda found: {**found, "x": found["x"] * np.nan},
    "missing": lambda found: {name: found[name] for name in found if name != "x"},
    "one too many": lambda found: {**found, "bias": found["x"]},
}


OF_KERNEL = [("auto", spoil) for spoil in RESULTS.values()]
OF_REFERENCE = [("reference", RESULTS[name]) for name in ("of one number", "NaN", "missing")]


@pytest.mark.parametrize(("spoiled", "spoil"), [*OF_KERNEL, *OF_REFERENCE])
def test_results_of_another_form_are_wrong(
    spoiled: str, spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, results = Case("softmax", "form", lambda rng: {"x": np.ones((3, 5))}), check._results
    assert all(result.ok for result in check.check_kernels(case, "numpy", "float32"))

    def found(case: Case, backend: str, kernels: str, dtype: str, moved: int = 0) -> Any:
        given = results(case, backend, kernels, dtype, moved)
        return spoil(given) if kernels == spoiled and dtype == "float32" else given

    monkeypatch.setattr(check, "_results", found)
    assert not all(result.ok for result in check.check_kernels(case, "numpy", "float32"))

"""The kernels of attention on images against their reference: sizes, strides, threads, guard pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.kernels.numba.runtime import threads
from attnarray.kernels.numba.spatial import deformable, neighborhood
from attnarray.triples import find_triple
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS
from tests.support.row_calls import LAYOUTS

DTYPES = ["float32", "float64"]


class Call(NamedTuple):
    """A call of a function: the shapes of its arrays, and options."""

    function: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]
    points: tuple[float, ...] = ()  # coordinates of the first points

    def arrays(self, dtype: str, number: float = 0.0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        given = {name: rng.standard_normal(shape).astype(dtype) for name, shape in self.shapes.items()}
        if self.points:
            given["sampling_locations"] = (1.2 * rng.random(self.shapes["sampling_locations"]) - 0.1).astype(dtype)
            given["sampling_locations"].ravel()[: len(self.points)] = self.points
        return given

    def run(self, arrays: dict[str, np.ndarray], kernels: str = "numba") -> list[Any]:
        """Outputs and gradients."""
        triple = find_triple(getattr(aa, self.function))
        with aa.use_kernels(kernels):
            out, ctx = triple.fwd(**arrays, **self.options)
            dout = np.cos(np.arange(out.size, dtype=np.float64)).reshape(out.shape).astype(out.dtype)
            return [out, *(x for _, x in tree.flatten(triple.bwd(dout, ctx)) if x is not None)]


def neighbors(size: tuple[int, ...], heads: int, D: int, Dv: int, bias: bool = True, **options: Any) -> Call:
    shapes = {"query": (2, *size, heads, D), "key": (2, *size, heads, D), "value": (2, *size, heads, Dv)}
    if bias:
        shapes["relative_bias"] = (heads, *(2 * width - 1 for width in options["kernel_size"]))
    return Call("neighborhood_attention", shapes, options)


def points(levels: tuple[tuple[int, int], ...], queries: int, heads: int, D: int, count: int) -> Call:
    """Some points on pixels, at the border and far beyond it."""
    of = (2, queries, heads, len(levels), count)
    shapes = {"value": (2, sum(H * W for H, W in levels), heads, D), "attention_weights": of}
    first = (0.0, 0.5, 1.0, 0.0, 0.5, 0.5, 1e30, 0.5, -1e30, -1e30, 1.0, 1.0)[: 2 * count * queries]
    return Call("deformable_attention", {**shapes, "sampling_locations": (*of, 2)}, {"spatial_shapes": levels}, first)


CALLS = {
    "one point": points(((1, 1),), 1, 1, 1, 1),
    "an image of points": points(((9, 7),), 40, 3, 33, 3),
    "levels": points(((8, 12), (4, 6), (2, 3), (1, 1)), 50, 2, 16, 4),
    "one position": neighbors((1,), 1, 1, 1, kernel_size=(1,)),
    "a line": neighbors((37,), 3, 5, 20, kernel_size=(9,)),
    "a long dilated line": neighbors((200,), 2, 64, 33, False, kernel_size=(31,), dilation=5),
    "a causal line": neighbors((50,), 2, 16, 16, kernel_size=(12,), is_causal=True, dilation=3),
    "an image": neighbors((13, 10), 2, 32, 32, kernel_size=(7, 7)),
    "a dilated image": neighbors((9, 14), 3, 8, 130, kernel_size=(3, 5), dilation=(2, 2), is_causal=(True, False)),
    "a volume": neighbors(
        (4, 5, 9), 2, 17, 9, kernel_size=(3, 5, 3), dilation=(1, 1, 3), is_causal=(True, False, True)
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_as_exact_as_the_reference(name: str, dtype: str) -> None:
    call = CALLS[name]
    given = call.arrays(dtype)
    found, other = call.run(given), call.run(given, "reference")
    truth = call.run({key: x.astype(np.float64) for key, x in given.items()}, "reference")
    for result, beside, exact in zip(found, other, truth, strict=True):
        assert (result.shape, result.dtype) == (exact.shape, dtype)
        errors = [np.max(np.abs(x - exact)) for x in (result, beside)]
        assert errors[0] <= 2 * errors[1] + 40 * EPS[dtype] * np.max(np.abs(exact))  # other orders of sums


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides_and_read_only(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    for call in CALLS.values():
        given = call.arrays("float32")
        laid_out = {key: layout(x) if x.ndim == 4 else x for key, x in given.items()}
        for found, same in zip(call.run(laid_out), call.run(given), strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("name", CALLS)
def test_bits_do_not_depend_on_the_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name]
    given = call.arrays("float32")
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")
    expected = call.run(given)
    for count in ("2", "5"):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
        for found, same in zip(call.run(given), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_the_arrays_is_touched(place: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
    for call in CALLS.values():
        given = call.arrays(dtype)
        expected = call.run(given)
        with new_arrays(place, deformable if call.points else neighborhood):
            found = call.run({key: place(x) for key, x in given.items()})
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_array_equal(result, same)


def test_every_result_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.empty

    def poisoned(*args: Any, **options: Any) -> np.ndarray:
        array = empty(*args, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    for call in CALLS.values():
        given = call.arrays("float32")
        expected = call.run(given)
        with monkeypatch.context() as patch:
            patch.setattr(np, "empty", poisoned)
            found = call.run(given)
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_array_equal(result, same)

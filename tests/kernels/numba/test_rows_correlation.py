"""The kernels of correlations against their references: sizes that fill no tile, layouts, memory, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.rows import correlation
from attnarray.kernels.numba.runtime import threads
from attnarray.ops import correlate as reference
from tests.support.guards import assert_nothing_around, guarded
from tests.support.libraries import EPS
from tests.support.row_calls import LAYOUTS

# N, T, C, O, K, dilation. A tile has up to 12 steps or outputs and 32 lanes; sums are cut after 256 terms or steps.
SIZES = [
    (2, 9, 3, 5, 3, 2), (3, 13, 33, 31, 1, 1), (1, 300, 64, 12, 1, 1), (2, 24, 130, 65, 2, 5), (1, 1, 1, 1, 4, 1),
    (2, 259, 7, 40, 3, 1), (4, 12, 70, 24, 5, 1),
]  # fmt: skip
Results = tuple[np.ndarray, ...]


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SMALL": 0, "FEW": 0, "HALF": 10**9}.items():
        monkeypatch.setattr(correlation, name, value)


def arguments(sizes: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    """x, weight, bias and a cotangent, and then width and dilation."""
    N, T, C, outputs, K, dilation = sizes
    rng = np.random.default_rng(sizes)
    shapes = (N, T + (K - 1) * dilation, C), (outputs, C, K), (outputs,), (N, T, outputs)
    return *(rng.standard_normal(shape).astype(dtype) for shape in shapes), K, dilation


def results(module: Any, x: Any, weight: Any, bias: Any, dy: Any, width: int, dilation: int) -> Results:
    return (
        module.correlate(x, weight, bias, dilation), module.correlate(x, weight, None, dilation),
        module.correlate_weight_gradient(dy, x, width, dilation),
    )  # fmt: skip


def exact(*given: Any) -> Results:
    with aa.use_kernels("reference"):
        return results(reference, *given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_as_exact_as_the_reference(sizes: tuple[int, ...], dtype: str) -> None:
    given = arguments(sizes, dtype)
    truth = exact(*(x.astype("float64") for x in given[:4]), *given[4:])
    for found, other, expected in zip(results(correlation, *given), exact(*given), truth, strict=True):
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        scale = np.max(np.abs(expected))
        error, reference_error = (np.max(np.abs(array - expected)) for array in (found, other))
        assert error <= 2 * reference_error + 8 * EPS[dtype] * scale  # sums in another order


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_is_accepted_and_no_input_is_changed(layout: Any) -> None:
    for sizes in SIZES[:4]:
        given = arguments(sizes, "float32")
        expected = results(correlation, *given)
        laid = tuple(layout(x) for x in given[:4])
        for found, other in zip(results(correlation, *laid, *given[4:]), expected, strict=True):
            np.testing.assert_array_equal(found, other)
        for x, before in zip(laid, given, strict=False):
            np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_result_is_written_and_nothing_around_it(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(sizes, "float32")
    expected = results(correlation, *given)
    with guarded(monkeypatch) as made:
        found = results(correlation, *given)
    for result, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result, other)
    assert_nothing_around(made)


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        found.append([result for sizes in SIZES for result in results(correlation, *arguments(sizes, "float32"))])
    for others in found[1:]:
        for result, expected in zip(others, found[0], strict=True):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_convolutions_and_their_gradients_run_on_the_kernels(kernels: Any) -> None:
    x, weight, bias, _, _, _ = arguments((3, 90, 40, 36, 3, 1), "float64")
    with aa.use_kernels(kernels):
        chosen = {choice.kernel for choice in aa.explain(aa.conv1d, x, weight, bias).choices}
        assert ("reference" in chosen) == (kernels == "reference")
        assert aa.gradcheck(aa.conv1d, x[:1, :7], weight, bias).ok


def test_small_products_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    explanation = aa.explain(aa.conv1d, rng.standard_normal((2, 20, 32)), rng.standard_normal((32, 32, 3)))
    assert [(choice.kernel, choice.reason) for choice in explanation.choices] == [
        ("reference", "40 rows of 32 inputs and 32 outputs: a small product")
    ]

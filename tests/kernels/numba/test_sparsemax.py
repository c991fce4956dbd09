"""The kernels of sparse maps and of selection, besides the tests of all kernels along rows in test_rows.py."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray.attention.selection.top_k import choice_mask, top_k_indices
from attnarray.kernels import Declined
from attnarray.kernels.numba.rows import selection as row_selection
from attnarray.kernels.numba.rows import sparsemax as row_sparsemax
from attnarray.kernels.numba.runtime import threads
from attnarray.ops.entmax import _entmax
from tests.support.row_calls import LAYOUTS
from tests.support.table_calls import USABLE

pytestmark = pytest.mark.skipif(bool(USABLE["ops.entmax:_entmax", "numba"]), reason="these kernels cannot run here")
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def rows_of_all_kinds(dtype: str) -> dict[str, np.ndarray]:
    """Rows for which Newton's method might not converge, or to a wrong threshold."""
    n = np.arange(300)
    return {
        name: np.asarray(row, dtype)
        for name, row in {
            "equal": np.full(300, 3.3),
            "zeros": np.zeros(300) * (-1.0) ** n,
            "ever smaller": -(0.9**n),
            "harmonic": -1.0 / (n + 1.0),  # the support shrinks slowly
            "squares": -((n / 300.0) ** 2),
            "steps of a rounding": 1.0 + n * EPS[dtype],
            "all near the edge": np.where(n == 0, 0.0, -1.0 + n * EPS[dtype]),
            "huge": 1e30 * np.sin(n),
            "tiny": 1e-30 * np.sin(n),
            "one": [2.5],
            "two": [0.0, 1e-9],
        }.items()
    }


@each_dtype
@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("kind", rows_of_all_kinds("float64"))
def test_rows_of_all_kinds(kind: str, alpha: float, dtype: str) -> None:
    x = rows_of_all_kinds(dtype)[kind][None]
    exact = _entmax.reference(x.astype(np.float64), None, 1, alpha)
    found = row_sparsemax.entmax_forward(x, None, 1, alpha)
    np.testing.assert_allclose(found, exact, rtol=0, atol=4 * EPS[dtype])  # roundings of a sum of terms up to 1


@given(
    st.lists(st.floats(-3.0, 3.0, width=32) | st.sampled_from([0.0, -1.0, -2.0]), min_size=1, max_size=40),
    st.sampled_from([1.5, 2.0]),
)
def test_any_row(numbers: list[float], alpha: float) -> None:
    x = np.array([numbers])
    found = row_sparsemax.entmax_forward(x, None, 1, alpha)
    np.testing.assert_allclose(found, _entmax.reference(x, None, 1, alpha), rtol=0, atol=1e-14)


def test_other_alphas_go_to_the_reference() -> None:
    x = np.zeros((2, 3))
    with pytest.raises(Declined, match=r"alpha 1.3: 1.5 and 2 only"):
        row_sparsemax.entmax_forward(x, None, 1, 1.3)
    for alpha, kernel in ((1.3, "reference"), (1.5, "numba"), (2.0, "numba")):
        (choice,) = aa.explain(aa.entmax, x, alpha=alpha).choices
        assert choice.kernel == kernel
        _, pullback = aa.vjp(aa.entmax, x, alpha=alpha)
        (choice,) = aa.explain(pullback, x).choices
        assert choice.kernel == kernel


def numbers(shape: tuple[int, ...], dtype: str, kind: str) -> np.ndarray:
    rng = np.random.default_rng(shape)
    x = rng.standard_normal(shape)
    if kind == "ties":
        x = np.round(x)
    if kind == "infinities":
        x = np.where(rng.random(shape) < 0.3, -math.inf, np.where(rng.random(shape) < 0.1, math.inf, x))
    if kind == "far apart":
        x = np.sign(x) * 10.0 ** (30 * x.clip(-1, 1))
    return x.astype(dtype)


@each_dtype
@pytest.mark.parametrize("kind", ["normal", "ties", "infinities", "far apart"])
@pytest.mark.parametrize("count", [1, 2, 63, 128, 129, 1000])
def test_the_largest_are_those_of_sorting(count: int, kind: str, dtype: str) -> None:
    x = numbers((4, 5, count), dtype, kind)
    for k in sorted({1, 2, 3, count // 2, count - 1, count} & set(range(1, count + 1))):
        expected = top_k_indices.reference(x, k)
        found = row_selection.top_k_indices(x, k)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(row_selection.index_mask(found, count), choice_mask.reference(expected, count))
        np.testing.assert_array_equal(row_selection.index_mask(found, count).sum(-1), k)


def test_of_equal_numbers_the_first_are_chosen() -> None:
    x = np.array([[1.0, 2.0, 1.0, 1.0, 2.0], [0.0, -0.0, 0.0, -1.0, -0.0]])
    for select in (row_selection.top_k_indices, top_k_indices.reference):
        assert select(x, 3).tolist() == [[0, 1, 4], [0, 1, 2]]
        assert select(x, 1).tolist() == [[1], [0]]


def test_rows_with_nan_stay_within_their_results() -> None:
    x = np.full((3, 9), math.nan)
    x[1, 4] = 1.0
    found = row_selection.top_k_indices(x, 2)
    assert found.shape == (3, 2)
    assert found.min() >= -1
    assert found.max() < 9


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_is_accepted(layout: Any) -> None:
    x = numbers((6, 3, 70), "float32", "ties")
    np.testing.assert_array_equal(row_selection.top_k_indices(layout(x), 9), top_k_indices.reference(x, 9))
    indices = top_k_indices.reference(x, 9)
    np.testing.assert_array_equal(row_selection.index_mask(layout(indices), 70), choice_mask.reference(indices, 70))


def test_nothing_around_the_results_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    x, made = numbers((7, 130), "float32", "ties"), []
    expected = top_k_indices.reference(x, 5)

    def guarded(fill: int, shape: Any, dtype: Any = float) -> np.ndarray:
        size = int(np.prod(shape))
        around = np.full(size + 128, 77, dtype)
        around[64 : 64 + size] = fill
        made.append((around, size))
        return around[64 : 64 + size].reshape(shape)

    monkeypatch.setattr(np, "empty", functools.partial(guarded, -9))
    monkeypatch.setattr(np, "zeros", functools.partial(guarded, 0))
    found = row_selection.top_k_indices(x, 5)
    mask = row_selection.index_mask(found, 130)
    monkeypatch.undo()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask, choice_mask.reference(expected, 130))
    assert len(made) >= 2
    for around, size in made:
        assert np.all(np.delete(around, slice(64, 64 + size)) == np.array(77, around.dtype))


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers((130, 63), "float32", "ties")
    expected = top_k_indices.reference(x, 7)
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    for count in (1, 2, 5):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        np.testing.assert_array_equal(row_selection.top_k_indices(x, 7), expected)


def test_empty_rows_and_many_numbers() -> None:
    assert row_selection.top_k_indices(np.zeros((0, 5)), 2).shape == (0, 2)
    wide = np.broadcast_to(np.float32(0), (1, row_selection.MOST + 1))
    with pytest.raises(Declined, match="numbers in a row: at most 16777216"):
        row_selection.top_k_indices(wide, 2)


def test_attention_runs_on_the_kernels() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 4))
    ran = aa.explain(aa.sparsemax_attention, x, x, x).choices
    ran += aa.explain(aa.hard_attention, x, x, x, estimator="top_k", k=2).choices
    assert {choice.function: choice.kernel for choice in ran} == {
        "ops.entmax:_entmax": "numba",
        "attention.normalizers:masked_softmax": "numba",
        "attention.selection.top_k:top_k_indices": "numba",
        "attention.selection.top_k:choice_mask": "numba",
    }

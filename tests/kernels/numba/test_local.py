"""The kernels of local attention against their reference: sizes, windows, NaN, strides, threads, guard pages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.modifiers import Dropout, ScoreModifiers
from attnarray.attention.positional import local as mechanism
from attnarray.attention.positional.local_near import Around
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels import Declined
from attnarray.kernels.numba.attention import local
from attnarray.kernels.numba.runtime import threads
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS
from tests.support.row_calls import LAYOUTS

Arrays = tuple[np.ndarray, ...]  # q, k, v, centers, dout
Results = tuple[np.ndarray, ...]  # out, lse, dq, dk, dv, dcenters

# B, T, S, D, Dv and the window: below, at and above whole registers, groups of eight keys, and windows beyond the keys.
SIZES = [
    (1, 1, 1, 1, 1, 1), (2, 5, 9, 7, 6, 2), (3, 17, 63, 64, 40, 8), (2, 40, 300, 33, 130, 32), (2, 30, 20, 16, 8, 50),
    (5, 2, 3, 8, 16, 1), (1, 70, 130, 128, 1, 7), (2, 9, 2000, 4, 4, 3),
]  # fmt: skip
EMPTY = [(0, 2, 3, 4, 5, 1), (2, 0, 3, 4, 5, 1), (2, 3, 0, 4, 5, 1), (2, 3, 6, 0, 5, 1), (2, 3, 6, 4, 0, 1)]
DTYPES = ["float32", "float64"]


def arrays(sizes: tuple[int, ...], dtype: str, seed: int = 0, size: float = 1.0) -> Arrays:
    """Queries of such a size; every eighth center is on a key, and the first ones are at both ends."""
    rng = np.random.default_rng(seed)
    b, t, s, d, dv, _ = sizes
    q, k, v, dout = (rng.standard_normal(shape) for shape in ((b, 1, t, d), (b, 1, s, d), (b, 1, s, dv), (b, 1, t, dv)))
    centers = s * rng.random((b, 1, t))
    centers = np.where(rng.random(centers.shape) < 0.125, np.round(centers), centers)
    centers[:, :, :1], centers[:, :, 1:2] = 0.0, s
    return tuple(x.astype(dtype) for x in (size * q, k, v, centers, dout))


def scorings(sizes: tuple[int, ...]) -> list[ScoreModifiers]:
    """All options of the kernel; with lengths, the first sequence has no keys."""
    b, t, s, *_ = sizes
    lengths = np.minimum(np.arange(b) * 5, s)
    return [
        ScoreModifiers(0.7),
        ScoreModifiers(0.7, dropout=Dropout(1.0, 4, None)),
        ScoreModifiers(-1.3, softcap=2.0, kv_lengths=lengths),
        ScoreModifiers(0.7, right=0, q_offset=s - t, dropout=Dropout(0.3, 2**40 + 5, None)),
        ScoreModifiers(0.7, softcap=0.9, left=3, right=s // 2, q_offset=np.arange(b) * 2 - 1, kv_lengths=lengths,
                dropout=Dropout(0.3, 4, None)),
    ]  # fmt: skip


def run(
    given: Arrays, window: int, scoring: ScoreModifiers, kernels: str = "numba", sigma: float | None = None
) -> Results:
    q, k, v, centers, dout = given
    sigma = window / 2 if sigma is None else sigma
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):
        around = Around(centers, window, sigma)
        out, lse = mechanism.attend_around(q, k, v, around, scoring)
        delta = np.sum(np.where(out == 0, 0.0, dout * out), axis=-1)  # fully masked rows may have any cotangent
        grads = mechanism.attend_around_backward(dout, delta, None, q, k, v, around, lse, scoring)
    assert grads[4] is None
    return out, lse, *grads[:4]


def assert_right(
    given: Arrays, window: int, scoring: ScoreModifiers, sigma: float | None = None, sharpness: float = 1.0
) -> None:
    """As accurate as the reference, or within roundings of the sums; those of sharp scores are as much larger."""
    dtype = given[0].dtype
    found = run(given, window, scoring, sigma=sigma)
    other = run(given, window, scoring, "reference", sigma)
    truth = run(tuple(x.astype(np.float64) for x in given), window, scoring, "reference", sigma)
    for result, beside, exact in zip(found, other, truth, strict=True):
        assert (result.shape, result.dtype) == (exact.shape, dtype)
        np.testing.assert_array_equal(np.isneginf(result), np.isneginf(exact))
        finite = np.isfinite(exact)
        errors = (float(np.max(np.abs(x[finite] - exact[finite]), initial=0.0)) for x in (result, beside))
        scale = float(np.max(np.abs(exact[finite]), initial=1.0))
        roundings = sharpness * {"float32": 8, "float64": 40}[dtype.name]  # in float64 the reference is not the truth
        assert next(errors) <= 2 * next(errors) + roundings * EPS[dtype.name] * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES + EMPTY, ids=str)
def test_sizes(sizes: tuple[int, ...], dtype: str) -> None:
    for scoring in scorings(sizes):
        assert_right(arrays(sizes, dtype), sizes[-1], scoring)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", [1e-3, 0.3, 4.0, 1e6])
def test_narrow_and_wide_gaussians(sigma: float, dtype: str) -> None:
    assert_right(arrays((2, 30, 50, 16, 8, 5), dtype), 5, ScoreModifiers(0.7), sigma)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 10.0, 100.0])
def test_sharp_and_flat_scores(size: float, dtype: str) -> None:
    given = arrays((2, 30, 50, 16, 8, 5), dtype, size=size)
    for scoring in scorings((2, 30, 50, 16, 8, 5)):
        assert_right(given, 5, scoring, sharpness=max(size, 1.0))
        assert all(np.all(np.isfinite(x) | np.isneginf(x)) for x in run(given, 5, scoring))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_outside_all_windows_are_not_read(dtype: str) -> None:
    given = arrays((2, 9, 70, 20, 12, 3), dtype)
    q, k, v, centers, dout = given
    centers = 10.3 + 0.25 * np.arange(9, dtype=dtype) + np.zeros((2, 1, 1), dtype)  # keys 8 to 15
    lengths = np.array([70, 12])
    scoring = ScoreModifiers(0.7, kv_lengths=lengths)
    expected = run((q, k, v, centers, dout), 3, scoring)
    hidden = (np.arange(70) < 8) | (np.arange(70) > 15) | (np.arange(70) >= lengths[:, None, None])  # (2, 1, 70)
    dirty = (np.where(hidden[..., None], np.nan, x).astype(dtype) for x in (k, v))
    for found, same in zip(run((q, *dirty, centers, dout), 3, scoring), expected, strict=True):
        np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visible_nan_propagates(dtype: str) -> None:
    for place, number in ((0, 1), (1, 1), (2, 1), (3, 0)):  # of q, k, v and the centres
        given = [x.copy() for x in arrays((2, 9, 30, 20, 12, 3), dtype)]
        given[place][(number, 0, 4)] = math.nan
        found, expected = (run(tuple(given), 3, ScoreModifiers(0.7), kernels) for kernels in ("numba", "reference"))
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.isnan(result), np.isnan(same))
            np.testing.assert_allclose(result, same, rtol=0, atol=1e-4)
        assert np.any(np.isnan(found[0]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_and_read_only(layout: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
    for sizes in SIZES[1:4]:
        given, scoring = arrays(sizes, dtype), scorings(sizes)[-1]
        expected = run(given, sizes[-1], scoring)
        for found, same in zip(run(tuple(map(layout, given)), sizes[-1], scoring), expected, strict=True):
            np.testing.assert_allclose(found, same, rtol=0, atol=8 * EPS[dtype])  # delta sums in another order


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arrays((3, 19, 70, 50, 36, 4), "float32")
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")
    expected = run(given, 4, ScoreModifiers(0.7, right=30))
    for count in ("2", "3", "5"):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
        for found, same in zip(run(given, 4, ScoreModifiers(0.7, right=30)), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_the_arrays_is_touched(place: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
    for sizes in SIZES:
        given, scoring = arrays(sizes, dtype), scorings(sizes)[-1]
        expected = run(given, sizes[-1], scoring)
        with new_arrays(place, local):
            found = run(tuple(place(x) for x in given), sizes[-1], scoring)
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_array_equal(result, same)


def test_every_result_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.empty

    def poisoned(*args: Any, **options: Any) -> np.ndarray:
        array = empty(*args, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    for sizes in SIZES:
        given, scoring = arrays(sizes, "float32"), scorings(sizes)[-1]
        expected = run(given, sizes[-1], scoring)
        with monkeypatch.context() as patch:
            patch.setattr(np, "empty", poisoned)
            found = run(given, sizes[-1], scoring)
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_array_equal(result, same)


DECLINED = {
    "mask": ScoreModifiers(1.0, mask=np.ones((1, 1, 5, 9), bool)),
    "bias": ScoreModifiers(1.0, bias=np.ones((1, 1, 5, 9))),
    "dropout_mask": ScoreModifiers(1.0, dropout=Dropout(0.5, 0, np.ones((1, 1, 5, 9), bool))),
}


def test_what_the_kernels_decline_goes_to_the_reference() -> None:
    q, k, v, centers, _ = arrays((2, 5, 9, 7, 6, 2), "float64")
    for name, scoring in DECLINED.items():
        with pytest.raises(Declined, match=f"^{name}: (windows are read as a whole|dropout is drawn)"):
            local.attend_around(q, k, v, Around(centers, 2, 1.0), scoring)
        with pytest.raises(KernelUnavailableError, match=f"cannot run there: {name}: "), aa.use_kernels("numba"):
            mechanism.attend_around(q, k, v, Around(centers, 2, 1.0), scoring)
        explained = aa.explain(mechanism.attend_around, q, k, v, Around(centers, 2, 1.0), scoring)
        assert explained.choices[0][:2] == ("attention.positional.local:attend_around", "reference")
    with pytest.raises(Declined, match="dtype float16: float32 and float64 only"):
        local.attend_around(q.astype("f2"), k, v, Around(centers, 2, 1.0), ScoreModifiers(1.0))


def test_16_bit_floats_are_computed_by_the_kernel_too() -> None:
    rng = np.random.default_rng(0)
    x, position = rng.standard_normal((2, 9, 8)).astype(np.float16), rng.standard_normal((8, 8)).astype(np.float16)
    options = {"alignment": "predictive", "window": 2}
    explained = aa.explain(aa.local_attention, x, x, x, position, position[0], **options)
    assert ("attention.positional.local:attend_around", "numba", "") in explained.choices


def test_the_kernels_have_the_signatures_of_their_references() -> None:
    for name in ("attend_around", "attend_around_backward"):
        kernel, reference = getattr(local, name), getattr(mechanism, name)
        assert list(inspect.signature(kernel).parameters) == list(inspect.signature(reference).parameters)

"""Kernels of additive attention against their reference: sizes, large numbers, NaN, strides, threads, guard pages."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.alignment import additive as reference
from attnarray.kernels.numba.attention import additive
from attnarray.kernels.numba.runtime import threads
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS

Arrays = tuple[np.ndarray, ...]

# B, T, S, A: below, at and above whole vectors, groups of four keys and tiles of 64 keys.
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 5, 7, 16), (2, 17, 63, 31), (1, 70, 130, 128), (2, 1, 65, 33), (5, 2, 3, 8)]
EMPTY = [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)]
DTYPES = ["float32", "float64"]


def arrays(sizes: tuple[int, ...], dtype: str, size: float = 1.0, seed: int = 0) -> Arrays:
    """q, k, w and dscores."""
    rng = np.random.default_rng(seed)
    batch, queries, keys, features = sizes
    shapes = (batch, 1, queries, features), (batch, 1, keys, features), (features,), (batch, 1, queries, keys)
    q, k, w, dscores = (rng.standard_normal(shape) for shape in shapes)
    return tuple(x.astype(dtype) for x in (size * q, size * k, w, dscores))


def run(inputs: Arrays, kernels: str = "numba") -> Arrays:
    """The scores, and the gradients of q, k and w."""
    q, k, w, dscores = inputs
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):
        return (
            reference.additive_scores(q, k, w),
            *reference.additive_scores_backward(dscores, q, k, w),
        )


def assert_right(inputs: Arrays) -> None:
    """As accurate as the reference, or within roundings of the sums, whose terms are at most the weights' size."""
    q, k, w, dscores = inputs
    eps = EPS[q.dtype.name] * (8 if q.dtype == np.float64 else 1)  # where the reference is not the truth
    largest = float(np.max(np.abs(dscores), initial=0.0))
    sums = np.sum(np.abs(w)), largest * k.shape[2], largest * q.shape[2], largest * dscores.size**0.5
    truth = run(tuple(x.astype(np.float64) for x in inputs), "reference")
    for found, other, exact, size in zip(run(inputs), run(inputs, "reference"), truth, sums, strict=True):
        assert found.shape == exact.shape
        assert found.dtype == q.dtype
        bound = 2 * float(np.max(np.abs(other - exact), initial=0.0)) + 2 * eps * size
        np.testing.assert_allclose(found, exact, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES + EMPTY)
def test_sizes(sizes: tuple[int, ...], dtype: str) -> None:
    assert_right(arrays(sizes, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-6, 8.0, 100.0, 1e4, 1e30])
def test_numbers_of_any_size(size: float, dtype: str) -> None:
    """At 8 some exponentials are near the limits of float32; above, exponentials are of sums."""
    assert_right(arrays((2, 9, 70, 20), dtype, size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_far_apart_whose_sum_is_small(dtype: str) -> None:
    q, k, w, dscores = arrays((2, 9, 70, 20), dtype)
    assert_right((q + 1000, k - 1000, w, dscores))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinities_stay_with_their_pairs(dtype: str) -> None:
    q, k, w, dscores = arrays((2, 9, 70, 20), dtype)
    q[0, 0, 3, 5], k[1, 0, 60, 7] = np.nan, np.nan
    k[0, 0, 2], q[1, 0, 0] = np.inf, -np.inf
    bad = np.zeros(dscores.shape, bool)
    bad[0, 0, 3], bad[1, 0, :, 60] = True, True
    scores, *_ = run((q, k, w, dscores))
    assert np.array_equal(np.isnan(scores), bad)
    np.testing.assert_allclose(scores[~bad], run((q, k, w, dscores), "reference")[0][~bad], rtol=0, atol=1e-5)
    hidden = np.where(bad, 0, dscores)  # as masks do
    for found, other in zip(run((q, k, w, hidden))[1:], run((q, k, w, hidden), "reference")[1:], strict=True):
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_and_read_only(dtype: str) -> None:
    inputs = arrays((2, 9, 70, 20), dtype)
    expected = run(inputs)
    changed = [np.asfortranarray(x) for x in inputs], [np.repeat(x, 2, axis=-1)[..., ::2] for x in inputs]
    for others in changed:
        for x in others:
            x.flags.writeable = False
        for found, same in zip(run(tuple(others)), expected, strict=True):
            np.testing.assert_array_equal(found, same)


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arrays((3, 9, 70, 50), "float32")
    expected = run(inputs)
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    for count in ("2", "3", "5"):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
        for found, same in zip(run(inputs), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_nothing_beyond_the_arrays_is_touched(place: Callable[[np.ndarray], np.ndarray], size: float) -> None:
    for sizes in SIZES:
        for dtype in DTYPES:
            inputs = arrays(sizes, dtype, size)
            expected = run(inputs)
            with new_arrays(place, additive):
                found = run(tuple(place(x) for x in inputs))
            for result, same in zip(found, expected, strict=True):
                np.testing.assert_array_equal(result, same)


def test_forward_and_backward_hold_no_hidden_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")  # the peak of several threads depends on their timing
    size, features = 192, 64
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, size, features), dtype=np.float32)
    w = q[0, 0]

    def run_both() -> None:
        out, ctx = aa.additive_attention_fwd(q, k, v, w)
        aa.additive_attention_bwd(out, ctx)

    run_both()  # compiles
    tracemalloc.start()
    try:
        run_both()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scores = q.itemsize * size**2
    assert peak < 8 * scores < scores * features / 4


def test_the_size_of_the_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, k, v, w = (rng.standard_normal(shape) for shape in ((2, 40, 6), (2, 30, 6), (2, 30, 5), (6,)))
    bias = rng.standard_normal((40, 30))
    mask = rng.random((2, 1, 30)) < 0.7

    def results() -> list[Any]:
        out, ctx = aa.additive_attention_fwd(q, k, v, w, mask, bias=bias, is_causal=True)
        return [out, *aa.additive_attention_bwd(np.cos(out), ctx)]

    expected = results()
    monkeypatch.setattr("attnarray.attention.blocks.BLOCK_ELEMENTS", 2 * 30 * 8 * 7)
    for found, same in zip(results(), expected, strict=True):
        np.testing.assert_allclose(found, same, rtol=0, atol=1e-13)

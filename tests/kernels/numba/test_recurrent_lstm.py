"""The kernels of `lstm` against their reference: sizes that fill no tile, masks, both directions, memory, threads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.recurrent import lstm as kernels
from attnarray.kernels.numba.runtime import threads
from attnarray.ops.lstm import LSTMResult
from tests.support.guards import assert_nothing_around, guarded

# N, T, I, H. A tile has up to 12 sequences and 32 units; sums are cut after 256 terms.
SIZES = [(5, 4, 3, 2), (16, 3, 5, 33), (1, 6, 4, 70), (13, 2, 3, 130), (2, 0, 3, 5), (0, 3, 2, 4)]
OPTIONS = list(itertools.product((False, True), repeat=2))
LIMIT = {"float32": 1e-5, "float64": 1e-13}  # rounding of sums of up to 520 terms in another order, relative to 1


def arguments(sizes: tuple[int, ...], dtype: str, masked: bool) -> tuple[dict[str, Any], LSTMResult[Any]]:
    """All arguments of `lstm`, and cotangents of its results. At masked positions, x is NaN."""
    N, T, inputs, H = sizes
    rng = np.random.default_rng(sizes)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)

    given: dict[str, Any] = {
        "x": drawn(N, T, inputs), "weight_ih": drawn(4 * H, inputs), "weight_hh": drawn(4 * H, H),
        "bias_ih": drawn(4 * H), "bias_hh": drawn(4 * H), "h0": drawn(N, H), "c0": drawn(N, H),
    }  # fmt: skip
    if masked:
        given["mask"] = rng.random((N, T)) < 0.7
        given["x"][~given["mask"]] = np.nan
    return given, LSTMResult(drawn(N, T, H), drawn(N, H), drawn(N, H))


def results(given: dict[str, Any], dresult: LSTMResult[Any], reverse: bool, *modes: Any) -> list[np.ndarray]:
    """Results and gradients; the first mode is that of the forward, the last one that of the backward."""
    with aa.use_kernels(modes[0]):
        result, ctx = aa.lstm_fwd(**given, reverse=reverse)
    with aa.use_kernels(modes[-1]):
        return [*result, *aa.lstm_bwd(dresult, ctx)[:7]]  # no peepholes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("modes", [("auto",), ("auto", "reference"), ("reference", "auto")], ids=" ".join)
def test_as_the_reference(sizes: tuple[int, ...], dtype: str, modes: tuple[Any, ...]) -> None:
    for reverse, masked in OPTIONS:
        given, dresult = arguments(sizes, dtype, masked)
        expected = results(given, dresult, reverse, "reference")
        for found, other in zip(results(given, dresult, reverse, *modes), expected, strict=True):
            assert (found.dtype, found.shape) == (dtype, other.shape)
            np.testing.assert_allclose(
                found, other, rtol=0, atol=LIMIT[dtype] * max(1.0, np.max(np.abs(other), initial=0))
            )


def test_every_result_is_written_and_nothing_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for sizes, (reverse, masked) in itertools.product(SIZES, OPTIONS):
        given, dresult = arguments(sizes, "float32", masked)
        expected = results(given, dresult, reverse, "auto")
        with guarded(monkeypatch) as made:
            found = results(given, dresult, reverse, "auto")
        for result, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(result, other)
        assert_nothing_around(made)


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setattr(kernels, "LEAST", 1)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        calls = [arguments(sizes, "float32", True) for sizes in SIZES]
        found.append([array for given, dresult in calls for array in results(given, dresult, False, "auto")])
    for others in found[1:]:
        for result, expected in zip(others, found[0], strict=True):
            np.testing.assert_array_equal(result, expected)


def test_lstm_runs_on_the_kernels() -> None:
    given, _ = arguments((3, 4, 5, 6), "float32", False)
    chosen = {choice.function: choice.kernel for choice in aa.explain(aa.lstm, **given).choices}
    assert chosen["ops.lstm:_steps"] != "reference"

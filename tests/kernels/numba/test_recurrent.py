"""Kernels of recurrent scores against their reference: sizes, masks, NaN, segments, strides, threads, guard pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.alignment.recurrent import Rows, ScoreParams, recurrent_scores, recurrent_scores_backward
from attnarray.kernels.numba.recurrent import scores as recurrent
from attnarray.kernels.numba.runtime import threads
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS

Arrays = list[np.ndarray]
Sizes = tuple[int, ...]

# B, T, S, H, A: below, at and above whole vectors and groups of rows; panels within a batch and over several.
SIZES = [
    (1, 1, 1, 1, 1), (2, 3, 5, 4, 3), (3, 17, 9, 7, 5), (2, 40, 20, 33, 20), (1, 16, 70, 8, 6), (3, 32, 4, 12, 13),
    (2, 1, 66, 3, 2),
]  # fmt: skip
EMPTY = [(0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 3, 0, 33, 5), (2, 3, 4, 0, 5), (2, 3, 4, 5, 0)]
DTYPES = ["float32", "float64"]


class Call:
    """The arguments of both kernels."""

    def __init__(self, rows: Rows, scorer: ScoreParams, dscores: np.ndarray) -> None:
        self.rows, self.scorer, self.dscores = rows, scorer, dscores

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Call:
        rows = Rows(*(None if x is None else change(x) for x in self.rows))
        return Call(rows, ScoreParams(*map(change, self.scorer)), change(self.dscores))

    def in_dtype(self, dtype: str) -> Call:
        return self.map(lambda x: x if x.dtype == bool else x.astype(dtype))

    def run(self, kernels: str = "numba") -> Arrays:
        """Scores, and the gradients of queries, keys, h0, c0, W_hh, W_r and v."""
        with aa.use_kernels(kernels), np.errstate(invalid="ignore"):
            scores = recurrent_scores(*self.rows, self.scorer)
            drows, dscorer = recurrent_scores_backward(self.dscores, self.rows, self.scorer)
        assert drows.steps is None
        return [scores, *drows[:4], *dscorer]


def call(sizes: Sizes, dtype: str, steps: np.ndarray | None = None, seed: int = 0) -> Call:
    batch, queries, keys, size, features = sizes
    rng = np.random.default_rng(seed)
    shapes = (
        (batch, queries, 4 * size), (batch, keys, 4 * size), (batch, queries, size), (batch, queries, size),
        (4 * size, size), (features, size), (features,), (batch, 1, queries, keys),
    )  # fmt: skip
    *rows, hidden, output, vector, dscores = (rng.standard_normal(shape) for shape in shapes)
    scorer = ScoreParams(hidden / max(size, 1) ** 0.5, output / max(size, 1) ** 0.5, vector)
    return Call(Rows(*rows, steps), scorer, dscores).in_dtype(dtype)


def masks(sizes: Sizes) -> list[np.ndarray | None]:
    """Everywhere, anywhere, some rows without a step, a window that leaves out the ends, and nowhere."""
    batch, queries, keys = sizes[:3]
    rng = np.random.default_rng(1)
    some = rng.random((batch, queries, keys)) < 0.7
    rare = some & (rng.random((batch, queries, 1)) < 0.5)
    apart = np.arange(keys) - np.arange(queries)[:, None]
    window = np.broadcast_to((apart > 2) & (apart < keys // 2 + 1), some.shape)
    return [None, some, rare, window, np.zeros_like(some)]


def assert_right(given: Call, largest: float = 1.0) -> None:
    """As accurate as the reference, or within roundings of the `largest` sums; in float64 it is not the truth."""
    dtype = given.dscores.dtype.name
    roundings = (16 if dtype == "float32" else 64) * largest
    truth = given.in_dtype("float64").run("reference")
    for found, other, exact in zip(given.run(), given.run("reference"), truth, strict=True):
        assert found.shape == exact.shape
        assert found.dtype == dtype
        bound = 2 * float(np.max(np.abs(other - exact), initial=0.0))
        bound += roundings * EPS[dtype] * float(np.max(np.abs(exact), initial=1.0))
        np.testing.assert_allclose(found, exact, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES + EMPTY)
def test_sizes_and_masks(sizes: Sizes, dtype: str) -> None:
    for steps in masks(sizes):
        assert_right(call(sizes, dtype, steps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_numbers(dtype: str) -> None:
    """Gates that are exactly 0 or 1."""
    given = call((2, 9, 12, 7, 5), dtype)
    rows = Rows(*(None if x is None else 100 * x for x in given.rows))
    assert_right(Call(rows, given.scorer, given.dscores), 100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_that_are_visible_to_no_query_may_be_nan(dtype: str) -> None:
    sizes = (2, 19, 12, 7, 5)
    steps = np.random.default_rng(2).random(sizes[:3]) < 0.7
    hidden = np.array([0, 3, 11])
    steps[:, :, hidden] = False
    given = call(sizes, dtype, steps)
    given.rows.keys[:, hidden] = 0
    expected = given.run()
    for bad in (np.nan, np.inf, -np.inf):
        given.rows.keys[:, hidden] = bad
        for found, same in zip(given.run(), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["queries", "keys", "h0", "c0"])
def test_visible_nan_propagates(name: str, dtype: str) -> None:
    """Where the reference has it and nowhere else."""
    sizes = (3, 11, 12, 7, 5)
    steps = np.random.default_rng(2).random(sizes[:3]) < 0.8
    steps[1, :7, 4] = False
    given = call(sizes, dtype, steps)
    getattr(given.rows, name)[1, 4, 2] = np.nan
    for found, other in zip(given.run(), given.run("reference"), strict=True):
        assert np.any(np.isnan(found))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(other))


@pytest.mark.parametrize("sizes", [(3, 5, 8, 6, 4), (2, 20, 8, 6, 4)])
def test_sequences_of_a_batch_are_independent(sizes: Sizes) -> None:
    """Also where rows of several batches are lanes of one panel."""
    given = call(sizes, "float32", masks(sizes)[1])
    together = given.run()
    for b in range(sizes[0]):
        rows = Rows(*(None if x is None else x[b : b + 1] for x in given.rows))
        alone = Call(rows, given.scorer, given.dscores[b : b + 1]).run()
        for found, same in zip(together[:5], alone, strict=False):
            if found.shape[1] == sizes[2]:  # the gradient of the keys: sums over lanes, in another order
                np.testing.assert_allclose(found[b : b + 1], same, rtol=0, atol=1e-5)
            else:
                np.testing.assert_array_equal(found[b : b + 1], same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed gates are equal; only products over lanes are summed in other groups."""
    sizes = (2, 19, 23, 7, 5)
    for steps in masks(sizes):
        given = call(sizes, dtype, steps)
        expected = given.run()
        for held in (1, 2000, 5000, 12000):
            monkeypatch.setattr(recurrent, "HELD", held)
            found = given.run()
            for result, same in zip(found[:5], expected, strict=False):
                np.testing.assert_array_equal(result, same)
            assert_right(given)
        monkeypatch.undo()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_and_read_only(dtype: str) -> None:
    sizes = (2, 9, 12, 7, 5)
    given = call(sizes, dtype, masks(sizes)[1])
    expected = given.run()
    for change in (np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2]):
        changed = given.map(change)
        changed.map(_frozen)
        for found, same in zip(changed.run(), expected, strict=True):
            np.testing.assert_array_equal(found, same)


def _frozen(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("sizes", [(3, 40, 12, 7, 5), (40, 3, 12, 7, 5), (1, 70, 12, 7, 5)])
def test_threads(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and gradients of queries and states are equal bit by bit; sums over queries are in other groups."""
    for steps in masks(sizes):
        given = call(sizes, "float32", steps)
        expected = given.run()
        monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
        for count in ("2", "3", "5"):
            monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
            found = given.run()
            for place in (0, 1, 3, 4):
                np.testing.assert_array_equal(found[place], expected[place])
            assert_right(given)
        monkeypatch.undo()


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
def test_nothing_beyond_the_arrays_is_touched(
    place: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not beyond the scratch."""
    for sizes in SIZES + EMPTY:
        for dtype in DTYPES:
            for steps in masks(sizes)[:2]:
                given = call(sizes, dtype, steps)
                for held in (recurrent.HELD, 3000):
                    monkeypatch.setattr(recurrent, "HELD", held)
                    expected = given.run()
                    with new_arrays(place, recurrent):
                        found = given.map(place).run()
                    for result, same in zip(found, expected, strict=True):
                        np.testing.assert_array_equal(result, same)
                monkeypatch.undo()

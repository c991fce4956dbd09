"""Gathers and sums of the array code of local attention: bits, rows, blocks, and peak memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.ops.segments import sum_segments
from attnarray.random import attention_keep_mask, attention_keep_mask_at
from tests.attention.test_local import OPTIONS, PREDICTIVE, ROUNDING, B, D, Dv, T, each_kernels, pulled
from tests.support.libraries import assert_close, assert_trees_close

RNG = np.random.default_rng(5)


def test_dropout_at_single_keys_draws_the_bits_of_the_whole() -> None:
    keys = RNG.integers(0, 50, (B, T, 7))
    for query in (3, -2, np.array([5, 0, 2**31])):
        whole = attention_keep_mask(2**40 + 5, 0.3, (B, 1, T, 50), np, None, query, 0)[:, 0]
        found = attention_keep_mask_at(2**40 + 5, 0.3, keys, np, None, query)
        np.testing.assert_array_equal(found, np.take_along_axis(whole, keys, axis=2))
    assert 0.5 < np.mean(whole) < 0.9


@pytest.mark.parametrize(("count", "size"), [(1, 40), (7, 40), (500, 40), (3, 0), (3, 1)])
def test_sums_of_rows_by_index(count: int, size: int) -> None:
    values, places = RNG.standard_normal((size, 3)), RNG.integers(0, count, size)
    expected = np.zeros((count, 3))
    np.add.at(expected, places, values)
    assert_close(sum_segments(values, places, count), expected, ROUNDING)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_the_size_of_the_blocks_does_not_matter(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with aa.use_kernels("reference"):
        expected = pulled(**PREDICTIVE, **options)
        monkeypatch.setattr("attnarray.attention.blocks.BLOCK_ELEMENTS", 2 * B * 5 * (D + Dv))  # two queries
        assert_trees_close(pulled(**PREDICTIVE, **options), expected, ROUNDING)


def peak_of(keys: int, queries: int, kernels: str, backward: bool) -> int:
    """The peak bytes of a run, less the gradients of keys and values."""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((1, n, 8)) for name, n in (("query", queries), ("key", keys), ("value", keys))}
    position = {"position_weight": rng.standard_normal((8, 8)), "position_vector": rng.standard_normal(8)}
    options = {**position, "window": 8, "alignment": "predictive"}
    with aa.use_kernels(kernels):
        out, ctx = aa.local_attention_fwd(**given, **options)
        aa.local_attention_bwd(out, ctx)  # both are compiled now, or loaded, which takes memory, too
        tracemalloc.start()
        try:
            if backward:
                aa.local_attention_bwd(out, ctx)
            else:
                aa.local_attention_fwd(**given, **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return peak - (2 * given["key"].nbytes if backward else 0)


@each_kernels
@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_queries_times_window_and_not_with_keys(
    kernels: str, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")  # the peak of several threads depends on their timing
    few, many = (peak_of(keys, 64, kernels, backward) for keys in (1024, 16384))
    sums = 4 * 15360 * 8 * 8 if backward and kernels == "reference" else 0  # of one block, besides those of the others
    assert many < 1.2 * few + sums + 20_000 < 64 * 16384 * 8  # scores of all pairs
    assert peak_of(1024, 256, kernels, backward) > 2 * few

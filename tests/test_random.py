"""Random numbers: the published Philox vectors, the same bits on every backend, and statistics."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import Philox, random, to_numpy, use_backend
from attnarray.backend import library_name
from attnarray.random import (
    FLAT_STREAM,
    WORD,
    as_seed,
    attention_keep_mask,
    keep_mask,
    philox_4x32,
    seed_words,
    threshold,
)
from tests.support.libraries import LIBRARIES, Library, assert_close

# Known answers of Random123 (kat_vectors, philox 4x32-10): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox 4x32-10 in Python's integers, which do not overflow."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second % 2**32, (first >> 32) ^ d ^ m, first % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def words_of(library: Library, counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """The results (N, 4) for counters (N, 4)."""
    columns = tuple(library.array(np.ascontiguousarray(column)) for column in counters.T)
    return np.stack([to_numpy(word) for word in philox_4x32(columns, key)], axis=1)


def test_published_vectors(library: Library) -> None:
    for counter, key, expected in KNOWN:
        assert philox_in_integers(counter, key) == expected
        assert words_of(library, np.array([counter], np.int64), key).tolist() == [list(expected)]


def test_random_counters(library: Library) -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (50, 4), dtype=np.int64)
    key = tuple(rng.integers(0, 2**32, 2).tolist())
    expected = [philox_in_integers(tuple(counter), key) for counter in counters.tolist()]
    assert words_of(library, counters, key).tolist() == [list(words) for words in expected]


@pytest.mark.parametrize(("query", "key"), [(0, 0), (3, 6), (-2, 1), ([5, -1], 11)])
def test_attention_dropout_is_keyed_by_positions(query: Any, key: int, library: Library) -> None:
    seed, p, (b, h, t, s) = 2**63 + 12345, 0.3, (2, 3, 4, 7)
    rows = np.broadcast_to(query, (b,)).tolist()
    expected = np.zeros((b, h, t, s), bool)
    for n, m, i, j in np.ndindex(b, h, t, s):
        counter = ((key + j) // 4, (rows[n] + i) % 2**32, m, n)
        word = philox_in_integers(counter, (seed % 2**32, seed >> 32))[(key + j) % 4]
        expected[n, m, i, j] = word >= round(p * 2**32)
    first = library.array(np.array(query)) if isinstance(query, list) else query
    like = library.array(np.zeros(1))
    found = attention_keep_mask(seed, p, (b, h, t, s), aa.namespace_of(like), library.device, first, key)
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_elementwise_dropout_is_keyed_by_the_index(library: Library) -> None:
    seed, p = 7, 0.6
    like = library.array(np.zeros(1))
    found = to_numpy(keep_mask(seed, p, (3, 5), aa.namespace_of(like), library.device)).ravel()
    for n in range(15):
        word = philox_in_integers((n // 4, 0, 0, FLAT_STREAM), (seed, 0))[n % 4]
        assert found[n] == (word >= round(p * 2**32))


def test_numbers_do_not_repeat_after_2_to_the_34(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of that size are too large for a test: here the counter of blocks begins where it needs a second word."""
    blocks = random._arange
    monkeypatch.setattr(random, "_arange", lambda xp, device, a, b: blocks(xp, device, a + 2**32, b + 2**32))
    found = keep_mask(7, 0.6, (6,), np, None)
    words = [philox_in_integers((n // 4, 1, 0, FLAT_STREAM), (7, 0))[n % 4] for n in range(6)]
    assert found.tolist() == [word >= round(0.6 * 2**32) for word in words]


def test_dropout_of_every_kind_is_the_same_on_every_library(library: Library) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    given = library.array(x)
    options = {"dropout_p": 0.5, "rng": 3, "is_causal": True, "q_offset": 2}
    assert_close(
        aa.scaled_dot_product_attention(given, given, given, **options),
        aa.scaled_dot_product_attention(x, x, x, **options),
        1e-14,
    )
    assert_close(aa.dropout(given, 0.5, rng=4), aa.dropout(x, 0.5, rng=4), 0.0)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_keep_masks_keep_as_many_as_they_should(p: float) -> None:
    shape = (4, 8, 40, 50)
    for keep in (attention_keep_mask(11, p, shape, np, None, 0, 0), keep_mask(11, p, shape, np, None)):
        sigma = math.sqrt(p * (1 - p) / keep.size)
        assert abs(float(keep.mean()) - (1 - p)) <= 5 * sigma
        for axis in range(4):  # neighbors are equal as often as independent bits
            first = np.moveaxis(keep, axis, 0)
            agree = float((first[1:] == first[:-1]).mean())
            expected = p**2 + (1 - p) ** 2
            spread = math.sqrt(expected * (1 - expected) / first[1:].size)
            # Pairs that share an element are not independent when p is not 1/2: their variance is at most threefold.
            assert abs(agree - expected) <= 5 * math.sqrt(3) * spread


def test_the_threshold_is_p_in_32_bits() -> None:
    assert [threshold(p) for p in (0.0, 0.25, 1.0)] == [0, 2**30, 2**32]


def test_different_seeds_heads_and_batches_differ() -> None:
    masks = np.stack([attention_keep_mask(seed, 0.5, (2, 3, 40, 50), np, None, 0, 0) for seed in (1, 2, 2**32 + 1)])
    for first, second in itertools.combinations(masks.reshape(-1, 40 * 50), 2):
        agreeing = float((first == second).mean())
        assert abs(agreeing - 0.5) < 5 * 0.5 / math.sqrt(first.size)


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert Philox(3).normal((4, 5)).tolist() == Philox(3).normal((4, 5)).tolist()
    assert Philox(3).uniform((9,)).tolist() == Philox(3).uniform((3, 3)).ravel().tolist()
    assert Philox(3) == Philox(np.int64(3))
    assert Philox(3).split(3) == tuple(Philox(3).fold_in(n) for n in range(3))


def test_parts_of_a_generator_are_independent() -> None:
    seeds = {Philox(s).fold_in(n).seed for s in range(50) for n in range(50)}
    assert len(seeds) == 2500
    assert Philox(1).fold_in(2).fold_in(3) != Philox(1).fold_in(3).fold_in(2)
    streams = np.stack([rng.uniform((20_000,), dtype="float64") for rng in (Philox(5), *Philox(5).split(4))])
    correlations = np.corrcoef(streams)[np.triu_indices(5, 1)]
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(20_000)


def test_uniform_numbers() -> None:
    x = Philox(1).uniform((100_000,), -1.0, 3.0, "float64")
    count = x.size
    assert x.min() >= -1.0
    assert x.max() < 3.0
    assert abs(x.mean() - 1.0) < 5 * math.sqrt(16 / 12 / count)
    assert abs(x.var() - 16 / 12) < 5 * (16 / 12) * math.sqrt(0.8 / count)  # the kurtosis of a uniform number is 1.8
    for dtype in ("float16", "float32"):
        low_bits = Philox(1).uniform((100_000,), dtype=dtype)
        assert low_bits.dtype == dtype
        assert float(low_bits.max()) < 1.0, f"{dtype} rounds up to the bound that is left out"


def test_normal_numbers() -> None:
    x = Philox(2).normal((100_000,), 2.0, "float64") / 2.0
    count = x.size
    assert abs(x.mean()) < 5 / math.sqrt(count)
    assert abs((x**2).mean() - 1) < 5 * math.sqrt(2 / count)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / count)
    inside = float((np.abs(x) < 1).mean())
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 5 * 0.5 / math.sqrt(count)


@pytest.mark.parametrize("name", [library.name for library in LIBRARIES])
def test_numbers_are_the_same_on_every_library(name: str) -> None:
    with use_backend(name):
        uniform, normal = Philox(9).uniform((3, 5), -2.0, 1.0), Philox(9).normal((3, 5), dtype="float64")
    assert library_name(uniform) == library_name(normal) == name
    np.testing.assert_array_equal(to_numpy(uniform), Philox(9).uniform((3, 5), -2.0, 1.0))
    np.testing.assert_allclose(to_numpy(normal), Philox(9).normal((3, 5), dtype="float64"), rtol=1e-13)  # log and cos


def test_numbers_of_every_dtype_and_no_numbers() -> None:
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        assert Philox(0).normal((2, 3), dtype=dtype).dtype.name == dtype
        assert Philox(0).uniform((2, 0), dtype=dtype).shape == (2, 0)
    assert Philox(0).normal(()).shape == ()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "3", None])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"`seed` is .*, expected an integer from 0 to 2\^64 - 1"):
        Philox(seed)
    with pytest.raises(ValueError, match=r"`rng` is .*, expected attnarray.Philox\(seed\) or a seed from 0 to"):
        as_seed(seed)


def test_seeds_have_64_bits() -> None:
    assert seed_words(2**64 - 1) == (WORD, WORD)
    assert seed_words(5 * 2**32 + 7) == (7, 5)
    assert as_seed(Philox(5)) == as_seed(5) == 5

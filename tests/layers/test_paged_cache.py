"""The cache in pages: equal to contiguous keys and values, forks that share pages, trees of drafts, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray.layers import PagedCache
from tests.support.libraries import Library, assert_close

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 3, 5
ROUNDING = 1e-13  # of sums of some ten numbers near 1


def cache_of(pages: int = 20, size: int = 4) -> PagedCache:
    return PagedCache(pages, size, KV_HEADS, DIM, VALUE_DIM, "float64")


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((KV_HEADS, count, DIM)), rng.standard_normal((KV_HEADS, count, VALUE_DIM))


class Whole:
    """Sequences as plain lists of keys and values, to compare with."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def append(self, sequence: int, key: np.ndarray, value: np.ndarray) -> None:
        keys, values = self.of[sequence]
        self.of[sequence] = np.concatenate([keys, key], axis=1), np.concatenate([values, value], axis=1)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["add", "append", "fork", "free", "truncate"]), st.integers(0, 99), st.integers(0, 9)),
    max_size=25,
)


@given(ACTIONS, st.integers(1, 5), st.integers(3, 12))
def test_any_actions_keep_all_sequences(actions: list[tuple[str, int, int]], size: int, pages: int) -> None:
    """Every sequence holds what was appended to it, whatever its forks do; no page is lost or given twice."""
    cache, whole = cache_of(pages, size), Whole()
    for n, (action, choice, count) in enumerate(actions):
        known = list(whole.of)
        sequence = known[choice % len(known)] if known else -1
        if action == "add" or not known:
            whole.of[cache.add()] = drawn(0)
        elif action == "fork":
            whole.of[cache.fork(sequence)] = whole.of[sequence]
        elif action == "free":
            cache.free(sequence)
            del whole.of[sequence]
        elif action == "truncate":
            length = min(count, cache.length(sequence))
            cache.truncate(sequence, length)
            whole.of[sequence] = tuple(x[:, :length] for x in whole.of[sequence])  # type: ignore[assignment]
        else:
            new = drawn(count, n)
            try:
                cache.append(sequence, *new)
                whole.append(sequence, *new)
            except ValueError as error:
                assert "nothing was written" in str(error)  # noqa: PT017  # the other case is compared below
        used = {page for s in whole.of for page in cache.table(s)}
        assert cache.pages_in_use == len(used)
        assert cache.free_pages == pages - len(used)
    for sequence, (key, value) in whole.of.items():
        found = cache.contents(sequence)
        np.testing.assert_array_equal(found[0], key)
        np.testing.assert_array_equal(found[1], value)


@pytest.mark.parametrize("options", [{}, {"window": (3, 0), "softcap": 2.0}, {"sinks": np.ones(HEADS)}])
def test_decoding_is_that_of_a_contiguous_cache(options: dict[str, Any], library: Library) -> None:
    cache, lengths = cache_of(), (9, 4)
    rng, sequences, expected = np.random.default_rng(5), [cache.add(), cache.add()], []
    query = rng.standard_normal((2, HEADS, 2, DIM))
    for n, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        key, value = drawn(length, n)
        for start in range(0, length, 3):
            cache.append(sequence, *(library.array(x[:, start : start + 3]) for x in (key, value)))
        whole = query[n : n + 1], key[None], value[None]
        expected.append(aa.scaled_dot_product_attention(*whole, is_causal=True, q_offset=length - 2, **options))
    moved = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    assert_close(cache.attention(library.array(query), sequences, **moved), np.concatenate(expected), ROUNDING)


def test_a_fork_shares_pages_until_it_writes() -> None:
    cache = cache_of(size=4)
    first = cache.add()
    cache.append(first, *drawn(6))
    second = cache.fork(first)
    assert cache.pages_in_use == 2
    assert cache.table(first) == cache.table(second)
    cache.append(second, *drawn(1, 7))
    assert cache.pages_in_use == 3
    assert cache.table(first)[0] == cache.table(second)[0]
    assert cache.table(first)[1] != cache.table(second)[1]
    np.testing.assert_array_equal(cache.contents(first)[0], drawn(6)[0])
    cache.append(first, *drawn(1, 8))  # the page is its own again: no copy
    assert cache.pages_in_use == 3
    cache.free(first)
    np.testing.assert_array_equal(cache.contents(second)[0][:, :6], drawn(6)[0])
    cache.free(second)
    assert cache.pages_in_use == 0


def test_a_tree_of_drafts_is_verified_by_one_call() -> None:
    """Each node of a tree has the output that it has at the end of its own branch."""
    parents, context = np.array([-1, 0, 0, 1, 2]), 5
    rng = np.random.default_rng(9)
    query, (key, value), (k_new, v_new) = rng.standard_normal((1, HEADS, 5, DIM)), drawn(context), drawn(5, 1)
    cache = cache_of()
    prompt = cache.add()
    cache.append(prompt, key, value)
    drafts = cache.fork(prompt)
    cache.append(drafts, k_new, v_new)
    found = cache.attention(query, [drafts], aa.Tree(parents, start=context))
    for node in range(5):
        branch, walk = [node], node
        while parents[walk] >= 0:
            walk = int(parents[walk])
            branch.insert(0, walk)
        alone = cache.fork(prompt)
        cache.append(alone, k_new[:, branch], v_new[:, branch])
        expected = cache.attention(query[:, :, node : node + 1], [alone])
        np.testing.assert_allclose(found[:, :, node : node + 1], expected, rtol=0, atol=ROUNDING)
        cache.free(alone)


def test_nothing_is_lost_when_pages_are_exhausted() -> None:
    cache = cache_of(pages=3, size=4)
    first = cache.add()
    cache.append(first, *drawn(10))
    second = cache.fork(first)
    before = cache.contents(first), cache.table(first), cache.table(second)
    message = "1 more positions of sequence 1 need 1 pages of 4 positions, but 0 of the 3 are free.*nothing was written"
    with pytest.raises(ValueError, match=message):
        cache.append(second, *drawn(1))
    assert (cache.table(first), cache.table(second), cache.length(second)) == (*before[1:], 10)
    np.testing.assert_array_equal(cache.contents(first)[1], before[0][1])
    cache.free(first)
    cache.append(second, *drawn(2))
    assert cache.length(second) == 12


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "pages": (ValueError, lambda c: PagedCache(0, 4, 2, 3), "`num_pages` is 0, expected an integer >= 1"),
    "dtype": (ValueError, lambda c: PagedCache(2, 4, 2, 3, dtype="int8"), "`dtype` is 'int8'"),
    "unknown": (ValueError, lambda c: c.append(7, *drawn(1)), "`sequence` is 7, expected one of the cache: 0"),
    "freed": (ValueError, lambda c: (c.free(0), c.length(0)), "`sequence` is 0, expected one of the cache: none"),
    "heads": (ValueError, lambda c: c.append(0, drawn(1)[0][:1], drawn(1)[1]), r"`key` has shape \(1, 1, 3\)"),
    "positions": (ValueError, lambda c: c.append(0, drawn(1)[0], drawn(2)[1]), r"`value` has shape"),
    "other dtype": (TypeError, lambda c: c.append(0, *(x.astype("f4") for x in drawn(1))), "the cache has float64"),
    "longer": (ValueError, lambda c: c.truncate(0, 1), "`length` is 1, expected an integer from 0 to 0"),
    "early": (ValueError, lambda c: c.attention(np.ones((1, 4, 1, 3)), [0]), "Append their keys and values first"),
    "offset": (TypeError, lambda c: c.attention(np.ones((1, 4, 0, 3)), [0], q_offset=1), "sets `q_offset` itself"),
    "queries": (ValueError, lambda c: c.attention(np.ones((2, 4, 1, 3)), [0]), r"`query` has shape \(2, 4, 1, 3\)"),
}


@pytest.mark.parametrize(("error", "call", "expected"), BAD.values(), ids=list(BAD))
def test_says_what_is_wrong(error: type[Exception], call: Any, expected: str) -> None:
    cache = cache_of()
    cache.add()
    with pytest.raises(error, match=expected):
        call(cache)

"""Masks in tiles: random expressions of the algebra against their definition, what is skipped, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray.masks.geometry import Sizes
from attnarray.masks.tiles import EMPTY, FULL, TileMask, tile_mask
from tests.support.mask_expressions import BATCH, HEADS, KEYS, QUERIES, Expression, dense, expressions

SIZES = Sizes((BATCH,), HEADS, QUERIES, KEYS)
LONG = Sizes((1,), 1, 1000, 1100)


@given(expressions(), st.sampled_from([3, 4, 8, 64]), st.integers(0, 9))
def test_tiles_have_the_bits_of_the_definition(expression: Expression, size: int, q_offset: int) -> None:
    tiles = tile_mask(expression.mask, SIZES, q_offset, None, size)
    expected = dense(expression, q_offset)
    np.testing.assert_array_equal(np.broadcast_to(tiles.dense(0, QUERIES), expected.shape), expected)
    np.testing.assert_array_equal(np.broadcast_to(tiles.dense(5, 9), expected[:, :, 5:9].shape), expected[:, :, 5:9])
    found = expression.mask.to_dense(QUERIES, KEYS, q_offset=q_offset, batch=(BATCH,), heads=HEADS)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


@given(expressions(), st.sampled_from([4, 5]))
def test_the_ranges_of_a_row_hold_all_keys_that_are_seen(expression: Expression, size: int) -> None:
    tiles = tile_mask(expression.mask, SIZES, 0, None, size)
    seen = dense(expression).any(axis=(0, 1))
    for row in range(tiles.table.shape[2]):
        inside = np.zeros(KEYS, bool)
        for first, past in tiles.columns(row):
            assert first % size == 0
            assert not inside[first:past].any()
            inside[first:past] = True
        assert (inside | ~seen[row * size : (row + 1) * size].any(axis=0)).all()


def test_offsets_of_batches_have_tiles_of_their_own() -> None:
    offsets = np.array([0, 4])
    tiles = tile_mask(aa.Causal() | aa.Global(1), SIZES, offsets, None, 4)
    for b, offset in enumerate(offsets):
        expected = (aa.Causal() | aa.Global(1)).to_dense(QUERIES, KEYS, q_offset=int(offset))
        np.testing.assert_array_equal(tiles.dense(0, QUERIES)[b, 0], expected)


def test_keys_of_a_part_have_positions_in_the_whole() -> None:
    mask = aa.Window(3, 2) | aa.Global(2)
    tiles = tile_mask(mask, SIZES, 1, 5, 4)
    np.testing.assert_array_equal(tiles.dense(0, QUERIES)[0, 0], mask.to_dense(QUERIES, KEYS + 5, q_offset=1)[:, 5:])


def shares(tiles: TileMask) -> tuple[float, float]:
    return float(np.mean(tiles.table == EMPTY)), float(np.mean(tiles.table == FULL))


def test_patterns_are_sparse_and_keep_few_tiles() -> None:
    """Of Longformer's pattern few tiles are different, whatever the length: memory does not grow with T S."""
    counts = []
    for length in (1000, 2000):
        tiles = tile_mask(aa.Window(100, 100) | aa.Global(16), Sizes((1,), 1, length, length), 0, None)
        counts.append(tiles.tiles.shape[0])
        assert shares(tiles)[0] > 0.4
    assert max(counts) < 20
    every = tile_mask(aa.Causal() | ~aa.Causal(), LONG, 0, None)
    assert shares(every)[1] == 1
    assert tile_mask(aa.Prefix(5000), LONG, 0, None).table.all()
    assert shares(tile_mask(aa.Causal() | aa.Prefix(10), LONG, 0, None))[1] > 0.4
    assert tile_mask(aa.Blocks(np.eye(9, dtype=bool), 128), LONG, 0, None).tiles.shape[0] == 2  # no mask is needed


def test_documents_skip_tiles_of_others() -> None:
    ids = np.arange(1000) // 200
    tiles = tile_mask(aa.Documents(ids, ids), Sizes((), 1, 1000, 1000), 0, None)
    assert shares(tiles)[0] > 0.6
    np.testing.assert_array_equal(tiles.dense(0, 1000)[0, 0], ids[:, None] == ids)


def test_explain_says_which_mask_has_no_rule() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 130, 3))
    causal = aa.Predicate(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx)
    with aa.use_kernels("reference"):
        text = str(aa.explain(aa.scaled_dot_product_attention, x, x, x, aa.Window(3, 0) | causal))
        other = str(aa.explain(aa.scaled_dot_product_attention, x, x, x, aa.Window(3, 0) | aa.Global(2)))
    assert "67% of the tiles of 64 x 64 are computed" in text
    assert "every pair was asked about, as Predicate has no rule for tiles" in text
    assert "asked about" not in other


X = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "union": (TypeError, lambda: aa.Causal() | np.ones(3, bool), r"`\|` joins masks, but got an array"),
    "prefix": (ValueError, lambda: aa.Prefix(-1), "`Prefix.length` is -1, expected an integer >= 0"),
    "prefix, batch": (
        ValueError, lambda: attend(aa.Causal() | aa.Prefix(np.array([1, 2, 3]))), r"`Prefix.length` has shape \(3,\)",
    ),
    "global": (TypeError, lambda: aa.Global(1.5), "`Global.tokens` is 1.5"),
    "global, axes": (ValueError, lambda: aa.Global(np.ones((2, 2), int)), "expected an integer or the positions"),
    "strided": (ValueError, lambda: aa.Strided(0), "`Strided.stride` is 0, expected an integer >= 1"),
    "random blocks": (ValueError, lambda: aa.RandomBlocks(0, count=0), "`RandomBlocks.count` is 0"),
    "random blocks, part": (
        ValueError,
        lambda: aa.attention_partial(X, X, X, aa.RandomBlocks(0), kv_offset=3),
        "draws among all keys, of which a part is given",
    ),
    "blocks": (TypeError, lambda: aa.Blocks(np.ones((2, 2)), 2), "`Blocks.table` has dtype float64"),
    "blocks, axes": (ValueError, lambda: aa.Blocks(np.ones(2, bool), 2), r"expected \(Q, K\), \(H, Q, K\)"),
    "blocks, sizes": (ValueError, lambda: aa.Blocks(np.ones((2, 2), bool), (1, 2, 3)), "`Blocks.size` is"),
    "blocks, range": (
        ValueError,
        lambda: attend(aa.Blocks(np.ones((2, 2), bool), 2)),
        "`Blocks.table` has 2 blocks of 2 queries, for positions from 0 to 3, but there are queries in the blocks",
    ),
    "blocks, heads": (
        ValueError, lambda: attend(aa.Blocks(np.ones((4, 3, 3), bool), 2)), "`Blocks.table` has shape",
    ),
    "tree": (ValueError, lambda: aa.Tree(np.array([0])), "a parent that does not come before its node"),
    "tree, batch": (ValueError, lambda: attend(aa.Tree(np.array([[-1]]))), "`Tree.parents` has batch"),
    "predicate": (TypeError, lambda: aa.Predicate(3), "`Predicate.allowed` is 3, expected a function"),
    "predicate, dtype": (
        TypeError, lambda: attend(aa.Predicate(lambda b, h, q, k: q - k)), "expected a boolean array",
    ),
    "predicate, shape": (
        ValueError, lambda: attend(aa.Predicate(lambda b, h, q, k: np.ones((7, 9), bool))), "that broadcasts to",
    ),
}  # fmt: skip


def attend(mask: aa.Mask) -> Any:
    return aa.scaled_dot_product_attention(X, X, X, mask)


@pytest.mark.parametrize(("error", "call", "expected"), BAD.values(), ids=list(BAD))
def test_masks_say_what_is_wrong(error: type[Exception], call: Any, expected: str) -> None:
    with pytest.raises(error, match=expected):
        call()


def test_an_error_of_a_predicate_says_where_it_comes_from() -> None:
    def wrong(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        raise KeyError("no")

    with pytest.raises(KeyError) as caught:
        attend(aa.Predicate(wrong))
    assert "attnarray.Predicate" in caught.value.__notes__[0]

"""Attention to chosen blocks: all blocks are dense attention, tiles equal masks, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa

RNG = np.random.default_rng(7)
B, H, HKV, T, D, DV = 2, 4, 2, 13, 5, 6
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((B, H, T, D), (B, HKV, T, D), (B, HKV, T, DV)))
GATES = RNG.random((B, H, T, 3))


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_all_blocks_are_dense_attention(is_causal: bool, by_block: bool) -> None:
    options = {"top_k": 5, "block_size": 3, "is_causal": is_causal, "by_block": by_block}
    out, pullback = aa.vjp(aa.block_topk_attention, QUERY, KEY, VALUE, **options)
    expected, dense = aa.vjp(aa.scaled_dot_product_attention, QUERY, KEY, VALUE, is_causal=is_causal)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    for found, other in zip(pullback(np.cos(out))[:3], dense(np.cos(out))[:3], strict=True):
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-13)


def test_blocks_of_one_are_the_largest_scores() -> None:
    out = aa.block_topk_attention(QUERY, KEY, VALUE, top_k=4, block_size=1)
    expected = aa.hard_attention(QUERY, KEY, VALUE, estimator="top_k", k=4).out
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", range(3))
def test_each_gate_opens_its_branch(n: int) -> None:
    gates = np.zeros_like(GATES)
    gates[..., n] = 1.0
    out = aa.block_topk_attention(QUERY, KEY, VALUE, gates, top_k=2, block_size=3, window=2, is_causal=True)
    means = [np.stack([x[:, :, s : s + 3].mean(2) for s in range(0, T, 3)], 2) for x in (KEY, VALUE)]
    ended = np.arange(len(means[0][0, 0])) * 3 + 2 <= np.arange(T)[:, None]
    _, ctx = aa.block_topk_attention_fwd(QUERY, KEY, VALUE, gates, top_k=2, block_size=3, window=2, is_causal=True)
    chosen = np.repeat(ctx.chosen, 3, axis=3)[..., :T]
    expected = [
        lambda: aa.scaled_dot_product_attention(QUERY, *means, ended),
        lambda: aa.scaled_dot_product_attention(QUERY, KEY, VALUE, chosen, is_causal=True),
        lambda: aa.scaled_dot_product_attention(QUERY, KEY, VALUE, window=(2, 0)),
    ][n]()
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)


def test_heads_of_a_group_choose_together_with_gates() -> None:
    _, ctx = aa.block_topk_attention_fwd(QUERY, KEY, VALUE, GATES, top_k=2, block_size=3, window=2)
    np.testing.assert_array_equal(ctx.chosen[:, 0::2], ctx.chosen[:, 1::2])
    assert np.all(ctx.chosen.sum(-1) == 2)


def test_a_causal_query_sees_its_own_block_and_nothing_later() -> None:
    _, ctx = aa.block_topk_attention_fwd(QUERY, KEY, VALUE, top_k=1, block_size=3, is_causal=True)
    own = np.arange(5) == (np.arange(T) // 3)[:, None]
    np.testing.assert_array_equal(ctx.chosen, np.broadcast_to(own, ctx.chosen.shape))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no blocks": ({"top_k": 0}, "`top_k` is 0"),
    "empty blocks": ({"block_size": 0}, "`block_size` is 0"),
    "gates alone": ({"gates": GATES}, "`gates` and `window` belong together"),
    "a window alone": ({"window": 3}, "`gates` and `window` belong together"),
    "two gates": ({"gates": GATES[..., :2], "window": 3}, "`gates` has shape (2, 4, 13, 2)"),
    "fewer queries": ({"query": QUERY[:, :, :5], "is_causal": True}, "`is_causal` needs as many queries as keys"),
    "three axes": ({"query": QUERY[0]}, "`query` has shape (4, 13, 5), expected four axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        aa.block_topk_attention(**{"query": QUERY, "key": KEY, "value": VALUE, "top_k": 2, "block_size": 3, **changed})
    assert message in str(caught.value)

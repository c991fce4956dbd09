"""Heads: gates by differences, ablation by outputs, and scores of patterns that are planted."""

from __future__ import annotations

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret
from attnarray.interpret import statistics

RNG = np.random.default_rng(0)
ENCODER = aa.models.Encoder(dim=8, num_layers=2, num_heads=2, init_std=0.5)
PARAMS = ENCODER.init(aa.Philox(0), "float64")
X, DY = RNG.standard_normal((2, 2, 5, 8))


def test_importance_is_the_derivative_by_a_gate() -> None:
    _, ctx = ENCODER.fwd(PARAMS, X)
    found = interpret.head_importance(PARAMS, ENCODER.bwd(DY, ctx).params, 2)
    for layer in (0, 1):
        for head in (0, 1):
            losses = []
            for gate in (1 + 1e-5, 1 - 1e-5):
                weight = PARAMS["blocks"][layer]["attention"]["out"]["weight"].copy()
                weight[:, 4 * head : 4 * head + 4] *= gate
                path = ("blocks", layer, "attention", "out", "weight")
                losses.append((DY * ENCODER(aa.tree.replace(PARAMS, path, weight), X)).sum())
            difference = (losses[0] - losses[1]) / 2e-5
            np.testing.assert_allclose(found[f"blocks.{layer}.attention"][head], difference, rtol=1e-6)


def test_without_all_heads_attention_adds_its_bias() -> None:
    ablated = interpret.without_heads(PARAMS, {"blocks.0.attention": [0, 1]}, 2)
    attention = ENCODER.block.parts()["attention"]
    y = attention(ablated["blocks"][0]["attention"], X)
    np.testing.assert_array_equal(y, np.broadcast_to(ablated["blocks"][0]["attention"]["out"]["bias"], y.shape))
    assert ablated["blocks"][1] is PARAMS["blocks"][1]
    assert (PARAMS["blocks"][0]["attention"]["out"]["weight"] != 0).all()


def test_scores_of_planted_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD", 20)
    tokens = np.array([[5, 3, 8, 5, 3, 8], [1, 2, 3, 4, 5, 6]])
    bias = np.full((2, 2, 6, 6), -1e9)
    bias[:, 0, np.arange(6), np.maximum(np.arange(6) - 1, 0)] = 0.0  # head 0: the previous token
    bias[:, 1, np.arange(6), np.maximum(np.arange(6) - 2, 0)] = 0.0  # head 1: what followed, three tokens before
    q = np.zeros((2, 2, 6, 4))
    _, ctx = aa.scaled_dot_product_attention_fwd(q, q, q, bias=bias)
    np.testing.assert_allclose(interpret.previous_token_scores(ctx), [[1, 0.2], [1, 0.2]])
    np.testing.assert_allclose(interpret.induction_scores(ctx, tokens), [[0, 1], [0, 0]])


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="has no multi-head attention"):
        interpret.head_importance({"weight": X}, {"weight": X}, 2)
    with pytest.raises(ValueError, match="must divide the columns"):
        interpret.head_importance(PARAMS, PARAMS, 3)
    with pytest.raises(ValueError, match="expected paths of attention"):
        interpret.without_heads(PARAMS, {"blocks.7": [0]}, 2)
    with pytest.raises(ValueError, match=r"a head of blocks\.0\.attention"):
        interpret.without_heads(PARAMS, {"blocks.0.attention": [2]}, 2)
    q, k = np.ones((1, 2, 3, 4)), np.ones((1, 2, 5, 4))
    _, cross = aa.scaled_dot_product_attention_fwd(q, k, k)
    with pytest.raises(ValueError, match="expected self-attention"):
        interpret.previous_token_scores(cross)
    with pytest.raises(ValueError, match="tokens"):
        interpret.induction_scores(cross, np.ones((1, 5), int))

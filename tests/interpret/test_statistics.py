"""Statistics of attention weights: those of naive loops over the weights, for every mechanism and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret
from attnarray.interpret import statistics

RNG = np.random.default_rng(0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (3, 2)},
    "lengths": {"kv_lengths": [5, 0]},
    "mask": {"attn_mask": RNG.random((2, 4, 7, 9)) < 0.5},
    "sinks": {"sinks": RNG.standard_normal(4)},
    "offset": {"q_offset": 2, "is_causal": True},
    "tiles": {"attn_mask": aa.Causal() | aa.Prefix(2)},
    "bias": {"bias": RNG.standard_normal((4, 7, 9))},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout_p": 0.5, "rng": 3},
}


def naive(weights: np.ndarray, offset: int, num_first: int) -> tuple[np.ndarray, ...]:
    """Entropy, distance and weight of the first keys of each query, by loops."""
    entropy, distance, first = (np.zeros(weights.shape[:-1]) for _ in range(3))
    for place in np.ndindex(*weights.shape):
        p, i, j = weights[place], place[-2] + offset, place[-1]
        if p > 0:
            entropy[place[:-1]] -= p * np.log(p)
        distance[place[:-1]] += p * abs(i - j)
        if j < num_first:
            first[place[:-1]] += p
    return entropy, distance, first


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_statistics_are_those_of_the_weights(name: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD", 100)  # a few rows at a time
    q, k, v = (RNG.standard_normal((2, heads, T, 8)) for heads, T in ((4, 7), (kv_heads, 9), (kv_heads, 9)))
    _, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, **OPTIONS[name])
    expected = naive(aa.attention_weights(ctx), OPTIONS[name].get("q_offset", 0), 2)
    for found, value in zip(interpret.attention_statistics(ctx, num_first=2), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)


def test_layouts_and_mechanisms_without_heads() -> None:
    q, k = RNG.standard_normal((2, 5, 3, 4)), RNG.standard_normal((2, 6, 3, 4))
    _, ctx = aa.scaled_dot_product_attention_fwd(q, k, k, layout="BTHD")
    assert interpret.attention_statistics(ctx).entropy.shape == (2, 3, 5)
    assert interpret.top_keys(ctx, 2).indices.shape == (2, 3, 5, 2)
    query, key = RNG.standard_normal((2, 5, 4)), RNG.standard_normal((2, 6, 4))
    _, additive = aa.additive_attention_fwd(query, key, key, np.ones(4))
    found = interpret.attention_statistics(additive)
    for each, value in zip(found, naive(aa.attention_weights(additive), 0, 1), strict=True):
        np.testing.assert_allclose(each, value, rtol=0, atol=1e-12)
    _, location = aa.location_attention_fwd(query, key, key, np.ones(4), np.ones((3, 5)), np.ones((4, 3)))
    assert interpret.top_keys(location, 6).weights.shape == (2, 5, 6)


def test_top_keys_are_sorted_and_cut_to_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD", 30)
    q, k, v = RNG.standard_normal((3, 1, 2, 7, 4))
    _, ctx = aa.scaled_dot_product_attention_fwd(q, k, v)
    weights = aa.attention_weights(ctx, slice(2, 6))
    found = interpret.top_keys(ctx, 3, queries=slice(2, 6))
    np.testing.assert_array_equal(found.indices, np.argsort(-weights, axis=-1)[..., :3])
    np.testing.assert_allclose(found.weights, -np.sort(-weights, axis=-1)[..., :3])
    assert interpret.top_keys(ctx, 3, queries=slice(7, 7)).indices.shape == (1, 2, 0, 3)


def test_contexts_of_models_have_the_paths_of_parameters() -> None:
    tokens = np.array([[3, 1, 4, 1]])
    gpt = aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=2, num_heads=2)
    params = gpt.init(aa.Philox(0))
    _, ctx = gpt.fwd(params, tokens)
    assert list(interpret.attention_contexts(ctx)) == ["blocks.0.attention", "blocks.1.attention"]
    transformer = aa.models.Transformer(9, 9, 8, dim=8, num_layers=1, num_heads=2, hidden_dim=16, dropout=0.0)
    _, both = transformer.fwd(transformer.init(aa.Philox(0)), tokens, tokens)
    found = interpret.attention_contexts(both)
    assert list(found) == ["encoder.blocks.0.attention", "decoder.blocks.0.attention", "decoder.blocks.0.cross"]
    assert all(interpret.attention_statistics(each).entropy.shape == (1, 2, 4) for each in found.values())


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, (1, 2)])
def test_what_is_no_context_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="holds no attention with weights"):
        interpret.attention_contexts(value)
    with pytest.raises(TypeError, match="expected the context"):
        interpret.attention_statistics(value)


def test_neighborhoods_have_weights_but_no_distances() -> None:
    x = RNG.standard_normal((1, 5, 6, 2, 4))
    _, ctx = aa.neighborhood_attention_fwd(x, x, x, kernel_size=3)
    with pytest.raises(TypeError, match="NeighborhoodContext, whose positions are not those of one sequence"):
        interpret.attention_statistics(ctx)
    weights = aa.attention_weights(ctx)
    np.testing.assert_allclose(interpret.top_keys(ctx, 3).weights, -np.sort(-weights, axis=-1)[..., :3])


def test_recomputed_contexts_and_wrong_numbers_are_errors() -> None:
    model = aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2, recompute=True)
    _, ctx = model.fwd(model.init(aa.Philox(0)), np.array([[1, 2]]))
    with pytest.raises(ValueError, match="recompute=False"):
        interpret.attention_contexts(ctx)
    q = RNG.standard_normal((1, 2, 4, 8))
    _, own = aa.scaled_dot_product_attention_fwd(q, q, q)
    with pytest.raises(ValueError, match="`k` is 5"):
        interpret.top_keys(own, 5)
    with pytest.raises(ValueError, match="has step 2"):
        interpret.top_keys(own, 1, queries=slice(0, 4, 2))
    with pytest.raises(ValueError, match="num_first"):
        interpret.attention_statistics(own, num_first=-1)

"""Attributions: gradients of weights against differences, relevance against its formula, integrals against f."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret
from attnarray.interpret import statistics

RNG = np.random.default_rng(0)


def test_gradient_times_attention_sums_to_the_gradient_of_the_output() -> None:
    q, k, v, dout = (RNG.standard_normal((2, heads, 5, 4)) for heads in (4, 2, 2, 4))
    out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    found = interpret.gradient_times_attention(ctx, dout)
    weights = aa.attention_weights(ctx)
    expected = weights * np.einsum("bhid,bhjd->bhij", dout, np.repeat(v, 2, axis=1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=-1), (dout * out).sum(axis=-1), rtol=0, atol=1e-12)  # delta
    np.testing.assert_allclose(interpret.gradient_times_attention(ctx, dout, slice(1, 3)), expected[:, :, 1:3])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_relevance_is_its_formula(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD", 50)
    encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2, init_std=0.5)
    x = RNG.standard_normal((2, 5, 8))
    with aa.use_kernels(backend):
        y, ctx = encoder.fwd(encoder.init(aa.Philox(0), "float64"), x)
        contexts = interpret.attention_contexts(ctx)
        douts = interpret.attention_cotangents(contexts, lambda: encoder.bwd(np.ones_like(y), ctx))
        found = interpret.relevance(contexts, douts)
    expected = np.broadcast_to(np.eye(5), (2, 5, 5))
    for name, own in contexts.items():
        weights = aa.attention_weights(own)
        gradients = np.einsum("bhid,bhjd->bhij", own.layout.canonical(douts[name]), own.v)
        expected = expected + np.maximum(weights * gradients, 0.0).mean(axis=1) @ expected
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(interpret.relevance(contexts, douts, queries=slice(0, 1)), expected[:, :1], atol=1e-12)


def test_cotangents_are_those_of_the_loss() -> None:
    """The cotangent of an attention's output, times a change of its values, is the change of the loss."""
    layer = aa.layers.MultiHeadAttention(dim=8, num_heads=2)
    params, x = layer.init(aa.Philox(0), "float64"), RNG.standard_normal((1, 4, 8))
    dy = RNG.standard_normal((1, 4, 8))
    _, ctx = layer.fwd(params, x)
    contexts = interpret.attention_contexts(ctx)
    douts = interpret.attention_cotangents(contexts, lambda: layer.bwd(dy, ctx))
    expected = (dy @ params["out"]["weight"]).reshape(1, 4, 2, 4).swapaxes(1, 2)
    (found,) = douts.values()
    canonical = next(iter(contexts.values())).layout.canonical(found)
    np.testing.assert_allclose(canonical, expected, rtol=0, atol=1e-12)


def test_integrated_gradients_add_up_to_the_difference() -> None:
    encoder = aa.models.Encoder(dim=8, num_layers=1, num_heads=2)
    params, x = encoder.init(aa.Philox(0), "float64"), RNG.standard_normal((1, 3, 8))
    weights = RNG.standard_normal((1, 3, 8))

    def gradient(x: Any) -> tuple[float, Any]:
        y, ctx = encoder.fwd(params, x)
        return float((weights * y).sum()), encoder.bwd(weights, ctx).x

    baseline = 0.5 * x + 0.1
    found = interpret.integrated_gradients(gradient, x, baseline, steps=64)
    assert abs(found.error) < 1e-3 < abs(gradient(x)[0] - gradient(baseline)[0])
    coarse = interpret.integrated_gradients(gradient, x, baseline, steps=4)
    assert abs(found.error) < abs(coarse.error)


def test_errors_name_what_does_not_fit() -> None:
    q = RNG.standard_normal((1, 2, 4, 8))
    out, ctx = aa.scaled_dot_product_attention_fwd(q, q, q)
    with pytest.raises(ValueError, match="no cotangent for own"):
        interpret.attention_cotangents({"own": ctx}, lambda: None)
    with pytest.raises(ValueError, match="dout"):
        interpret.gradient_times_attention(ctx, out[:, :1])
    with pytest.raises(ValueError, match="`cotangents` are of"):
        interpret.relevance({"own": ctx}, {})
    with pytest.raises(ValueError, match="`steps` is 0"):
        interpret.integrated_gradients(lambda x: (0.0, x), q, steps=0)
    with pytest.raises(ValueError, match="baseline"):
        interpret.integrated_gradients(lambda x: (0.0, x), q, q[0])

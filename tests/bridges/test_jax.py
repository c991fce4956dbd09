"""Functions on JAX's arrays: values and gradients, jit, vmap, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa

pytestmark = pytest.mark.peers
jax = pytest.importorskip("jax")
bridge = pytest.importorskip("attnarray.bridges.jax")
jnp = jax.numpy


def draws(*shape: int, count: int = 3) -> list[Any]:
    return [jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((count, *shape), np.float32)]


def attention_of_jax(q: Any, k: Any, v: Any) -> Any:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)) @ v


def attention(q: Any, k: Any, v: Any) -> Any:
    return bridge.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_attention_and_its_gradients(transform: Any) -> None:
    given = draws(2, 4, 5, 8)
    np.testing.assert_allclose(transform(attention)(*given), attention_of_jax(*given), atol=1e-6)
    ours, theirs = (
        transform(jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), (0, 1, 2)))(*given)
        for f in (attention, attention_of_jax)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_parameters_in_trees_and_integers() -> None:
    indices, (weight,) = jnp.array([0, 2, 2]), draws(3, 2, count=1)
    grad = jax.jit(jax.grad(lambda weight: bridge.embedding(indices, weight).sum()))(weight)
    np.testing.assert_array_equal(grad, [[1, 1], [0, 0], [2, 2]])
    result = bridge.lstm(*draws(2, 3, 4, count=1), *draws(20, 4, count=1), *draws(20, 5, count=1))
    assert isinstance(result, aa.LSTMResult)


def test_vmap_is_a_loop() -> None:
    (x,) = draws(3, 4, 5, count=1)
    np.testing.assert_allclose(jax.vmap(bridge.softmax)(x), jax.nn.softmax(x), atol=1e-6)


def test_shapes_are_checked_when_jax_traces() -> None:
    q, k, v = draws(2, 4, 5, 8)
    with pytest.raises(ValueError, match="`key` has head dim 4 but `query` has 8"):
        jax.eval_shape(bridge.scaled_dot_product_attention, q, k[..., :4], v)


def test_a_mask_that_is_added_to_the_scores_has_a_gradient() -> None:
    (q, k, v), (mask,) = draws(1, 2, 3, 4), draws(3, 3, count=1)
    grads = [
        jax.grad(lambda x, name=name: (bridge.scaled_dot_product_attention(q, k, v, **{name: x}) ** 2).sum())(mask)
        for name in ("attn_mask", "bias")
    ]
    np.testing.assert_array_equal(*grads)
    assert np.any(np.asarray(grads[0]) != 0)


def test_without_64_bits() -> None:
    with jax.enable_x64(False), pytest.raises(TypeError, match="`x` is float64, but JAX runs without 64 bits"):
        bridge.softmax(np.ones(3))
    with jax.enable_x64(True):
        assert bridge.softmax(jnp.asarray(np.ones(3))).dtype == np.float64


def test_sixteen_bits() -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in draws(1, 2, 3, 4))
    assert attention(q, k, v).dtype == jnp.bfloat16
    assert jax.grad(lambda q: attention(q, k, v).sum())(q).dtype == jnp.bfloat16


def test_what_has_no_backward() -> None:
    with pytest.raises(TypeError, match="has no backward"):
        bridge.differentiable(np.sin)
    with pytest.raises(AttributeError, match="has no attribute 'softmaxx'"):
        _ = bridge.softmaxx

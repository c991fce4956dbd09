"""Differential attention, the function and the layer: the paper's formula, what cancels, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers
from tests.support.frozen import frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

RNG = np.random.default_rng(4)
Q, K, V = (RNG.standard_normal((2, h, n, d)) for h, n, d in ((8, 5, 4), (4, 7, 4), (2, 7, 6)))
LAMBDA = np.array([0.2, 0.5, 0.1, 0.8])


def test_it_equals_the_formula_in_pytorch() -> None:
    a = frozen("variants.npz")["differential"].arrays
    layer = layers.DifferentialAttention(6, 4, 2, 3, lambda_init=0.6, norm_eps=1e-6)
    names = [name for name in layer.parts() if name != "lambda"]
    params: dict[str, Any] = {name: {"weight": a[name]} for name in names}
    params["lambda"] = {"query": a["lambda_q"], "key": a["lambda_k"]}
    out, ctx = layer.fwd(params, a["x"], is_causal=True)
    assert_close(out, a["result"], 1e-13, "out")
    grads = layer.bwd(a["dout"], ctx)
    assert_close(grads.x, a["grad_x"], 1e-12, "x")
    for name in names:
        assert_close(grads.params[name]["weight"], a[f"grad_{name}"], 1e-12, name)
    for name in ("query", "key"):
        assert_close(grads.params["lambda"][name], a[f"grad_lambda_{name[0]}"], 1e-12, name)


def test_equal_heads_cancel() -> None:
    q, k = np.repeat(Q[:, ::2], 2, axis=1), np.repeat(K[:, ::2], 2, axis=1)
    assert_close(aa.differential_attention(q, k, V, np.ones(4)), np.zeros((2, 4, 5, 6)), 1e-14)
    once = aa.scaled_dot_product_attention(Q[:, ::2], K[:, ::2], V)
    assert_close(aa.differential_attention(Q, K, V, np.array(0.0)), once, 1e-14)


def test_weights_and_their_cotangent() -> None:
    out, ctx = aa.differential_attention_fwd(Q, K, V, LAMBDA, is_causal=True, q_offset=2)
    weights, dout = aa.attention_weights(ctx), RNG.standard_normal(out.shape)
    assert_close((weights[:, ::2] - LAMBDA[:, None, None] * weights[:, 1::2]) @ np.repeat(V, 2, axis=1), out, 1e-14)
    pair = np.stack([np.ones(4), -LAMBDA], axis=1).reshape(8)[:, None, None]
    dweights = pair * (np.repeat(dout, 2, axis=1) @ np.repeat(V, 4, axis=1).mT)
    by_weights = aa.differential_attention_bwd(np.zeros_like(out), ctx, dweights=dweights)
    by_out = aa.differential_attention_bwd(dout, ctx)
    assert_close(by_weights.query, by_out.query, 1e-13, "query")
    assert_close(by_weights.key, by_out.key, 1e-13, "key")


def function(q: Any = Q, k: Any = K, v: Any = V, lambd: Any = LAMBDA) -> Any:
    return aa.differential_attention(q, k, v, lambd)


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "odd heads": (ValueError, lambda: function(Q[:, :7]), "`query` has 7 heads, `key` 4 and `value` 2, expected two"),
    "values": (ValueError, lambda: function(v=V[:, :1]), "`query` has 8 heads, `key` 4 and `value` 1, expected two"),
    "lambda": (ValueError, lambda: function(lambd=LAMBDA[:2]), "`lambd` has shape (2,), expected () or (4,)"),
    "axes": (ValueError, lambda: function(Q[0]), "`query`, `key` and `value` must have equally many axes, at least 4"),
    "dim": (ValueError, lambda: layers.DifferentialAttention(10, 2), "Twice `num_heads` (2) must divide `dim` (10), "),
    "groups": (ValueError, lambda: layers.DifferentialAttention(8, 2, 3), "`num_kv_heads` (3) must divide `num_heads`"),
    "lambda_init": (
        ValueError,
        lambda: layers.DifferentialAttention(8, 2, lambda_init=1.5),
        "`lambda_init` is 1.5, expected",
    ),
}


@pytest.mark.parametrize(("error", "f", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], f: Any, expected: str) -> None:
    says(error, expected, f)

"""Norms of queries and keys, cosines, gates and free head sizes of multi-head attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, tree
from tests.support.frozen import frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

RNG = np.random.default_rng(3)
X, MEMORY = RNG.standard_normal((2, 5, 10)), RNG.standard_normal((2, 4, 10))
SIZES = {"dim": 10, "num_heads": 4, "num_kv_heads": 2, "key_dim": 6, "value_dim": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "norms of each head": {"qk_norm": "head", "rotary": aa.Rotary(dims=4)},
    "norms of all heads": {"qk_norm": "all", "gate": "head", "norm_eps": 0.1},
    "cosine": {"cosine": True, "rotary": aa.Rotary()},
    "gate": {"gate": "element", "out_bias": False},
}
REFERENCES = frozen("variants.npz")
NAMES = {"wq": "query", "wk": "key", "wv": "value", "wo": "out"}


def drawn(layer: Any) -> Any:
    """Parameters that are nowhere 0 or 1."""
    params = layer.init(aa.Philox(0), "float64")
    return tree.map(lambda x: x + 0.3 * np.random.default_rng(1).standard_normal(x.shape), params)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_steps_equal_one_call(options: dict[str, Any]) -> None:
    layer = layers.MultiHeadAttention(**SIZES, **options)
    params, cache, outs = drawn(layer), layer.cache(2, 5, "float64"), []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        out, cache = layer.step(params, X[:, start:stop], cache)
        outs.append(out)
    assert_close(np.concatenate(outs, axis=1), layer(params, X, is_causal=True), 1e-13, "steps")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_memory_that_is_projected_once(options: dict[str, Any]) -> None:
    layer = layers.MultiHeadAttention(**SIZES, **{**options, "rotary": None})
    params = drawn(layer)
    known = layers.memory.project_memory(layer, params, MEMORY)
    found = layers.memory.attend_to_memory(layer, params, X, known, None, [4, 3])
    assert_close(found, layer(params, X, MEMORY, kv_lengths=[4, 3]), 1e-13, "memory")


@pytest.mark.parametrize("name", ["norm of each head", "norm of all heads", "cosine"])
def test_it_equals_the_formula_in_pytorch(name: str) -> None:
    arrays = REFERENCES[name].arrays
    sizes = {"num_heads": 4, "num_kv_heads": 2}
    parts = [part for part in arrays if part in NAMES or part in ("query_norm", "key_norm", "gate", "logit_scale")]
    params = {NAMES.get(part, part): {"weight": arrays[part]} for part in parts}
    out, ctx = aa.multi_head_attention_fwd(arrays["query"], arrays["key"], params=params, **sizes)
    grads = aa.multi_head_attention_bwd(arrays["dout"], ctx)
    assert_close(out, arrays["result"], 1e-13, "out")
    for found, part in ((grads.query, "query"), (grads.key, "key")):
        assert_close(found, arrays[f"grad_{part}"], 1e-12, part)
    for part in parts:
        assert_close(grads.params[NAMES.get(part, part)]["weight"], arrays[f"grad_{part}"], 1e-12, part)


def test_cosines_of_zero_vectors_are_zero() -> None:
    layer = layers.MultiHeadAttention(6, 2, bias=False, cosine=True)
    params, x = layer.init(aa.Philox(0), "float64"), RNG.standard_normal((4, 6))
    x[1] = 0.0
    out, ctx = layer.fwd(params, x)
    assert_close(aa.attention_weights(ctx)[:, 1], np.full((2, 4), 0.25), 1e-15, "weights of a zero query")
    assert all(np.isfinite(leaf).all() for _, leaf in tree.flatten(layer.bwd(out, ctx).params))


def test_a_scale_beyond_the_largest_has_no_gradient() -> None:
    layer = layers.MultiHeadAttention(6, 2, cosine=True)
    params = layer.init(aa.Philox(0), "float64")
    params["logit_scale"]["weight"][:] = [1.0, 4.7]  # log 100 is 4.6
    out, ctx = layer.fwd(params, RNG.standard_normal((4, 6)))
    slope = layer.bwd(RNG.standard_normal(out.shape), ctx).params["logit_scale"]["weight"]
    assert slope[0] != 0.0
    assert slope[1] == 0.0


def test_a_fully_masked_query_has_an_output_of_zero_behind_its_gate() -> None:
    layer = layers.MultiHeadAttention(6, 2, bias=False, gate="element", qk_norm="head")
    params, x = layer.init(aa.Philox(0), "float64"), RNG.standard_normal((2, 4, 6))
    out, ctx = layer.fwd(params, x, kv_lengths=[4, 0])
    assert not out[1].any()
    assert not layer.bwd(np.ones_like(out), ctx).query[1].any()


P = layers.MultiHeadAttention(**SIZES, qk_norm="head", gate="head").init(aa.Philox(0), "float64")
CALL = {"num_heads": 4, "num_kv_heads": 2}
WRONG: dict[str, tuple[str, Any]] = {
    "an unknown norm": ("`qk_norm` is 'layer', expected", lambda: layers.MultiHeadAttention(8, 2, qk_norm="layer")),
    "an unknown gate": ("`gate` is True, expected", lambda: layers.MultiHeadAttention(8, 2, gate=True)),
    "norms and cosines": (
        "`qk_norm` is 'head' and `cosine` is True",
        lambda: layers.MultiHeadAttention(8, 2, qk_norm="head", cosine=True),
    ),
    "a negative epsilon": ("`norm_eps` is -1", lambda: layers.MultiHeadAttention(8, 2, norm_eps=-1.0)),
    "one norm": (
        "`params` has 'query_norm' but no 'key_norm', expected both",
        lambda: aa.multi_head_attention(X, params={n: p for n, p in P.items() if n != "key_norm"}, **CALL),
    ),
    "a norm of another width": (
        "`params.key_norm.weight` has shape (5,), expected (6,) or (12,)",
        lambda: aa.multi_head_attention(X, params={**P, "key_norm": {"weight": np.ones(5)}}, **CALL),
    ),
    "a bias of a norm": (
        "`params.key_norm` has a 'bias', expected a 'weight' alone",
        lambda: aa.multi_head_attention(
            X, params={**P, "key_norm": {"weight": np.ones(6), "bias": np.ones(6)}}, **CALL
        ),
    ),
    "a gate of another width": (
        "`params.gate.weight` has shape (4, 9), expected (4, 10) or (12, 10)",
        lambda: aa.multi_head_attention(X, params={**P, "gate": {"weight": np.ones((4, 9))}}, **CALL),
    ),
    "norms and a scale of cosines": (
        "`params` has both 'query_norm' and 'logit_scale'",
        lambda: aa.multi_head_attention(X, params={**P, "logit_scale": {"weight": np.ones(4)}}, **CALL),
    ),
    "another part": (
        "at most 'query_norm', 'key_norm', 'logit_scale', 'gate' besides",
        lambda: aa.multi_head_attention(X, params={**P, "norm": {"weight": np.ones(4)}}, **CALL),
    ),
}


@pytest.mark.parametrize(("message", "call"), WRONG.values(), ids=list(WRONG))
def test_wrong_options(message: str, call: Any) -> None:
    says((ValueError, TypeError), message, call)

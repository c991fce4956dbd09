"""Additive attention and its layer: frozen PyTorch, gradients, padding and steps, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import BahdanauAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_trees_close

FROZEN = frozen("additive.npz")
LAYER = BahdanauAttention(query_dim=4, key_dim=7, hidden_dim=6)
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((2, 3, 4), (2, 5, 7), (2, 5, 3)))
PARAMS = LAYER.init(aa.Philox(1), "float64")


def params_of(case: Frozen) -> dict[str, Any]:
    a = case.arrays
    return {"query": {"weight": a["W_a"], "bias": a["b"]}, "key": {"weight": a["U_a"]}, "score_vector": a["v_a"]}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("name", FROZEN)
def test_the_layer_equals_the_paper_in_pytorch(name: str, kernels: str, dtype: str, tolerance: float) -> None:
    case = FROZEN[name].in_dtype(dtype)
    a = case.arrays
    with aa.use_kernels(kernels):
        out, ctx = LAYER.fwd(params_of(case), a["s"], a["h"], kv_lengths=a.get("lengths"))
        grads = LAYER.bwd(a["dout"], ctx)
    found = {
        "out": out, "grad_s": grads.query, "grad_h": grads.key, "grad_v_a": grads.params["score_vector"],
        "grad_W_a": grads.params["query"]["weight"], "grad_b": grads.params["query"]["bias"],
        "grad_U_a": grads.params["key"]["weight"],
    }  # fmt: skip
    assert_trees_close(found, {key: FROZEN[name].arrays[key] for key in found}, tolerance)


@pytest.mark.parametrize("value", [None, VALUE])
def test_gradients_of_the_layer(value: np.ndarray | None) -> None:
    given = {"query": QUERY, "key": KEY} | ({} if value is None else {"value": value})
    report = aa.gradcheck(LAYER, PARAMS, **given, kv_lengths=np.array([5, 2]), bias=np.ones((1, 5)), tolerance=1e-8)
    assert report, str(report)
    out, ctx = LAYER.fwd(PARAMS, **given)
    assert tree.map(np.shape, LAYER.bwd(out, ctx).params) == tree.map(np.shape, PARAMS)
    assert aa.attention_weights(ctx).shape == (2, 3, 5)


def test_nan_past_the_lengths_reaches_nothing() -> None:
    key = KEY.copy()
    key[1, 2:] = np.nan
    expected, found = (aa.vjp(LAYER, PARAMS, QUERY, x, kv_lengths=[5, 2]) for x in (KEY, key))
    assert_trees_close(found[0], expected[0], 1e-14)  # another branch of the kernel
    assert_trees_close(found[1](expected[0]), expected[1](expected[0]), 1e-14)


def test_16_bit_floats_are_computed_in_32() -> None:
    rounded = tree.map(lambda x: x.astype(np.float16), (PARAMS, QUERY, KEY))
    exact = tree.map(lambda x: x.astype(np.float64), rounded)
    (out, pullback), (true_out, true_pullback) = (aa.vjp(LAYER, *given) for given in (rounded, exact))
    assert_trees_close(out, true_out, 2e-3)
    grads = pullback(out)
    assert {leaf.dtype.name for _, leaf in tree.flatten(grads) if leaf is not None} == {"float16"}
    assert_trees_close(grads.params, true_pullback(out.astype(np.float64)).params, 1e-2)


def test_causal_and_dropout_by_position() -> None:
    x = RNG.standard_normal((2, 5, 7))
    layer = BahdanauAttention(7, 7, 6)
    params = layer.init(aa.Philox(0), "float64")
    by_name = layer(params, x, x, dropout_p=0.5, is_causal=True, rng=3)
    np.testing.assert_array_equal(layer(params, x, x, None, None, 0.5, True, rng=3), by_name)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="`hidden_dim` is 0"):
        BahdanauAttention(4, 7, 0)
    with pytest.raises(
        ValueError, match=r"`query` \(\*batch, T, A\), `key` \(\*batch, S, A\) and `score_vector` \(A,\)"
    ):
        aa.additive_attention(QUERY, KEY, KEY, np.ones(4))

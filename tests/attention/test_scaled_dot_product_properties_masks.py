"""Properties of masks and scores: masked entries are ignored, equivalent masks agree, and extreme values work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray import Partial
from tests.naive.scaled_dot_product_attention import attention_weights_and_lse
from tests.support.attention_calls import (
    KERNELS,
    OPTIONS,
    POSITIONAL,
    Arguments,
    assert_equal_results,
    calls,
    cotangents,
    run,
    visible,
)

POISONS = st.sampled_from([math.nan, math.inf, -math.inf])
both_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])


def over_axes_of(array: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """For each entry of a bias, whether any score that it is added to is allowed."""
    axes = tuple(n for n in range(-array.ndim, 0) if array.shape[n] == 1 and allowed.shape[n] > 1)
    return allowed.any(axis=(*range(4 - array.ndim), *(4 + n for n in axes))).reshape(array.shape)


def poisoned(call: Arguments, hidden: np.ndarray, poison: float) -> Arguments:
    """The call with garbage in masked keys (B, Hkv, S) and their values, masked biases, fully masked queries."""
    unbiased = visible({name: value for name, value in call.items() if name != "bias"})  # garbage replaces -inf
    allowed = visible(call)
    changed = {name: np.where(hidden[..., None], poison, call[name]) for name in ("key", "value")}
    changed["query"] = np.where(allowed.any(axis=-1, keepdims=True), call["query"], poison)
    if "bias" in call:
        changed["bias"] = np.where(over_axes_of(call["bias"], unbiased), call["bias"], poison)
    return {**call, **changed}


def seen_by_no_query(call: Arguments) -> np.ndarray:
    batch, kv_heads, keys, _ = call["key"].shape
    return ~visible(call).reshape(batch, kv_heads, -1, keys).any(axis=2)


@both_kernels
@given(calls(), POISONS)
def test_masked_entries_are_ignored(kernels: str, call: Arguments, poison: float) -> None:
    found = run(poisoned(call, seen_by_no_query(call), poison), kernels=kernels)
    assert_equal_results(found, run(call, kernels=kernels))
    assert all(np.all(np.isfinite(array)) for name, array in found.items() if name != "lse")


@both_kernels
@given(calls(tuple(name for name in OPTIONS if name != "rng")), st.integers(0, 10))
def test_garbage_affects_the_queries_that_attend_to_it_and_no_other(kernels: str, call: Arguments, place: int) -> None:
    key = call["key"].copy()
    key[:, :, place % key.shape[2]] = math.nan
    sees = visible(call)[..., place % key.shape[2]]
    found, expected = run({**call, "key": key}, kernels=kernels), run(call, kernels=kernels)
    for name in ("out", "lse", "query"):
        assert np.all(np.isnan(found[name][sees])), f"{name} hides a NaN"
        np.testing.assert_allclose(found[name][~sees], expected[name][~sees], rtol=0, atol=1e-12, err_msg=name)


@given(calls(always=("attn_mask",)), KERNELS)
def test_all_constraints_are_one_dense_mask(call: Arguments, kernels: str) -> None:
    dense = {name: value for name, value in call.items() if name not in POSITIONAL}
    if "rng" in call:  # dropout is keyed by positions, too
        dense["q_offset"] = call.get("q_offset", 0)
    assert_equal_results(run({**dense, "attn_mask": visible(call)}, kernels=kernels), run(call, kernels=kernels))


@given(calls(always=("attn_mask",)), KERNELS)
def test_a_mask_is_a_bias_of_minus_infinity(call: Arguments, kernels: str) -> None:
    expected = run(call, kernels=kernels)
    bias = np.where(call["attn_mask"], call.get("bias", 0.0), -math.inf)
    found = run({**call, "attn_mask": None, "bias": bias}, kernels=kernels)
    found.pop("bias")
    expected.pop("bias", None)
    assert_equal_results(found, expected)


@given(calls(tuple(name for name in OPTIONS if name != "sinks"), always=("bias",)), KERNELS)
def test_a_constant_added_to_all_scores_of_a_query_does_not_matter(call: Arguments, kernels: str) -> None:
    shift = 5.0 * np.random.default_rng(2).standard_normal((*call["query"].shape[:3], 1))
    full = {**call, "bias": np.broadcast_to(call["bias"], (*call["query"].shape[:3], call["key"].shape[2]))}
    expected = run(full, kernels=kernels)
    expected["lse"] = expected["lse"] + shift[..., 0]
    assert_equal_results(run({**full, "bias": full["bias"] + shift}, kernels=kernels), expected)


@given(calls(("scale", "softcap", "bias", "attn_mask"), always=("sinks",)), KERNELS)
def test_a_sink_is_a_key_with_a_constant_score_and_no_value(call: Arguments, kernels: str) -> None:
    full = (*call["query"].shape[:3], call["key"].shape[2])
    sinks = np.broadcast_to(call["sinks"][:, None, None], (*full[:3], 1))
    bias = np.broadcast_to(call.get("bias", 0.0), full)
    mask = np.broadcast_to(call.get("attn_mask", True), full)
    longer = {name: value for name, value in call.items() if name != "sinks"}
    for name in ("key", "value"):  # a key of zeros has the score 0 before the bias
        longer[name] = np.concatenate([call[name], np.zeros_like(call[name][:, :, :1])], axis=2)
    longer["bias"] = np.concatenate([bias, sinks], axis=3)
    longer["attn_mask"] = np.concatenate([mask, np.ones_like(sinks, bool)], axis=3)
    found, expected = run(longer, kernels=kernels), run({**call, "bias": bias}, kernels=kernels)
    found["sinks"] = found["bias"][..., -1].sum(axis=(0, 2))
    found["bias"] = found["bias"][..., :-1]
    for name in ("key", "value"):
        found[name] = found[name][:, :, :-1]
    assert_equal_results(found, expected)


@both_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sink_far_from_the_scores(dtype: str, kernels: str) -> None:
    rng = np.random.default_rng(0)
    call = dict(zip(("query", "key", "value"), rng.standard_normal((3, 2, 3, 5, 4)).astype(dtype), strict=True))
    far_above = run({**call, "sinks": np.full(3, 1e4, dtype)}, kernels=kernels)  # e^1e4 overflows every dtype
    np.testing.assert_array_equal(far_above["lse"], np.full((2, 3, 5), 1e4))
    assert all(np.all(far_above[name] == 0) for name in ("out", "query", "key", "value"))
    dlse = cotangents(Partial(far_above["out"], far_above["lse"])).lse
    np.testing.assert_allclose(far_above["sinks"], dlse.sum(axis=(0, 2)), rtol=1e-5)  # float32
    far_below = run({**call, "sinks": np.full(3, -1e4, dtype)}, kernels=kernels)
    assert np.all(far_below.pop("sinks") == 0)
    assert_equal_results(far_below, run(call, kernels=kernels), 1e-6 if dtype == "float32" else 1e-15)


@given(calls(), KERNELS, st.integers(0, 7), st.integers(0, 7))
def test_attention_weights_are_those_of_the_forward(call: Arguments, kernels: str, start: int, stop: int) -> None:
    without_dropout = {name: value for name, value in call.items() if name not in ("rng", "dropout_p")}
    weights, lse = attention_weights_and_lse(**without_dropout)
    with aa.use_kernels(kernels):
        out, ctx = aa.scaled_dot_product_attention_fwd(**call)
        found = aa.attention_weights(ctx)
        some = aa.attention_weights(ctx, slice(start, stop))
    np.testing.assert_allclose(found, weights, rtol=0, atol=1e-13)  # weights are at most 1
    np.testing.assert_allclose(some, found[:, :, start:stop], rtol=0, atol=1e-13)
    sink = np.exp(call["sinks"][:, None] - ctx.lse) if "sinks" in call else 0.0
    seen = np.isfinite(lse)
    np.testing.assert_allclose((found.sum(axis=-1) + sink)[seen], 1.0, rtol=1e-13)
    if "rng" not in call:
        group = call["query"].shape[1] // call["key"].shape[1]
        np.testing.assert_allclose(found @ call["value"].repeat(group, axis=1), out, rtol=0, atol=1e-12)


@given(calls(("is_causal", "bias")), KERNELS)
def test_attention_weights_in_other_forms(call: Arguments, kernels: str) -> None:
    with aa.use_kernels(kernels):
        expected = aa.attention_weights(aa.scaled_dot_product_attention_fwd(**call)[1])
        swapped = {n: np.swapaxes(a, 1, 2) if n in ("query", "key", "value") else a for n, a in call.items()}
        _, ctx = aa.scaled_dot_product_attention_fwd(**swapped, layout="BTHD")
        np.testing.assert_allclose(aa.attention_weights(ctx), expected, rtol=0, atol=1e-13)
        if call.get("bias", np.zeros(1)).ndim < 3:
            matrices = {n: a[0, 0] if n in ("query", "key", "value") else a for n, a in call.items()}
            _, ctx = aa.scaled_dot_product_attention_fwd(**matrices)
            np.testing.assert_allclose(aa.attention_weights(ctx), expected[0, 0], rtol=0, atol=1e-13)


@both_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_biases_and_values_of_1e30(dtype: str, kernels: str) -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 2, 5, 3)).astype(dtype)
    masked = np.arange(5) % 2 == 0
    soft = run({"query": query, "key": key, "value": value, "bias": np.where(masked, -1e30, 0.0).astype(dtype)})
    hard = run({"query": query, "key": key, "value": value, "attn_mask": ~masked}, kernels=kernels)
    soft.pop("bias")
    assert_equal_results(soft, hard, tolerance=1e-6 if dtype == "float32" else 1e-14)
    everywhere = aa.scaled_dot_product_attention(query, key, value, bias=np.full((5, 5), -1e30, dtype))
    np.testing.assert_allclose(everywhere, np.broadcast_to(value.mean(axis=2, keepdims=True), value.shape), atol=1e-6)
    large = run({"query": query, "key": key, "value": value * dtype_of(dtype)(1e30)}, kernels=kernels)
    plain = run({"query": query, "key": key, "value": value}, kernels=kernels)
    np.testing.assert_allclose(large["out"], plain["out"] * 1e30, rtol=2e-5)  # cancellation among float32 products


def dtype_of(name: str) -> Any:
    return np.dtype(name).type


@given(st.integers(0, 2**32), st.floats(-50, 50))
def test_a_constant_does_not_change_softmax(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x, mask = 3.0 * rng.standard_normal((4, 5)), rng.random((4, 5)) < 0.6
    for axis in (0, 1):
        for f in (aa.softmax, aa.log_softmax):
            out, pullback = aa.vjp(f, x, axis, mask=mask)
            moved, moved_pullback = aa.vjp(f, x + shift, axis, mask=mask)
            np.testing.assert_allclose(moved, out, rtol=1e-12)
            np.testing.assert_allclose(moved_pullback(x).x, pullback(x).x, rtol=0, atol=1e-12)
            masked = np.where(mask, x, math.nan)
            np.testing.assert_array_equal(f(masked, axis, mask=mask), out)

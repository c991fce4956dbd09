"""Masked entries may hold anything: they change no result and no gradient, and raise no floating-point error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, tree
from attnarray.triples import find_triple
from tests.support.masked_calls import Masked, Sizes, calls, normal
from tests.support.tiers import first

CALLS = calls()
ATTENTION = [name for name in CALLS if "attention" in name and name.split("_")[0] not in ("graph", "linear")]
HUGE = {"float64": 1e300, "float32": 1e38}  # finite, but products with it are not
# The same operations on other numbers, in rows of other lengths: a few roundings.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture(params=["reference", "auto"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    with aa.use_kernels(request.param):
        yield request.param


@pytest.fixture
def strict() -> Iterator[None]:
    """Floating-point errors are raised, and warnings as well."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rubbish(dtype: str) -> tuple[float, ...]:
    return math.nan, math.inf, -math.inf, HUGE[dtype]


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    for (path, one), (_, other) in zip(tree.flatten(found), tree.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=tree.format_path(path))


def assert_hidden_gradients_are_zero(grads: Any, hidden: dict[str, np.ndarray]) -> None:
    for name, where in hidden.items():
        array = getattr(grads, name)
        assert not np.any(array[np.broadcast_to(where, array.shape)]), name


def assert_what_is_hidden_does_not_matter(call: Masked, dtype: str) -> None:
    out, grads, _ = call.filled(0.0, dtype).run(0.0)
    assert all(np.all(np.isfinite(array)) for _, array in tree.flatten(grads))
    for number in rubbish(dtype):
        found, found_grads, _ = call.filled(number, dtype).run(number)
        assert_same((found, found_grads), (out, grads), TOLERANCE[dtype])
        assert_hidden_gradients_are_zero(found_grads, call.hidden)


@pytest.mark.parametrize("name", CALLS)
def test_masked_entries_are_ignored(name: str, kernels: str, strict: None) -> None:
    for dtype in ("float64", "float32"):
        assert_what_is_hidden_does_not_matter(CALLS[name], dtype)


# One query of many keys; more queries than a panel has lanes, of several tiles; rows of whole registers.
LARGER = [Sizes(queries=1, keys=70), Sizes(queries=40, keys=130), Sizes(3, 4, 4, 33, 150, 8, 16)]


@pytest.mark.parametrize("sizes", first(2, LARGER), ids=["decoding", "tiles", "whole registers"])
def test_in_kernels_of_many_keys(sizes: Sizes, strict: None) -> None:
    for name, call in calls(sizes).items():
        if name in ATTENTION:
            assert_what_is_hidden_does_not_matter(call, "float32")


@pytest.mark.parametrize("name", [name for name in ATTENTION if "dropout" not in name])
def test_masked_weights_are_zero(name: str, kernels: str, strict: None) -> None:
    call = CALLS[name]
    expected = aa.attention_weights(call.filled(0.0, "float64").run(0.0)[2])
    for number in rubbish("float64"):
        weights = aa.attention_weights(call.filled(number, "float64").run(number)[2])
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)
        for row in ("key", "memory"):
            if row in call.hidden:
                hidden = np.swapaxes(call.hidden[row], -1, -2)
                hidden = hidden if hidden.ndim == weights.ndim else hidden[:, None]  # without heads
                assert not np.any(weights[np.broadcast_to(hidden, weights.shape)])


@pytest.mark.parametrize("name", [name for name in ATTENTION if ", causal" in name])
def test_queries_are_free_of_the_nan_of_masked_keys(name: str, kernels: str) -> None:
    call = CALLS[name].filled(0.0, "float64")
    dirty = dict(call.arrays)
    for row in ("key", "value", "memory"):
        if row in dirty:
            dirty[row] = dirty[row].copy()
            dirty[row][..., 3, :] = math.nan  # query i attends to the keys up to i + 1: from query 2 on
    (out, grads, _), (found, found_grads, _) = call.run(0.0), call._replace(arrays=dirty).run(0.0)
    expected, found = (x[0] if isinstance(x, tuple) else x for x in (out, found))
    np.testing.assert_allclose(found[..., :2, :], expected[..., :2, :], rtol=0, atol=1e-12)
    if "hard" not in name and "predictive" not in name:  # which may attend to other keys
        assert np.isnan(found[..., 2:, :]).any()
    if "location" not in name:  # whose later steps depend on the weights of previous ones
        query = "x" if "pairwise" in name else "query"
        one, other = (getattr(of, query)[..., :2, :] for of in (found_grads, grads))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


B, T, S, D = 2, 4, 7, 5
LAYERS = {
    "Bahdanau": layers.BahdanauAttention(D, D, 3),
    "location": layers.LocationAttention(D, D, 3, 2, 3),
    "Luong, general": layers.LuongAttention(D, D),
    "Luong, concat": layers.LuongAttention(D, D, "concat", 3),
    "scaled": layers.ScaledAttention(D),
    "local, predictive": layers.LocalAttention(D, D, 2, hidden_dim=3),
    "local, monotonic": layers.LocalAttention(D, D, 2, "monotonic"),
    "recurrent": layers.RecurrentAttention(D, D, 2, 3),
    "hard, argmax": layers.HardAttention(D, D, 3, estimator="argmax"),
    "hard, top k": layers.HardAttention(D, D, 3, estimator="top_k"),
}


@pytest.mark.parametrize("mask", ["lengths", "mask"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, mask: str, kernels: str, strict: None) -> None:
    layer, lengths = LAYERS[name], np.array([4, 0])
    allowed = np.broadcast_to((np.arange(S) % 3 != 1) & (np.arange(T)[:, None] != 1), (B, T, S))
    options: dict[str, Any] = {"attn_mask": allowed}
    if mask == "lengths":
        options, allowed = (
            {"kv_lengths": lengths},
            np.broadcast_to((np.arange(S) < lengths[:, None])[:, None], (B, T, S)),
        )
    no_query, no_key = ~allowed.any(axis=1), ~allowed.any(axis=2)
    params, query, key = layer.init(aa.Philox(1), "float64"), normal(B, T, D), normal(B, S, D)

    def run(number: float) -> Any:
        queries, keys = np.where(no_key[..., None], number, query), np.where(no_query[..., None], number, key)
        out, ctx = find_triple(layer).fwd(params, queries, keys, **options)

        def cotangent(leaf: Any) -> Any:
            return np.where(no_key if leaf.ndim == 2 else no_key[..., None], number, normal(*leaf.shape))

        return out, find_triple(layer).bwd(tree.map(cotangent, out), ctx)

    expected = run(0.0)
    for number in rubbish("float64"):
        found = run(number)
        assert_same(found, expected, 1e-12)
        hidden = {"query": no_key[..., None], "key": no_query[..., None]}
        assert_hidden_gradients_are_zero(found[1], hidden)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax", "entmax"])
def test_masked_entries_have_no_gradient_where_others_have_nan(name: str, kernels: str) -> None:
    mask = np.array([True, True, False])
    for options in ({}, {"alpha": 1.2}) if name == "entmax" else ({},):
        _, pullback = aa.vjp(getattr(aa, name), np.array([1.0, 1.2, 0.0]), mask=mask, **options)
        found = pullback(np.array([math.nan, 1.0, 2.0])).x
        assert np.isnan(found[0])
        assert found[2] == 0


def test_the_cotangent_of_a_masked_entry_of_softmax(kernels: str) -> None:
    _, pullback = aa.vjp(aa.softmax, np.array([1.0, 2.0, 3.0]), mask=np.array([True, True, False]))
    found = pullback(np.array([1.0, 0.0, math.nan])).x
    np.testing.assert_allclose(found, [0.19661193, -0.19661193, 0.0], rtol=0, atol=1e-8)


def test_rows_without_keys_reach_the_sinks_through_the_lse_alone(kernels: str) -> None:
    """Such a row has the sink for its lse, and 0 for its output whatever the sink is."""
    query, key = normal(1, 1, 2, 3), normal(1, 1, 4, 3)
    mask = np.array([[True] * 4, [False] * 4])
    part, pullback = aa.vjp(aa.attention_partial, query, key, key, mask, sinks=np.array([0.3]))
    assert part.lse[0, 0, 1] == 0.3
    dout, clean = normal(1, 1, 2, 3), normal(1, 1, 2, 3)
    dout[0, 0, 1], clean[0, 0, 1] = math.nan, 0.0
    found, expected = (pullback(aa.Partial(x, np.array([[[0.0, 5.0]]]))).sinks for x in (dout, clean))
    np.testing.assert_array_equal(found, expected)
    alone = pullback(aa.Partial(clean, None)).sinks
    np.testing.assert_allclose(found, alone + 5.0, rtol=0, atol=1e-12)


def test_an_overflow_that_is_not_masked_is_an_infinity(kernels: str, strict: None) -> None:
    """Attention never raises floating-point errors: overflow gives infinity in the result."""
    query = np.full((1, 1, 2), 1e200)
    found = aa.multiplicative_attention(query, query, np.ones((1, 1, 2)))
    assert np.isnan(found).all()
    assert np.isnan(aa.sparsemax_attention(query, query, query)).all()

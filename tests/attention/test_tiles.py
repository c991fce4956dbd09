"""Attention with a mask in tiles equals attention with the dense mask: outputs, lse and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnarray as aa
from attnarray.attention import options as attention_options
from attnarray.masks import tiles as mask_tiles
from tests.support.attention_calls import assert_equal_results
from tests.support.libraries import Library, assert_close
from tests.support.mask_expressions import BATCH, HEADS, KEYS, QUERIES, Expression, dense, expressions

RNG = np.random.default_rng(4)
CALL = {
    "query": RNG.standard_normal((BATCH, HEADS, QUERIES, 5)),
    "key": RNG.standard_normal((BATCH, 1, KEYS, 5)),
    "value": RNG.standard_normal((BATCH, 1, KEYS, 2)),
}
BIAS = RNG.standard_normal((HEADS, QUERIES, KEYS))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": 3, "kv_lengths": np.array([15, 9])},
    "dropout": {"dropout_p": 0.4, "rng": 2, "window": (9, 5)},
    "dropout mask": {"dropout_p": 0.4, "dropout_mask": RNG.random((QUERIES, KEYS)) < 0.6},
    "bias": {"bias": BIAS, "softcap": 2.0},
    "bias of queries": {"bias": BIAS[:, :, :1], "sinks": RNG.standard_normal(HEADS)},
    "bias of keys": {"bias": BIAS[:, :1, :]},
    "two masks": {"is_causal": True},
}
LONGFORMER = aa.Window(2, 3) | aa.Global(2)
BY_HEAD = aa.Blocks(RNG.random((HEADS, 4, 5)) < 0.3, 4)  # some rows of tiles are empty
each_kernel = pytest.mark.parametrize("kernels", ["reference", "auto"])
each_option = pytest.mark.parametrize("name", OPTIONS)


def run(call: dict[str, Any], kernels: Any = "reference") -> dict[str, Any]:
    """Output, lse and all gradients, for cotangents of the output and the lse."""
    with aa.use_kernels(kernels):
        out, ctx = aa.scaled_dot_product_attention_fwd(**call)
        grads = aa.scaled_dot_product_attention_bwd(np.cos(out), ctx, dlse=np.where(ctx.lse == -np.inf, 0.0, 0.3))
    named = {"out": out, "lse": ctx.lse, **grads._asdict()}
    return {name: array for name, array in named.items() if array is not None}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_options, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(mask_tiles, "SIZE", 4)


@each_kernel
@each_option
@pytest.mark.parametrize("mask", [LONGFORMER, BY_HEAD, ~aa.Causal()], ids=["longformer", "by head", "not causal"])
def test_tiles_are_the_dense_mask(name: str, mask: aa.Mask, kernels: str) -> None:
    call = {**CALL, **OPTIONS[name]}
    as_array = mask.to_dense(QUERIES, KEYS, q_offset=call.get("q_offset", 0))
    expected = run({**call, "attn_mask": as_array})
    assert_equal_results(run({**call, "attn_mask": mask}, kernels), expected)


@given(expressions(), st.sampled_from(list(OPTIONS)), st.sampled_from(["reference", "auto"]), st.sampled_from([4, 5]))
def test_random_expressions_are_their_definition(expression: Expression, name: str, kernels: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_options, "FEWEST_PAIRS", 0)
        patch.setattr(mask_tiles, "SIZE", size)
        call = {**CALL, **OPTIONS[name]}
        as_array = dense(expression, call.get("q_offset", 0))
        expected = run({**call, "attn_mask": as_array})
        assert_equal_results(run({**call, "attn_mask": expression.mask}, kernels), expected)


@each_option
def test_gradients_are_differences(name: str) -> None:
    report = aa.gradcheck(
        aa.scaled_dot_product_attention, **CALL, attn_mask=LONGFORMER, **OPTIONS[name], max_elements=20
    )
    assert report.ok, report


def test_other_normalizers_and_scorers_take_tiles() -> None:
    masked = {"attn_mask": BY_HEAD & aa.Causal(6), "normalizer": aa.Entmax(1.5)}
    assert aa.gradcheck(aa.attend, **CALL, **masked, max_elements=40)
    expected = aa.attend(**CALL, **{**masked, "attn_mask": masked["attn_mask"].to_dense(QUERIES, KEYS)})
    np.testing.assert_allclose(aa.attend(**CALL, **masked), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mask", [LONGFORMER, aa.Predicate(lambda b, h, q, k: (q + k + h) % 3 == 0)])
def test_every_library(library: Library, mask: aa.Mask) -> None:
    call = {name: library.array(array) for name, array in CALL.items()}
    out, ctx = aa.scaled_dot_product_attention_fwd(**call, attn_mask=mask)
    grads = aa.scaled_dot_product_attention_bwd(out, ctx)
    as_array = mask.to_dense(QUERIES, KEYS, heads=HEADS)
    expected, other = aa.scaled_dot_product_attention_fwd(**CALL, attn_mask=as_array)
    assert_close(out, expected, 1e-13)
    for found, wanted in zip(grads[:3], aa.scaled_dot_product_attention_bwd(expected, other)[:3], strict=True):
        assert_close(found, wanted, 1e-12)


def test_weights_of_some_queries_know_the_tiles() -> None:
    ctx = aa.scaled_dot_product_attention_fwd(**CALL, attn_mask=BY_HEAD)[1]
    weights = aa.attention_weights(ctx, queries=slice(3, 9))
    hidden = ~np.broadcast_to(BY_HEAD.to_dense(QUERIES, KEYS), (BATCH, HEADS, QUERIES, KEYS))[:, :, 3:9]
    assert (weights[hidden] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), (~hidden).any(-1), rtol=1e-12)


def test_skipped_keys_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnarray.attention import engine

    seen: list[int] = []
    dots = engine.dot_products
    monkeypatch.setattr(engine, "dot_products", lambda x, y: seen.append(x.shape[2] * y.shape[2]) or dots(x, y))
    run({**CALL, "attn_mask": aa.Window(1, 1) & ~aa.Strided(9)})
    forward_and_backward = 3  # scores, scores again, and the gradient of the weights
    assert 0 < sum(seen) < 0.75 * forward_and_backward * QUERIES * KEYS


@each_kernel
def test_masked_nan_does_not_matter(kernels: str) -> None:
    mask = aa.Window(2, 2) & ~aa.Strided(5) & aa.Padding(11) | aa.Prefix(2)
    hidden = ~mask.to_dense(QUERIES, KEYS).any(axis=0)
    assert hidden.any()
    spoiled = {**CALL, "key": CALL["key"].copy(), "value": CALL["value"].copy()}
    spoiled["key"][:, :, hidden], spoiled["value"][:, :, hidden] = np.nan, np.inf
    found, expected = (run({**call, "attn_mask": mask}, kernels) for call in (spoiled, CALL))
    assert_equal_results(found, expected)


def test_sizes_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many panels and chunks, tiles of 64, and grouped heads whose panels reach over two tiles and two heads."""
    monkeypatch.setattr(mask_tiles, "SIZE", 64)
    rng = np.random.default_rng(6)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
        for queries, keys in ((333, 450), (130, 1500)):
            shapes = {"query": (1, 4, queries, 7), "key": (1, 2, keys, 7), "value": (1, 2, keys, 5)}
            call = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
            table = rng.random((4, 6, 24)) < 0.2
            for mask in (aa.Window(50, 20) | aa.Global(9), aa.Blocks(table, 64), aa.Blocks(table, 63) & ~aa.Strided(7)):
                as_array = mask.to_dense(queries, keys)
                expected = run({**call, "attn_mask": as_array})
                assert_equal_results(run({**call, "attn_mask": mask}, "auto"), expected, tolerance)


@each_kernel
def test_empty_sizes(kernels: Any) -> None:
    with aa.use_kernels(kernels):
        _run_empty_sizes()


def _run_empty_sizes() -> None:
    for queries, keys in ((0, 3), (3, 0), (0, 0)):
        x, y = np.zeros((1, 1, queries, 2)), np.zeros((1, 1, keys, 2))
        out, ctx = aa.scaled_dot_product_attention_fwd(x, y, y, LONGFORMER)
        assert out.shape == x.shape
        assert not out.any()
        assert aa.scaled_dot_product_attention_bwd(out, ctx).key.shape == y.shape

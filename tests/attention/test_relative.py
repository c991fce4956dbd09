"""Attention with relative positions: equal to PyTorch from the paper, and properties beyond the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention import blocks
from attnarray.attention.positional import relative
from attnarray.layers import RelativeAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here
ROUNDING = 1e-13
H, D, E = 3, 4, 6
OURS = {"W_q": "query", "W_kE": "key", "W_v": "value", "W_kR": "position", "W_o": "out"}
BIASES = {"u": "content_bias", "v": "position_bias"}
REFERENCES = {name: one for name, one in frozen("positions.npz").items() if name.startswith("relative")}


def parameters(reference: Frozen, start: str = "") -> dict[str, Any]:
    weights = {name: {"weight": reference.arrays[start + theirs]} for theirs, name in OURS.items()}
    return {**weights, **{name: reference.arrays[start + theirs] for theirs, name in BIASES.items()}}


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
def test_the_layer_equals_the_paper(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    layer, options = RelativeAttention(E, H, D), dict(reference.options)
    options.pop("memory")
    options["kv_lengths"] = options.pop("lengths", None)
    with aa.use_kernels(kernels):
        out, ctx = layer.fwd(parameters(reference), reference.arrays["x"], reference.arrays.get("memory"), **options)
        grads = layer.bwd(reference.arrays["dout"], ctx)
    assert_close(out, reference.arrays["out"], tolerance, "out")
    assert_close(grads.x, reference.arrays["grad_x"], tolerance, "x")
    assert_trees_close(grads.params, parameters(reference, "grad_"), tolerance)


RNG = np.random.default_rng(0)
B, T, M, S, R = 2, 5, 3, 8, 12
QUERY, KEY, VALUE = (RNG.standard_normal((B, H, n, d)) for n, d in ((T, D), (S, D), (S, 7)))
POSITION_KEY, U, V = (RNG.standard_normal(shape) for shape in ((H, R, D), (H, D), (H, D)))
GIVEN = {"query": QUERY, "key": KEY, "value": VALUE, "position_key": POSITION_KEY, "content_bias": U,
         "position_bias": V}  # fmt: skip


def by_distance(rows: int, first: int) -> np.ndarray:
    """The row of `rows` for each pair (T, S), by its distance; `first` is the distance of row 0."""
    distances = M + np.arange(T)[:, None] - np.arange(S)
    assert 0 <= (first - distances).min() <= (first - distances).max() < rows
    return first - distances


def test_the_shift_reads_each_pair_by_its_distance() -> None:
    products = RNG.standard_normal((B, H, T, R))
    expected = np.take_along_axis(products, np.broadcast_to(by_distance(R, T - 1 + M), (B, H, T, S)), axis=-1)
    padded = np.concatenate([products, np.full((B, H, T, 1), np.nan)], axis=-1)  # unused rows are ignored
    np.testing.assert_array_equal(relative.shifted(padded, S), expected)


def test_the_backward_of_the_shift_drops_what_was_not_read() -> None:
    dshifted = RNG.standard_normal((B, H, T, S))
    expected = np.zeros((B, H, T, T + S))
    for i, j in np.ndindex(T, S):
        expected[:, :, i, by_distance(R, T - 1 + M)[i, j]] += dshifted[:, :, i, j]
    np.testing.assert_array_equal(relative.unshifted(dshifted), expected)
    products = RNG.standard_normal(expected.shape)
    both = np.vdot(relative.shifted(products, S), dshifted), np.vdot(products, expected)
    np.testing.assert_allclose(both[0], both[1])  # one is the transpose of the other


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blocks_of_queries_do_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"q_offset": M, "bias": RNG.standard_normal((B, H, T, S)), "kv_lengths": [8, 5],
                               "sinks": np.ones(H)}  # fmt: skip
    out, ctx = aa.relative_attention_fwd(**GIVEN, **options)
    dout = RNG.standard_normal(out.shape)
    grads, weights = aa.relative_attention_bwd(dout, ctx), aa.attention_weights(ctx)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", B * H * S * size)
    same, its_ctx = aa.relative_attention_fwd(**GIVEN, **options)
    assert_close(same, out, ROUNDING)
    assert_trees_close(aa.relative_attention_bwd(dout, its_ctx), grads, ROUNDING)
    assert_close(aa.attention_weights(its_ctx), weights, ROUNDING)


def test_the_kernel_of_attention_gives_what_the_scores_give() -> None:
    options: dict[str, Any] = {"q_offset": M, "bias": RNG.standard_normal((B, H, T, S)), "sinks": np.ones(H),
                               "dropout_p": 0.3, "rng": 5, "scale": 0.7}  # fmt: skip
    out, ctx = aa.relative_attention_fwd(**GIVEN, **options)
    dout, dlse = RNG.standard_normal(out.shape), RNG.standard_normal((B, H, T))
    grads = aa.relative_attention_bwd(dout, ctx, dlse)
    # No kernel supports a cotangent of the weights, so with one of zeros the backward uses array code.
    assert_trees_close(aa.relative_attention_bwd(dout, ctx, dlse, np.zeros((B, H, T, S))), grads, 1e-12)
    assert "attention.engine:attention " in str(aa.explain(aa.relative_attention, **GIVEN, **options))


def test_one_row_of_bias_is_summed_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = RNG.standard_normal((1, 1, S))
    out, pullback = aa.vjp(aa.relative_attention, **GIVEN, bias=bias, q_offset=M)
    expected = pullback(np.ones_like(out) * np.arange(7.0)).bias
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * B * H * S)
    found = aa.vjp(aa.relative_attention, **GIVEN, bias=bias, q_offset=M)[1](np.ones_like(out) * np.arange(7.0)).bias
    assert found.shape == (1, 1, S)
    assert_close(found, expected, 1e-12)


def test_weights_are_the_softmax_of_the_four_terms() -> None:
    _, ctx = aa.relative_attention_fwd(**GIVEN, q_offset=M, scale=0.7)
    r = POSITION_KEY[:, by_distance(R, T - 1 + M)]  # (H, T, S, D)
    terms = QUERY @ KEY.mT, np.einsum("bhid,hijd->bhij", QUERY, r), U[:, None] @ KEY.mT, np.einsum("hd,hijd->hij", V, r)
    assert_close(aa.attention_weights(ctx), aa.softmax(0.7 * sum(terms)), ROUNDING)
    assert_close(aa.attention_weights(ctx, slice(2, 4)), aa.softmax(0.7 * sum(terms))[:, :, 2:4], ROUNDING)


def test_no_positions_no_difference() -> None:
    zeros = {name: np.zeros_like(GIVEN[name]) for name in ("position_key", "content_bias", "position_bias")}
    found = aa.relative_attention(**{**GIVEN, **zeros}, is_causal=True, q_offset=M)
    expected = aa.scaled_dot_product_attention(QUERY, KEY, VALUE, is_causal=True, q_offset=M)
    assert_close(found, expected, ROUNDING)


def test_causal_attention_needs_no_distances_below_zero() -> None:
    some = {**GIVEN, "position_key": POSITION_KEY[:, : T + M]}
    out, pullback = aa.vjp(aa.relative_attention, **GIVEN, is_causal=True, q_offset=M)
    same, its_pullback = aa.vjp(aa.relative_attention, **some, is_causal=True, q_offset=M)
    assert_close(same, out, ROUNDING)
    grads, its_grads = pullback(out), its_pullback(out)
    assert not np.any(grads.position_key[:, T + M :])
    assert_close(its_grads.position_key, grads.position_key[:, : T + M], ROUNDING)


def test_moving_everything_changes_nothing() -> None:
    """Queries and keys that are both shifted by seven positions have the same distances."""
    out = aa.relative_attention(**GIVEN, q_offset=M)
    keys = {name: np.concatenate([np.full((B, H, 7, GIVEN[name].shape[-1]), np.nan), GIVEN[name]], 2)
            for name in ("key", "value")}  # fmt: skip
    longer = np.concatenate([POSITION_KEY, np.full((H, 7, D), np.nan)], 1)  # rows of distances to what is masked
    later = {**GIVEN, **keys, "position_key": np.roll(longer, 7, axis=1)}
    mask = np.arange(S + 7) >= 7
    found = aa.relative_attention(**later, q_offset=M + 7, attn_mask=mask)
    assert_close(found, out, ROUNDING)


def test_a_text_in_segments_is_the_whole_with_a_window() -> None:
    """Each segment attends to itself and the previous one, as the whole does with a mask."""
    layer = RelativeAttention(E, H, D)
    params = layer.init(aa.Philox(1), "float64")
    x = RNG.standard_normal((2, 12, E))
    place = np.arange(12)
    mask = (place[:, None] // 4 - place // 4 <= 1) & (place[:, None] >= place)
    whole = layer(params, x, attn_mask=mask)
    before = None
    for segment in range(3):
        here = x[:, 4 * segment : 4 * segment + 4]
        assert_close(layer(params, here, before, is_causal=True), whole[:, 4 * segment : 4 * segment + 4], ROUNDING)
        before = here


def test_memory_has_no_gradient_but_feeds_those_of_the_weights() -> None:
    layer = RelativeAttention(E, H, D)
    params = layer.init(aa.Philox(1), "float64")
    x, memory = RNG.standard_normal((B, T, E)), RNG.standard_normal((B, M, E))
    report = aa.gradcheck(layer, params, x, memory=memory, is_causal=True, wrt=["params", "x"])
    assert report, str(report)
    out, ctx = layer.fwd(params, x, memory, is_causal=True)
    grads = layer.bwd(out, ctx)
    assert not hasattr(grads, "memory")
    assert np.any(
        grads.params["key"]["weight"] != layer.bwd(out, layer.fwd(params, x, 0 * memory)[1]).params["key"]["weight"]
    )


@pytest.mark.parametrize("layer", [RelativeAttention(6, 3), RelativeAttention(4, 3, head_dim=5)], ids=str)
def test_gradients_of_the_layer(layer: RelativeAttention) -> None:
    params = layer.init(aa.Philox(4), "float64")
    x = RNG.standard_normal((2, 5, layer.dim))
    report = aa.gradcheck(layer, params, x, kv_lengths=[5, 3], bias=RNG.standard_normal((3, 1, 5)))
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)}
    assert names | {"x", "bias"} == {check.name for check in report.inputs}
    one, ctx = layer.fwd(params, x[0])
    assert_close(one, layer(params, x)[0], ROUNDING)
    assert layer.bwd(one, ctx).x.shape == x[0].shape


def test_masked_keys_may_hold_anything() -> None:
    layer = RelativeAttention(E, H, D)
    params = layer.init(aa.Philox(1), "float64")
    x, dirty = RNG.standard_normal((2, B, T, E))
    memory = np.concatenate([np.full((B, M, E), np.nan), dirty], 1)
    mask = np.arange(M + 2 * T) >= M
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": True}
    out, ctx = layer.fwd(params, x, memory, **options)
    grads = layer.bwd(out, ctx)
    clean, its_ctx = layer.fwd(params, x, np.nan_to_num(memory), **options)
    np.testing.assert_array_equal(out, clean)
    assert_trees_close(grads, layer.bwd(out, its_ctx), 0)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_empty_sizes(queries: int, keys: int) -> None:
    given = {**GIVEN, "query": QUERY[:, :, :queries], "key": KEY[:, :, :keys], "value": VALUE[:, :, :keys]}
    given["position_key"] = POSITION_KEY[:, : max(queries + keys - 1, 0)]
    out, pullback = aa.vjp(aa.relative_attention, **given)
    assert out.shape == (B, H, queries, 7)
    grads = pullback(np.ones_like(out))
    assert grads.position_key.shape == given["position_key"].shape
    if not keys:
        assert not np.any(out)
        assert not np.any(grads.content_bias)
    layer = RelativeAttention(E, H, D)
    assert layer(layer.init(aa.Philox(0)), np.ones((2, queries, E), np.float32), is_causal=True).shape == (
        2,
        queries,
        E,
    )


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "rows": (ValueError, {"position_key": POSITION_KEY[:, 1:]}, "`position_key` has shape (3, 11, 4), expected (Hkv,"),
    "no causal": (ValueError, {"position_key": POSITION_KEY[:, :8]}, "With is_causal=True those of distances from 0"),
    "causal": (ValueError, {"position_key": POSITION_KEY[:, :7], "is_causal": True}, "7 down to -4, or 8 of the dist"),
    "heads": (ValueError, {"position_key": POSITION_KEY[:2]}, "expected (Hkv, R, D) = (3, 12, 4): a row for each of"),
    "content": (ValueError, {"content_bias": U[0]}, "`content_bias` has shape (4,), expected (3, 4): one vector for"),
    "position": (ValueError, {"position_bias": V[:, :3]}, "`position_bias` has shape (3, 3), expected (3, 4)"),
    "no bias": (TypeError, {"position_bias": None}, "`position_bias` is None, expected an array"),
    "softcap": (TypeError, {"softcap": 3.0}, "Attention has no option `softcap`. The options: scale, bias, window"),
    "offsets": (ValueError, {"q_offset": np.array([1, 2])}, "`q_offset` is an array of shape (2,) and dtype int64,"),
    "negative": (ValueError, {"q_offset": -1}, "`q_offset` is -1, expected an integer >= 0"),
    "dtype": (TypeError, {"content_bias": U.astype("f4")}, "content_bias float32"),
    "positions": (ValueError, {"value": VALUE[:, :, :7]}, "`value` has 7 positions but `key` has 8"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    says(error, expected, lambda: aa.relative_attention(**{**GIVEN, "q_offset": M, **changes}))


def test_the_layer_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`dim` is 7, expected an even number: a sine and", lambda: RelativeAttention(7, 7))
    says(ValueError, "`num_heads` (4) must divide `dim` (6)", lambda: RelativeAttention(6, 4))
    says(ValueError, "`head_dim` is 0, expected an integer >= 1", lambda: RelativeAttention(6, 4, 0))
    layer = RelativeAttention(E, H)
    params, x = layer.init(aa.Philox(0), "float64"), np.ones((B, T, E))
    says(ValueError, "`memory` has shape (1, 5, 6), expected (2, 5, 6): as x", lambda: layer(params, x, x[:1]))
    says(TypeError, "memory float32, params float64. Bring", lambda: layer(params, x, x.astype("f4")))
    says(ValueError, "`x` has 1 axis, but RelativeAttention has `dim` 6: expected (*batch, positions, 6), given (6,).",
         lambda: layer(params, x[0, 0]))  # fmt: skip
    out, ctx = layer.fwd(params, x)
    says(ValueError, "`dout` has shape (2, 5), expected (2, 5, 6)", lambda: layer.bwd(out[..., 0], ctx))
    says(TypeError, "expected the RelativeContext that", lambda: aa.relative_attention_bwd(out, ctx))


def test_nan_stays_with_the_distances_of_its_query() -> None:
    query, key, vector = np.ones((2, 3)), np.ones((2, 3)), np.ones(3)
    query[0, 0] = np.nan  # which has the distances 0 and -1: the last two of three rows
    out, ctx = aa.relative_attention_fwd(query, key, key, np.ones((3, 3)), vector, vector)
    found = aa.relative_attention_bwd(np.ones_like(out), ctx).position_key
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).any()

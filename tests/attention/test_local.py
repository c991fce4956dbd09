"""Local attention: equal to the paper's formulas in PyTorch, and properties beyond the contract."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.positional.local import attend_around, attend_around_backward
from attnarray.attention.positional.local_near import Around
from attnarray.layers import LocalAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close, assert_trees_close

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 8e-7 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
REFERENCES = frozen("local.npz")
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])

RNG = np.random.default_rng(3)
B, T, S, D, Dv, A = 3, 4, 9, 5, 6, 8
QKV = {name: RNG.standard_normal(shape) for name, shape in
       {"query": (B, T, D), "key": (B, S, D), "value": (B, S, Dv)}.items()}  # fmt: skip
POSITION = {"position_weight": RNG.standard_normal((A, D)), "position_vector": RNG.standard_normal(A)}
MONOTONIC: dict[str, Any] = {"window": 2}
PREDICTIVE: dict[str, Any] = {**POSITION, "window": 2, "alignment": "predictive"}
ALIGNMENTS = {"monotonic": MONOTONIC, "predictive": PREDICTIVE}
each_alignment = pytest.mark.parametrize("alignment", ALIGNMENTS.values(), ids=list(ALIGNMENTS))


def pulled(dout: np.ndarray | None = None, **given: Any) -> tuple[Any, Any]:
    out, pullback = aa.vjp(aa.local_attention, **{**QKV, **given})
    return out, pullback(np.random.default_rng(1).standard_normal(out.shape) if dout is None else dout)


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
def test_it_equals_the_paper(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    arrays = reference.arrays
    params = params_of(arrays)
    hidden = params["position"]["weight"].shape[0] if "position" in params else None
    layer = LocalAttention(5, arrays["h_s"].shape[-1], hidden_dim=hidden, **reference.options)
    with aa.use_kernels(kernels):
        out, ctx = layer.fwd(params, arrays["h_t"], arrays["h_s"], kv_lengths=arrays.get("lengths"))
        grads = layer.bwd(arrays["dout"], ctx)
    assert_close(out, arrays["out"], tolerance, "out")
    if "p" in arrays:
        assert_close(ctx.attention.attention.around.centers[:, 0], arrays["p"], tolerance, "p")
    assert_close(grads.query, arrays["grad_h_t"], tolerance, "h_t")
    assert_close(grads.key, arrays["grad_h_s"], tolerance, "h_s")
    assert_trees_close(grads.params, params_of(reference.below("grad_")), tolerance)


def params_of(arrays: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {"weight": arrays["W_a"]} if "W_a" in arrays else {}
    return {**params, "position": {"weight": arrays["W_p"], "vector": arrays["v_p"]}} if "W_p" in arrays else params


@each_kernels
def test_rows_sum_to_less_than_1_where_there_is_a_gaussian(kernels: str) -> None:
    with aa.use_kernels(kernels):
        _, ctx = aa.local_attention_fwd(**QKV, **PREDICTIVE)
        weights, centers = aa.attention_weights(ctx), ctx.attention.around.centers[:, 0, :, None]
        _, monotonic = aa.local_attention_fwd(**QKV, **MONOTONIC)
        np.testing.assert_allclose(aa.attention_weights(monotonic).sum(-1), 1.0, rtol=1e-14)
    sums = weights.sum(-1)
    assert np.all(sums < 1)
    assert np.min(sums) < 0.8
    distances = np.abs(np.arange(S) - centers)
    assert not np.any(weights[distances > 2])
    assert np.all(weights[distances < 2] > 0)
    gaussian = np.exp(-(distances**2) / 2)  # sigma is half the window
    np.testing.assert_allclose(np.where(distances <= 2, weights / gaussian, 0.0).sum(-1), 1.0, rtol=1e-13)


@each_kernels
@each_alignment
@pytest.mark.parametrize("options", [{}, {"kv_lengths": [9, 4, 0], "softcap": 2.0}, {"is_causal": True}], ids=str)
def test_the_weights_are_those_of_the_output(kernels: str, alignment: dict[str, Any], options: dict[str, Any]) -> None:
    arguments = {**QKV, **alignment, **options}
    with aa.use_kernels(kernels):
        out, ctx = aa.local_attention_fwd(**arguments)
        weights = aa.attention_weights(ctx)
        shown = aa.local_attention(**{**arguments, "value": np.broadcast_to(np.eye(S), (B, S, S))})
    assert weights.shape == (B, T, S)
    assert_close(shown, weights, ROUNDING)
    assert_close(weights @ QKV["value"], out, ROUNDING)
    np.testing.assert_array_equal(aa.attention_weights(ctx, slice(1, 3)), weights[:, 1:3])


@each_kernels
@each_alignment
def test_padded_batches_are_the_single_sequences_of_their_true_lengths(kernels: str, alignment: dict[str, Any]) -> None:
    lengths = np.array([9, 1, 4])
    padded = {name: QKV[name].copy() for name in ("key", "value")}
    for row, length in enumerate(lengths):
        padded["key"][row, length:], padded["value"][row, length:] = math.nan, math.nan
    with aa.use_kernels(kernels):
        out, grads = pulled(**padded, **alignment, kv_lengths=lengths)
        dout, total = np.random.default_rng(1).standard_normal(out.shape), None
        for row, length in enumerate(lengths):
            alone = {"query": QKV["query"][row], **{name: QKV[name][row, :length] for name in padded}}
            same, its = pulled(dout[row], **alone, **alignment)
            assert_close(out[row], same, ROUNDING)
            assert_close(grads.query[row], its.query, ROUNDING)
            for name in padded:
                assert_close(getattr(grads, name)[row, :length], getattr(its, name), ROUNDING)
                assert not np.any(getattr(grads, name)[row, length:])
            here = [grad for grad in (its.position_weight, its.position_vector) if grad is not None]
            total = here if total is None else tree.add(total, here)
    assert_trees_close([g for g in (grads.position_weight, grads.position_vector) if g is not None], total, ROUNDING)


@each_kernels
@each_alignment
def test_lengths_of_0_and_fully_masked_queries(kernels: str, alignment: dict[str, Any]) -> None:
    rubbish = {name: np.where(np.arange(B)[:, None, None] == 1, math.nan, QKV[name]) for name in ("key", "value")}
    with aa.use_kernels(kernels):
        out, grads = pulled(**rubbish, **alignment, kv_lengths=[9, 0, 5], is_causal=True, q_offset=[0, 0, -2])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten([out, grads]))
    assert not np.any(out[1])
    assert not np.any(out[2, :2])  # causal, and before the first key
    assert not np.any(grads.query[1])
    assert not np.any(grads.query[2, :2])
    assert np.any(grads.query[2, 2:])
    assert not np.any(grads.key[1])
    assert not np.any(grads.value[1])


@each_kernels
@each_alignment
@pytest.mark.parametrize("sizes", [(0, T, S), (B, 0, S), (B, T, 0), (B, 0, 0)], ids=str)
def test_empty_sizes(kernels: str, alignment: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    b, t, s = sizes
    given = {"query": np.ones((b, t, D)), "key": np.ones((b, s, D)), "value": np.ones((b, s, Dv))}
    with aa.use_kernels(kernels):
        out, grads = pulled(**given, **alignment, kv_lengths=np.full(b, s))
    assert out.shape == (b, t, Dv)
    assert not np.any(out) or s > 0
    assert {name: getattr(grads, name).shape for name in given} == {name: x.shape for name, x in given.items()}
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(grads))


HIDDEN = np.array([True, False, False, True, True, False, True, False, True])
HIDING: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "mask": ({"attn_mask": ~HIDDEN}, HIDDEN),
    "-inf": ({"attn_mask": np.where(HIDDEN, -math.inf, 0.3)}, HIDDEN),
    "-inf in a bias": ({"bias": np.where(HIDDEN, -math.inf, np.zeros((B, 1, 1)))}, HIDDEN),
    "causal": ({"is_causal": True}, np.arange(S) >= T),
    "Window": ({"attn_mask": aa.Window(1, 0), "q_offset": 2}, np.isin(np.arange(S), [0, 6, 7, 8])),
    "Padding": ({"attn_mask": aa.Padding([3, 3, 3])}, np.arange(S) >= 3),
    "documents": ({"attn_mask": aa.Documents(np.zeros(T, int), HIDDEN.astype(int))}, HIDDEN),
}


@each_kernels
@each_alignment
@pytest.mark.parametrize(("options", "hidden"), HIDING.values(), ids=list(HIDING))
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_masked_keys_are_ignored(
    kernels: str, alignment: dict[str, Any], options: dict[str, Any], hidden: np.ndarray, rubbish: float
) -> None:
    dirty = {name: np.where(hidden[:, None], rubbish, QKV[name]) for name in ("key", "value")}
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):
        clean, found = pulled(**alignment, **options), pulled(**dirty, **alignment, **options)
    assert_trees_close(found, clean, ROUNDING)
    assert not np.any(found[1].key[:, hidden])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(found))


@each_kernels
def test_a_query_that_is_no_number_spoils_its_own_row_alone(kernels: str) -> None:
    query = QKV["query"].copy()
    query[1, 2, 0] = math.nan
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):
        out = aa.local_attention(**{**QKV, "query": query}, **PREDICTIVE)
        clean = aa.local_attention(**QKV, **PREDICTIVE)
    bad = np.zeros((B, T), bool)
    bad[1, 2] = True
    assert np.all(np.isnan(out[bad]))
    np.testing.assert_array_equal(out[~bad], clean[~bad])


def around(centers: np.ndarray, scoring: ScoreModifiers, window: int = 2, sigma: float = 1.0) -> tuple[Any, ...]:
    """Output and gradients of attention around these centers, for one cotangent."""
    q, k, v = (x[:, None] for x in QKV.values())
    dout = np.random.default_rng(1).standard_normal((B, 1, T, Dv))
    out, lse = attend_around(q, k, v, Around(centers, window, sigma), scoring)
    delta = np.sum(out * dout, axis=-1)
    return out, dout, *attend_around_backward(dout, delta, None, q, k, v, Around(centers, window, sigma), lse, scoring)


@each_kernels
@pytest.mark.parametrize(
    "scoring", [ScoreModifiers(1.0), ScoreModifiers(0.7, softcap=1.5, kv_lengths=np.array([9, 4, 6]))]
)
def test_gradients_of_centers_are_the_differences_away_from_the_edges(kernels: str, scoring: ScoreModifiers) -> None:
    centers = np.arange(B * T).reshape(B, 1, T) % 4 + np.linspace(0.1, 0.9, T)  # no integer within 0.1
    step = 1e-3
    with aa.use_kernels(kernels):
        dcenters = around(centers, scoring)[5]
        numeric = np.zeros(centers.shape)
        for place in np.ndindex(centers.shape):
            for offset, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
                moved = centers.copy()
                moved[place] += offset * step
                out, dout, *_ = around(moved, scoring)
                numeric[place] += weight / step * np.sum(out * dout)
    assert_close(dcenters, numeric, 1e-9)


@each_kernels
def test_the_window_moves_in_steps(kernels: str) -> None:
    """Just below and just above an integer the keys differ; on it, the window holds the keys at both edges."""
    seen = {}
    with aa.use_kernels(kernels):
        for center in (3.999, 4.0, 4.001):
            v = np.broadcast_to(np.eye(S), (B, 1, S, S))
            out, _ = attend_around(
                QKV["query"][:, None],
                QKV["key"][:, None],
                v,
                Around(np.full((B, 1, T), center), 2, 1.0),
                ScoreModifiers(1.0),
            )
            seen[center] = np.flatnonzero(out[0, 0, 0]).tolist()
    assert seen == {3.999: [2, 3, 4, 5], 4.0: [2, 3, 4, 5, 6], 4.001: [3, 4, 5, 6]}


@pytest.mark.parametrize("options", [{}, {"kv_lengths": [9, 2, 5], "q_offset": 2, "dropout_p": 0.3, "rng": 4}], ids=str)
def test_monotonic_is_dot_product_attention_in_a_band(options: dict[str, Any]) -> None:
    out, grads = pulled(**MONOTONIC, **options)
    band = {**QKV, "window": (2, 2), "scale": 1.0, **options}
    same, pullback = aa.vjp(aa.scaled_dot_product_attention, **band)
    assert_close(out, same, 0)
    expected = pullback(np.random.default_rng(1).standard_normal(out.shape))
    assert_trees_close(grads[:3], expected[:3], 0)
    ctx = aa.local_attention_fwd(**QKV, **MONOTONIC, **options)[1]
    assert "attention.engine:attention " in str(aa.explain(aa.local_attention, **QKV, **MONOTONIC, **options))
    assert type(ctx.attention).__name__ == "SDPAContext"


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": np.array([2, 0, 5])},
    "lengths, dropout": {"kv_lengths": [9, 2, 5], "dropout_p": 0.3, "rng": 4},
    "bias, softcap, scale": {"bias": RNG.standard_normal((T, S)), "softcap": 2.0, "scale": 1.7},
    "mask": {"attn_mask": RNG.random((B, T, S)) < 0.6},
}


@each_kernels
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_wide_window_and_gaussian_are_attention_to_all_keys(kernels: str, options: dict[str, Any]) -> None:
    with aa.use_kernels(kernels):
        out, grads = pulled(**{**PREDICTIVE, "window": 2**30, "sigma": 1e12}, **options)
        same, pullback = aa.vjp(aa.multiplicative_attention, **QKV, **options)
        expected = pullback(np.random.default_rng(1).standard_normal(out.shape))
    assert_close(out, same, ROUNDING)
    assert_trees_close(grads[:3], expected[:3], ROUNDING)
    assert_close(grads.position_vector, np.zeros(A), ROUNDING)
    assert grads.bias is None or np.allclose(grads.bias, expected.bias, atol=ROUNDING)


@each_kernels
def test_step_by_step_is_the_whole_causal_run(kernels: str) -> None:
    options = {"is_causal": True, "dropout_p": 0.3, "rng": 4, "kv_lengths": [9, 7, 8]}
    with aa.use_kernels(kernels):
        for alignment in (MONOTONIC, PREDICTIVE):
            whole = aa.local_attention(**QKV, **alignment, **options, q_offset=3)
            for t in range(T):
                given = {**QKV, "query": QKV["query"][:, t : t + 1], **alignment, **options}
                assert_close(aa.local_attention(**given, q_offset=3 + t), whole[:, t : t + 1], ROUNDING)


@each_alignment
def test_contexts_hold_nothing_of_the_size_of_the_scores(alignment: dict[str, Any]) -> None:
    given = {"query": np.ones((1, 256, D)), "key": np.ones((1, 256, D)), "value": np.ones((1, 256, Dv))}
    assert tree.nbytes(aa.local_attention_fwd(**given, **alignment)[1]) < 256 * 256 * 8 / 4

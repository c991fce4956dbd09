"""The three scales of attention against explicit computation, and the combination of context and state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import ScaledAttention
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-13  # sums of a few dozen products in another order
RNG = np.random.default_rng(5)
B, T, S, D, Dv = 2, 3, 4, 5, 6
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((B, T, D), (B, S, D), (B, S, Dv)))
DOUT = RNG.standard_normal((B, T, Dv))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": 1},
    "lengths, dropout": {"kv_lengths": [4, 2], "dropout_p": 0.3, "rng": 4},
    "bias, softcap": {"bias": RNG.standard_normal((T, S)), "softcap": 2.0},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def pulled(query: Any = QUERY, **given: Any) -> tuple[Any, Any]:
    out, pullback = aa.vjp(aa.scaled_attention, query, KEY, VALUE, **given)
    return out, pullback(DOUT)


def plain(query: Any = QUERY, dout: Any = DOUT, **options: Any) -> tuple[Any, Any]:
    """Dot-product attention, to apply the scales to explicitly."""
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, query, KEY, VALUE, **options)
    return out, pullback(dout)


@each_option
def test_without_scales_it_is_dot_product_attention(options: dict[str, Any]) -> None:
    out, grads = pulled(**options)
    same, expected = plain(**options)
    assert_close(out, same, 0)
    assert_trees_close([*grads[:3], grads.bias], [*expected[:3], expected.bias], 0)
    assert grads.gate is grads.score_scale is grads.inverse_temperature is None


@each_option
@pytest.mark.parametrize("shape", [(), (B, T)], ids=["one", "each query"])
def test_a_score_scale_is_a_factor_of_the_queries(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    g = np.asarray(RNG.standard_normal(shape))
    out, grads = pulled(score_scale=g, **options)
    same, expected = plain(QUERY * g[..., None], scale=1.0, **options)
    assert_close(out, same, ROUNDING)
    products = expected.query * QUERY
    assert_close(grads.score_scale, products.sum(-1) if shape else products.sum(), ROUNDING)
    assert_trees_close([grads.query, grads.key], [expected.query * g[..., None], expected.key], ROUNDING)


@each_option
@pytest.mark.parametrize("shape", [(), (B, T)], ids=["one", "each query"])
def test_an_inverse_temperature_applies_after_the_softcap(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Explicitly: the scores as a bias, after the softcap and before that of the options."""
    beta = np.asarray(RNG.uniform(0.5, 2.0, shape))
    out, grads = pulled(inverse_temperature=beta, **options)
    scores, c = QUERY @ KEY.mT / math.sqrt(D), options.get("softcap")
    capped = scores if c is None else c * np.tanh(scores / c)
    bias = beta[..., None, None] * capped if not shape else beta[..., None] * capped
    rest = {name: given for name, given in options.items() if name not in ("softcap", "bias")}
    same, expected = plain(np.zeros_like(QUERY), bias=bias + options.get("bias", 0.0), **rest)
    assert_close(out, same, ROUNDING)
    products = expected.bias * capped  # (B, T, S)
    assert_close(grads.inverse_temperature, products.sum(-1) if shape else products.sum(), ROUNDING)


@each_option
@pytest.mark.parametrize("shape", [(), (B, T)], ids=["one", "each query"])
def test_a_gate_is_a_factor_of_the_output(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    gate = np.asarray(RNG.standard_normal(shape))
    out, grads = pulled(gate=gate, **options)
    ungated, expected = plain(dout=DOUT * gate[..., None], **options)
    assert_close(out, ungated * gate[..., None], ROUNDING)
    products = DOUT * ungated
    assert_close(grads.gate, products.sum(-1) if shape else products.sum(), ROUNDING)
    assert_trees_close(list(grads[:3]), list(expected[:3]), ROUNDING)


@each_option
def test_numbers_are_arrays_of_that_number(options: dict[str, Any]) -> None:
    numbers = {"gate": -0.7, "score_scale": 0.4, "inverse_temperature": -1.5}
    out, grads = pulled(**numbers, **options)
    for shape in ((), (B, T)):
        same, expected = pulled(**{name: np.full(shape, number) for name, number in numbers.items()}, **options)
        assert_close(out, same, ROUNDING)
        assert_trees_close([*grads[:3], grads.bias], [*expected[:3], expected.bias], ROUNDING)
        assert all(getattr(expected, name).shape == shape for name in numbers)
        assert all(getattr(grads, name) is None for name in numbers)


@each_option
@pytest.mark.parametrize("shapes", [((), (), ()), ((B, T), (), (B, T)), ((), (B, T), (B, T))], ids=str)
def test_gradients_of_the_scales(options: dict[str, Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    names = ("gate", "score_scale", "inverse_temperature")
    scales = {name: np.asarray(RNG.uniform(0.5, 1.5, shape)) for name, shape in zip(names, shapes, strict=True)}
    report = aa.gradcheck(aa.scaled_attention, QUERY, KEY, VALUE, **scales, **options)
    assert report, str(report)
    assert {"query", "key", "value", *names} <= {check.name for check in report.inputs}


def test_a_scale_that_numpy_made_a_scalar_is_learned_too() -> None:
    scale = np.asarray(0.5) - np.asarray(0.1)  # as an optimizer's step leaves it
    assert not isinstance(scale, np.ndarray)
    _, grads = pulled(score_scale=scale)
    assert grads.score_scale.shape == ()


def test_a_closed_gate_and_a_temperature_of_zero() -> None:
    out, grads = pulled(gate=np.zeros((B, T)))
    assert not np.any(out)
    assert np.any(grads.gate)
    out, _ = pulled(inverse_temperature=np.zeros(()))
    assert_close(out, np.broadcast_to(VALUE.mean(1, keepdims=True), out.shape), ROUNDING)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("learned_scale", [False, True])
@pytest.mark.parametrize("values", [False, True], ids=["keys", "values"])
def test_gradients_of_the_layer(gate: bool, learned_scale: bool, values: bool) -> None:
    layer = ScaledAttention(D, gate=gate, learned_scale=learned_scale)
    params = tree.map(lambda leaf: leaf + 0.2, layer.init(aa.Philox(1), "float64"))
    given = {"query": QUERY, "key": KEY, **({"value": VALUE} if values else {})}
    options = {"kv_lengths": [4, 3], "softcap": 3.0, "bias": RNG.standard_normal((T, S))}
    report = aa.gradcheck(layer, params, **given, **options)
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)}
    assert names | {*given, "bias"} == {check.name for check in report.inputs}
    out, ctx = layer.fwd(params, **given, **options)
    tree.add(layer.bwd(out, ctx).params, params)  # trees of the same structure
    assert aa.attention_weights(ctx).shape == (B, T, S)


def test_the_layer_is_gated_dot_product_attention() -> None:
    layer = ScaledAttention(D)
    params = layer.init(aa.Philox(1), "float64")
    assert params["score_scale"] == 1 / math.sqrt(D)
    gates = 1 / (1 + np.exp(-(QUERY @ params["gate"]["weight"][0] + params["gate"]["bias"])))
    assert_close(layer(params, QUERY, KEY, VALUE), gates[..., None] * plain()[0], ROUNDING)
    says(ValueError, "`dim` is 0, expected an integer", lambda: ScaledAttention(0))


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "widths": (ValueError, {"query": QUERY[..., :4]}, "`key` has 5 features but `query` has 4; they must match."),
    "gate": (ValueError, {"gate": np.ones(T)}, "`gate` has shape (3,), expected () for all queries or (*batch, T) ="),
    "axes": (ValueError, {"score_scale": np.ones((B, T, 1))}, "`score_scale` has shape (2, 3, 1), expected () for all"),
    "zero": (ValueError, {"score_scale": 0}, "`score_scale` is 0, expected a finite number other than 0, or an array"),
    "NaN": (ValueError, {"inverse_temperature": math.nan}, "`inverse_temperature` is nan, expected a finite number"),
    "infinite": (ValueError, {"gate": math.inf}, "`gate` is inf, expected a finite number, or an array () or (*batch"),
    "text": (ValueError, {"gate": "open"}, "`gate` is 'open', expected a finite number"),
    "list": (ValueError, {"gate": [1.0, 2.0]}, "`gate` is [1.0, 2.0], expected a finite number"),
    "softcap": (ValueError, {"softcap": -2.0, "inverse_temperature": 2.0}, "`softcap` is -2.0, expected a finite"),
    "integers": (TypeError, {"gate": np.ones((B, T), int)}, "`gate` has dtype int64, expected one of"),
    "dtype": (TypeError, {"score_scale": np.float32(2)}, "value float64, score_scale float32. Bring them to one dtype"),
    "scale": (TypeError, {"scale": 2.0}, "Attention has no option `scale`. The options: bias, window, q_offset"),
    "no query": (TypeError, {"query": None}, "`query` is None, expected an array"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": QUERY, "key": KEY, "value": VALUE, **changes}
    says(error, expected, lambda: aa.scaled_attention(**given))


def test_the_backward_checks_its_cotangent() -> None:
    out, ctx = aa.scaled_attention_fwd(QUERY, KEY, VALUE)
    backward = aa.scaled_attention_bwd
    says(ValueError, "`dout` has shape (2, 3), expected (2, 3, 6)", lambda: backward(out[..., 0], ctx))
    says(TypeError, "expected the ScaledContext that the forward", lambda: backward(out, ctx.attention))


CONTEXT, HIDDEN = RNG.standard_normal((B, T, 4)), RNG.standard_normal((B, T, 7))
GIVEN = {
    "context": CONTEXT, "hidden": HIDDEN, "context_weight": RNG.standard_normal((5, 4)),
    "hidden_weight": RNG.standard_normal((5, 7)),
}  # fmt: skip


def test_a_combination_with_identities_is_the_residual() -> None:
    out, pullback = aa.vjp(aa.attentional_hidden_state, CONTEXT, CONTEXT + 1.0, np.eye(4), np.eye(4))
    np.testing.assert_array_equal(out, CONTEXT + (CONTEXT + 1.0))
    grads = pullback(out)
    np.testing.assert_array_equal([grads.context, grads.hidden], [out, out])


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("bias", [None, RNG.standard_normal(5)], ids=["no bias", "bias"])
def test_a_combination_is_a_linear_map_of_both_side_by_side(activation: str | None, bias: Any) -> None:
    out, pullback = aa.vjp(aa.attentional_hidden_state, **GIVEN, bias=bias, activation=activation)
    weight = np.concatenate([GIVEN["context_weight"], GIVEN["hidden_weight"]], axis=1)
    both, of_both = aa.vjp(aa.linear, np.concatenate([CONTEXT, HIDDEN], axis=-1), weight, bias)
    same, of_tanh = aa.vjp(aa.tanh, both)
    assert_close(out, both if activation is None else same, ROUNDING)
    dout = RNG.standard_normal(out.shape)
    grads = pullback(dout)
    expected = of_both(dout if activation is None else of_tanh(dout).x)
    assert_close(np.concatenate([grads.context, grads.hidden], axis=-1), expected.x, ROUNDING)
    assert_close(np.concatenate([grads.context_weight, grads.hidden_weight], axis=1), expected.weight, ROUNDING)
    assert_trees_close([grads.bias], [expected.bias], ROUNDING)


BAD_COMBINATIONS: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "activation": (ValueError, {"activation": "relu"}, "`activation` is 'relu', expected one of None, 'tanh'."),
    "axes": (ValueError, {"hidden": HIDDEN[0]}, "`context` (..., Dc) and `hidden` (..., Dh) must have the same"),
    "context": (ValueError, {"context": HIDDEN}, "`context_weight` has shape (5, 4), expected (E, 7): a column per"),
    "rows": (ValueError, {"hidden_weight": np.ones((6, 7))}, "`hidden_weight` has shape (6, 7), expected (E, 7): a"),
    "bias": (ValueError, {"bias": np.ones(4)}, "`bias` has shape (4,), expected (5,): one number per row of the"),
    "dtype": (TypeError, {"bias": np.ones(5, "f4")}, "hidden_weight float64, bias float32. Bring them to one dtype"),
    "no state": (TypeError, {"hidden": None}, "`hidden` is None, expected an array"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD_COMBINATIONS.values(), ids=list(BAD_COMBINATIONS))
def test_bad_combinations_get_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    says(error, expected, lambda: aa.attentional_hidden_state(**{**GIVEN, **changes}))

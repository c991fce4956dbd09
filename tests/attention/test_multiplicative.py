"""Luong's attention: equal to the paper's formulas in PyTorch, and properties beyond the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import LuongAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 1e-6 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
SCORES = ("dot", "general", "concat")
CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
REFERENCES = frozen("multiplicative.npz")
WITHOUT_FEEDING = {name: reference for name, reference in REFERENCES.items() if "y" not in reference.arrays}
FED = {name: reference for name, reference in REFERENCES.items() if "y" in reference.arrays}
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])


def layer_of(reference: Frozen) -> tuple[LuongAttention, dict[str, Any]]:
    """The layer of the paper's weights, and these as its parameters."""
    names = {"W_a": "weight", "v_a": "score_vector"}
    params: dict[str, Any] = {names[name]: array for name, array in reference.given(*names).items()}
    if reference.options["output"]:
        params["output"] = {"weight": reference.arrays["W_c"]}
    hidden = params["score_vector"].shape[0] if "score_vector" in params else None
    return LuongAttention(4, reference.arrays["h_s"].shape[-1], hidden_dim=hidden, **reference.options), params


def expected_params(reference: Frozen) -> dict[str, Any]:
    return layer_of(reference._replace(arrays={**reference.arrays, **reference.below("grad_")}))[1]


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", WITHOUT_FEEDING.values(), ids=list(WITHOUT_FEEDING))
def test_it_equals_the_paper(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    layer, params = layer_of(reference)
    arrays = reference.arrays
    with aa.use_kernels(kernels):
        out, ctx = layer.fwd(params, arrays["h_t"], arrays["h_s"], kv_lengths=arrays.get("lengths"))
        grads = layer.bwd(arrays["dout"], ctx)
    assert_close(out, arrays["out"], tolerance, "out")
    assert_close(grads.query, arrays["grad_h_t"], tolerance, "h_t")
    assert_close(grads.key, arrays["grad_h_s"], tolerance, "h_s")
    assert_trees_close(grads.params, expected_params(reference), tolerance)


class Fed(NamedTuple):
    """The context of a decoder: the contexts of its steps."""

    steps: list[Any]
    inputs: int


class FedGrads(NamedTuple):
    params: dict[str, Any]
    inputs: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class Decoder:
    """Luong's decoder with input feeding: x_t = [y_t; h~_(t-1)], h_t = LSTM(x_t), h~_t = attention of h_t."""

    attention: LuongAttention

    def __call__(self, params: dict[str, Any], inputs: Any, source: Any, kv_lengths: Any = None) -> Any:
        return self.fwd(params, inputs, source, kv_lengths)[0]

    def fwd(self, params: dict[str, Any], inputs: Any, source: Any, kv_lengths: Any = None) -> tuple[Any, Fed]:
        fed = np.zeros((*inputs.shape[:-2], 1, self.attention.query_dim), inputs.dtype)
        state: dict[str, Any] = {}
        outs, steps = [], []
        for t in range(inputs.shape[-2]):
            x = np.concatenate([inputs[..., t : t + 1, :], fed], axis=-1)
            step, of_cell = aa.lstm_fwd(x, **params["cell"], **state)
            fed, of_attention = self.attention.fwd(params["attention"], step.out, source, kv_lengths=kv_lengths)
            state = {"h0": step.h, "c0": step.c}
            outs.append(fed)
            steps.append((of_cell, of_attention))
        return np.concatenate(outs, axis=-2), Fed(steps, inputs.shape[-1])

    def bwd(self, dout: Any, ctx: Fed) -> FedGrads:
        total, dinputs, dfed, dh, dc = None, [], 0.0, None, None
        for t in reversed(range(len(ctx.steps))):
            of_cell, of_attention = ctx.steps[t]
            attention = self.attention.bwd(dout[..., t : t + 1, :] + dfed, of_attention)
            cell = aa.lstm_bwd(aa.LSTMResult(attention.query, dh, dc), of_cell)
            dinputs.insert(0, cell.x[..., : ctx.inputs])
            dfed, dh, dc = cell.x[..., ctx.inputs :], cell.h0, cell.c0
            params = {"cell": {name: getattr(cell, name) for name in CELL}, "attention": attention.params}
            here = FedGrads(params, np.zeros(()), attention.key)
            total = here if total is None else tree.add(total, here)
        return total._replace(inputs=np.concatenate(dinputs, axis=-2))


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", FED.values(), ids=list(FED))
def test_input_feeding_equals_the_paper(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    layer, of_attention = layer_of(reference)
    arrays = reference.arrays
    params = {"cell": reference.given(*CELL), "attention": of_attention}
    with aa.use_kernels(kernels):
        out, ctx = Decoder(layer).fwd(params, arrays["y"], arrays["h_s"], arrays["lengths"])
        grads = Decoder(layer).bwd(arrays["dout"], ctx)
    assert_close(out, arrays["out"], tolerance, "out")
    assert_close(grads.inputs, arrays["grad_y"], tolerance, "y")
    assert_close(grads.source, arrays["grad_h_s"], tolerance, "h_s")
    assert_trees_close(grads.params["attention"], expected_params(reference), tolerance)
    assert_trees_close(grads.params["cell"], {name: arrays[f"grad_{name}"] for name in CELL}, tolerance)


RNG = np.random.default_rng(8)
B, T, S, Dq, Dk, A = 2, 3, 5, 4, 7, 6
QUERY, KEY, SQUARE = (RNG.standard_normal(shape) for shape in ((B, T, Dq), (B, S, Dk), (B, S, Dq)))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("output", [False, True], ids=["contexts", "attentional"])
@pytest.mark.parametrize("values", [False, True], ids=["keys", "values"])
def test_gradients_of_the_layer(score: str, output: bool, values: bool) -> None:
    keys = SQUARE if score == "dot" else KEY
    layer = LuongAttention(Dq, keys.shape[-1], score, A, output, 9, value_dim=8 if values else None)
    params = layer.init(aa.Philox(2), "float64")
    given = {"query": QUERY, "key": keys, **({"value": RNG.standard_normal((B, S, 8))} if values else {})}
    options = {"kv_lengths": [5, 3], "bias": RNG.standard_normal((T, S))}
    out, ctx = layer.fwd(params, **given, **options)
    assert out.shape == (B, T, 9 if output else 8 if values else keys.shape[-1])
    assert aa.attention_weights(ctx).shape == (B, T, S)
    report = aa.gradcheck(layer, params, **given, **options)
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)}
    assert names | {*given, "bias"} == {check.name for check in report.inputs}
    tree.add(layer.bwd(out, ctx).params, params)  # trees of the same structure


@pytest.mark.parametrize("score", SCORES)
def test_gradients_through_input_feeding(score: str) -> None:
    keys = SQUARE if score == "dot" else KEY
    layer = LuongAttention(Dq, keys.shape[-1], score, output=True)
    rows = {"weight_ih": (4 * Dq, 3 + Dq), "weight_hh": (4 * Dq, Dq), "bias_ih": (4 * Dq,), "bias_hh": (4 * Dq,)}
    cell = {name: 0.5 * RNG.standard_normal(shape) for name, shape in rows.items()}
    params = {"cell": cell, "attention": layer.init(aa.Philox(5), "float64")}
    report = aa.gradcheck(Decoder(layer), params, RNG.standard_normal((B, T, 3)), keys, kv_lengths=[5, 2])
    assert report, str(report)
    assert {"inputs", "source"} < {check.name for check in report.inputs}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": 2},
    "lengths, dropout": {"kv_lengths": [5, 2], "dropout_p": 0.3, "rng": 4},
    "bias, softcap, scale": {"bias": RNG.standard_normal((T, S)), "softcap": 2.0, "scale": 1.7},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def pulled(*arrays: Any, **options: Any) -> tuple[Any, Any]:
    out, pullback = aa.vjp(aa.multiplicative_attention, *arrays, **options)
    return out, pullback(np.random.default_rng(1).standard_normal(out.shape))


@each_option
def test_general_with_the_identity_is_dot(options: dict[str, Any]) -> None:
    out, grads = pulled(QUERY, SQUARE, SQUARE, np.eye(Dq), score="general", **options)
    same, expected = pulled(QUERY, SQUARE, SQUARE, **options)
    assert_close(out, same, ROUNDING)
    assert_trees_close(grads._replace(weight=None), expected, ROUNDING)


@each_option
def test_dot_is_dot_product_attention_that_is_not_scaled(options: dict[str, Any]) -> None:
    out, grads = pulled(QUERY, SQUARE, SQUARE, **options)
    same, pullback = aa.vjp(aa.scaled_dot_product_attention, QUERY, SQUARE, SQUARE, **{"scale": 1.0, **options})
    assert_close(out, same, 0)
    expected = pullback(np.random.default_rng(1).standard_normal(out.shape))
    assert_trees_close([*grads[:3], grads.bias], [*expected[:3], expected.bias], 0)


@each_option
def test_concat_is_the_concatenation_of_every_pair(options: dict[str, Any]) -> None:
    """Computed explicitly: all pairs [q_i; k_j], a linear map, tanh, and the scores of each query."""
    weight, vector = RNG.standard_normal((A, Dq + Dk)), RNG.standard_normal(A)
    out, grads = pulled(QUERY, KEY, KEY, weight, vector, score="concat", **options)
    repeated = np.broadcast_to(QUERY[:, :, None], (B, T, S, Dq)), np.broadcast_to(KEY[:, None], (B, T, S, Dk))
    pairs = np.concatenate(repeated, axis=-1)
    hidden, of_map = aa.vjp(aa.linear, pairs, weight)
    hidden, of_tanh = aa.vjp(aa.tanh, hidden)
    scores, of_vector = aa.vjp(aa.linear, hidden, vector[None])
    total = None
    for t in range(T):  # with q = 1 and k = e_ij the dot products are the scores
        of_step = {**options, "q_offset": options.get("q_offset", 0) + t}
        if "bias" in options:
            of_step["bias"] = options["bias"][t : t + 1]
        step, pullback = aa.vjp(aa.multiplicative_attention, np.ones((B, 1, 1)), scores[:, t], KEY, **of_step)
        assert_close(step, out[:, t : t + 1], ROUNDING)
        dscores = pullback(np.random.default_rng(1).standard_normal(out.shape)[:, t : t + 1])
        scores_of_t = np.zeros(scores.shape)
        scores_of_t[:, t] = dscores.key
        of_scores = of_vector(scores_of_t)
        dpairs = of_map(of_tanh(of_scores.x).x)
        assert_close(dpairs.x[:, t, :, :Dq].sum(1), grads.query[:, t], ROUNDING)
        here = [dpairs.x[..., Dq:].sum(1), dscores.value, dpairs.weight, of_scores.weight[0]]
        total = here if total is None else tree.add(total, here)
    assert_trees_close(total, [grads.key, grads.value, grads.weight, grads.score_vector], ROUNDING)


def test_the_target_comes_first_in_concat_and_last_in_the_output() -> None:
    weight, vector = np.zeros((A, Dq + Dk)), np.ones(A)
    weight[:, Dq:] = RNG.standard_normal((A, Dk))
    out = aa.multiplicative_attention(QUERY, KEY, KEY, weight, vector, score="concat")
    assert_close(out, np.broadcast_to(out[:, :1], out.shape), ROUNDING)  # no query has a gradient
    layer = LuongAttention(Dq, Dk, output=True)
    params = layer.init(aa.Philox(0), "float64")
    params["output"]["weight"] = np.concatenate([np.zeros((Dq, Dk)), np.eye(Dq)], axis=1)
    assert_close(layer(params, QUERY, KEY), np.tanh(QUERY), ROUNDING)


X = np.zeros((2, 3, 5))
BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "score": (ValueError, {"score": "bilinear"}, "`score` is 'bilinear', expected one of 'dot', 'general', 'concat'."),
    "a weight for dot": (ValueError, {"weight": X[0]}, "`weight` is given, but the score 'dot' has none. Leave it out"),
    "no weight": (ValueError, {"score": "general"}, "`weight` is None, but the score 'general' needs it. Give it, or"),
    "no vector": (ValueError, {"score": "concat", "weight": X[0]}, "`score_vector` is None, but the score 'concat'"),
    "vector": (ValueError, {"score_vector": X[0, 0]}, "`score_vector` is given, but the score 'dot' has none."),
    "widths": (ValueError, {}, "`key` has 7 features but `query` has 4; for the score 'dot' they must match. Use"),
    "transposed": (ValueError, {"score": "general", "weight": np.zeros((Dk, Dq))}, "expected (4, 7): (Dq, Dk) for the"),
    "narrow": (
        ValueError,
        {"score": "concat", "weight": np.zeros((A, Dq)), "score_vector": np.zeros(A)},
        "`weight` has shape (6, 4), expected (6, 11): (A, Dq + Dk) for the score 'concat'. Shapes: query (2, 3, 4), ke",
    ),
    "a number": (
        ValueError,
        {"score": "concat", "weight": np.zeros(()), "score_vector": np.zeros(A)},
        "`weight` has shape (), expected (1, 11)",
    ),
    "long vector": (
        ValueError,
        {"score": "concat", "weight": np.zeros((A, Dq + Dk)), "score_vector": np.zeros(A + 1)},
        "`score_vector` has shape (7,), expected (6,): one number per row of `weight`. Shapes:",
    ),
    "dtype": (TypeError, {"score": "general", "weight": np.zeros((Dq, Dk), "f4")}, "value float64, weight float32"),
    "no key": (TypeError, {"key": None}, "`key` is None, expected an array"),
    "mask's name": (TypeError, {"mask": None}, "dropout_mask. Masks are given as `attn_mask`."),
    "heads": (TypeError, {"sinks": np.zeros(1)}, "Attention has no option `sinks`. The options: scale, bias, window"),
    "mask": (
        ValueError,
        {"score": "general", "weight": np.zeros((Dq, Dk)), "attn_mask": np.ones((2, 1, 3, 5), bool)},
        "`attn_mask` has shape (2, 1, 3, 5), which does not broadcast to (*batch, T, S) = (2, 3, 5)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": QUERY, "key": KEY, "value": KEY, **changes}
    says(error, expected, lambda: aa.multiplicative_attention(**given))


def test_the_layer_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`score` is 'additive', expected one of", lambda: LuongAttention(4, 7, "additive"))
    says(ValueError, "for the score 'dot' they must be equal. Use 'general'.", lambda: LuongAttention(4, 7, "dot"))
    says(ValueError, "`hidden_dim` is 0, expected an integer", lambda: LuongAttention(4, 7, hidden_dim=0))
    out, ctx = aa.multiplicative_attention_fwd(QUERY, SQUARE, SQUARE)
    backward = aa.multiplicative_attention_bwd
    says(ValueError, "`dout` has shape (2, 3), expected (2, 3, 4)", lambda: backward(out[..., 0], ctx))
    says(TypeError, "expected the MultiplicativeContext that the", lambda: backward(out, ctx.attention))

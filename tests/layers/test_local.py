"""The layer of local attention, and errors of local attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import LocalAttention
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

RNG = np.random.default_rng(8)
B, T, S, Dq, Dk, A = 2, 3, 8, 4, 7, 6
QUERY, KEY, SQUARE = (RNG.standard_normal(shape) for shape in ((B, T, Dq), (B, S, Dk), (B, S, Dq)))


@pytest.mark.parametrize("score", ["general", "dot"])
@pytest.mark.parametrize("alignment", ["monotonic", "predictive"])
@pytest.mark.parametrize("values", [False, True], ids=["keys", "values"])
def test_gradients_of_the_layer(score: str, alignment: str, values: bool) -> None:
    keys = SQUARE if score == "dot" else KEY
    hidden = A if alignment == "predictive" else None
    layer = LocalAttention(Dq, keys.shape[-1], 2, alignment, score=score, hidden_dim=hidden)
    params = layer.init(aa.Philox(2), "float64")
    given = {"query": QUERY, "key": keys, **({"value": RNG.standard_normal((B, S, 9))} if values else {})}
    options = {"kv_lengths": [8, 5], "bias": RNG.standard_normal((T, S))}
    out, ctx = layer.fwd(params, **given, **options)
    if alignment == "predictive":  # the differences must not cross an integer
        centers = ctx.attention.attention.around.centers
        assert np.min(np.abs(centers - np.round(centers))) > 0.01
    assert out.shape == (B, T, 9 if values else keys.shape[-1])
    assert aa.attention_weights(ctx).shape == (B, T, S)
    report = aa.gradcheck(layer, params, **given, **options)
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)}
    assert names | {*given, "bias"} == {check.name for check in report.inputs}
    tree.add(layer.bwd(out, ctx).params, params)  # trees of the same structure


def test_the_layer_is_the_function_of_its_parameters() -> None:
    layer = LocalAttention(Dq, Dk, 2, sigma=0.6, hidden_dim=A)
    params = layer.init(aa.Philox(1), "float64")
    shapes = {".".join(path): leaf.shape for path, leaf in tree.flatten(params)}
    assert shapes == {"weight": (Dq, Dk), "position.weight": (A, Dq), "position.vector": (A,)}
    position = {f"position_{name}": array for name, array in params["position"].items()}
    found = aa.local_attention(
        QUERY, KEY, KEY, **position, weight=params["weight"], alignment="predictive", window=2, sigma=0.6
    )
    np.testing.assert_array_equal(layer(params, QUERY, KEY), found)
    assert LocalAttention(Dq, Dk, 2).init(aa.Philox(1))["position"]["weight"].shape == (Dq, Dq)
    assert LocalAttention(Dq, Dq, 2, "monotonic", score="dot").init(aa.Philox(1)) == {}


def test_general_is_dot_with_mapped_queries_in_the_same_windows() -> None:
    layer = LocalAttention(Dq, Dk, 2)
    params = layer.init(aa.Philox(3), "float64")
    _, ctx = layer.fwd(params, QUERY, KEY)
    _, monotonic = LocalAttention(Dq, Dk, 2, "monotonic").fwd({"weight": params["weight"]}, QUERY, KEY)
    mapped = QUERY @ params["weight"]
    assert_close(monotonic.attention.attention.q[:, 0], mapped, 1e-13)
    assert_close(ctx.attention.attention.q[:, 0], mapped, 1e-13)
    position = params["position"]
    centers = S / (1 + np.exp(-np.tanh(QUERY @ position["weight"].T) @ position["vector"]))
    assert_close(ctx.attention.attention.around.centers[:, 0], centers, 1e-13)


def test_16_bit_parameters() -> None:
    layer = LocalAttention(Dq, Dk, 2)
    params = layer.init(aa.Philox(3), "float16")
    query, key = QUERY.astype(np.float16), KEY.astype(np.float16)
    out, ctx = layer.fwd(params, query, key)
    grads = layer.bwd(out, ctx)
    assert {leaf.dtype.name for _, leaf in tree.flatten([out, grads])} == {"float16"}
    exact = tree.map(lambda x: x.astype(np.float64), params)
    assert_trees_close(out, layer(exact, query.astype(float), key.astype(float)), 2.0**-10)


POSITION = {"position_weight": np.ones((A, Dq)), "position_vector": np.ones(A)}
PREDICTIVE = {**POSITION, "alignment": "predictive"}
X = np.zeros((2, 3, 5))
BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "alignment": (ValueError, {"alignment": "local-p"}, "`alignment` is 'local-p', expected one of 'monotonic', 'pred"),
    "window 0": (ValueError, {"window": 0}, "`window` is 0, expected an integer >= 1: how many keys on either"),
    "window -1": (ValueError, {"window": -1}, "`window` is -1, expected an integer >= 1: how many keys on either side"),
    "a pair": (ValueError, {"window": (2, 2)}, "`window` is (2, 2), expected an integer >= 1: how many keys on"),
    "half a key": (ValueError, {"window": 1.5}, "`window` is 1.5, expected an integer >= 1: how many keys on either"),
    "sigma 0": (ValueError, {**PREDICTIVE, "sigma": 0}, "`sigma` is 0, expected a finite number above 0."),
    "sigma -1": (ValueError, {**PREDICTIVE, "sigma": -1.0}, "`sigma` is -1.0, expected a finite number above 0."),
    "sigma nan": (ValueError, {**PREDICTIVE, "sigma": np.nan}, "`sigma` is nan, expected a finite number above 0."),
    "sigma": (ValueError, {"sigma": 1.0}, "`sigma` is given, but the alignment 'monotonic' predicts no positions and"),
    "weight of m": (ValueError, {"position_weight": X[0]}, "`position_weight` is given, but the alignment 'monotonic'"),
    "vector of m": (ValueError, {"position_vector": X[0, 0]}, "Leave it out, or use alignment='predictive'."),
    "no weight": (
        ValueError,
        {"alignment": "predictive"},
        "`position_weight` is None, but the alignment 'predictive' needs it. Give it, or use 'monotonic'.",
    ),
    "no vector": (
        ValueError,
        {"alignment": "predictive", "position_weight": np.ones((A, Dq))},
        "`position_vector` is None, but the alignment 'predictive' needs it. Give it, or",
    ),
    "transposed": (
        ValueError,
        {**PREDICTIVE, "position_weight": np.ones((Dq, A))},
        "`position_weight` has shape (4, 6), expected (4, 4): (A, Dq). Shapes: query (2, 3, 4), key (2, 8, 4), positi",
    ),
    "long vector": (
        ValueError,
        {**PREDICTIVE, "position_vector": np.ones(A + 1)},
        "`position_vector` has shape (7,), expected (6,): one number per row of `position_weight`. Shapes:",
    ),
    "a number": (ValueError, {**PREDICTIVE, "position_weight": np.ones(())}, "has shape (), expected (1, 4)"),
    "widths": (
        ValueError,
        {"key": KEY, "value": KEY},
        "`key` has 7 features but `query` has 4; for the score 'dot' they must match. Give a `weight` (Dq, Dk).",
    ),
    "swapped": (ValueError, {"key": KEY, "value": KEY, "weight": np.ones((Dk, Dq))}, "expected (4, 7): (Dq, Dk)."),
    "length": (ValueError, {"kv_lengths": [9, 1]}, "`kv_lengths` goes from 1 to 9, expected 0 to S = 8"),
    "dtype": (TypeError, {**PREDICTIVE, "position_vector": np.ones(A, "f4")}, "position_vector float32. Bring them to"),
    "no key": (TypeError, {"key": None}, "`key` is None, expected an array"),
    "heads": (TypeError, {"sinks": np.zeros(1)}, "Attention has no option `sinks`. The options: scale, bias, q_offset"),
    "mask": (
        ValueError,
        {**PREDICTIVE, "attn_mask": np.ones((2, 1, 3, 8), bool)},
        "`attn_mask` has shape (2, 1, 3, 8), which does not broadcast to (*batch, T, S) = (2, 3, 8)",
    ),
    "no seed": (ValueError, {**PREDICTIVE, "dropout_p": 0.5}, "`dropout_p` is 0.5 but neither `rng` nor"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": QUERY, "key": SQUARE, "value": SQUARE, "window": 2, **changes}
    says(error, expected, lambda: aa.local_attention(**given))


def test_the_layer_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`alignment` is 'global', expected one of", lambda: LocalAttention(4, 7, 2, "global"))
    says(
        ValueError,
        "`score` is 'concat', expected one of 'general', 'dot'",
        lambda: LocalAttention(4, 7, 2, score="concat"),
    )
    says(ValueError, "for the score 'dot' they must be equal. Use 'gen", lambda: LocalAttention(4, 7, 2, score="dot"))
    says(ValueError, "`window` is 0, expected an integer >= 1: a size of", lambda: LocalAttention(4, 7, 0))
    says(ValueError, "`hidden_dim` is 0, expected an integer", lambda: LocalAttention(4, 7, 2, hidden_dim=0))
    says(ValueError, "`sigma` is 0, expected a finite number above 0", lambda: LocalAttention(4, 7, 2, sigma=0))
    says(ValueError, "`sigma` is 1.0, but the alignment 'monotonic'", lambda: LocalAttention(4, 7, 2, "monotonic", 1.0))
    out, ctx = aa.local_attention_fwd(QUERY, SQUARE, SQUARE, window=1)
    backward = aa.local_attention_bwd
    says(ValueError, "`dout` has shape (2, 3), expected (2, 3, 4)", lambda: backward(out[..., 0], ctx))
    says(TypeError, "expected the LocalContext that the", lambda: backward(out, ctx.attention))

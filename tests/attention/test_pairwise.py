"""Properties of pairwise attention beyond the contract: lengths, steps, and recurrent states."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-13  # sums of a few dozen products in another order

RNG = np.random.default_rng(5)
GIVEN = {  # B 2, T 5, D 3, A 4, Dh 6
    "x": RNG.standard_normal((2, 5, 3)),
    "input_weight": RNG.standard_normal((4, 6)),
    "score_vector": 2 * RNG.standard_normal(4),
    "hidden": RNG.standard_normal((2, 5, 6)),
    "hidden_weight": RNG.standard_normal((4, 6)),
    "input_bias": RNG.standard_normal(4),
}
SHARED = ("input_weight", "score_vector", "hidden_weight", "input_bias")
DOUT = RNG.standard_normal((2, 5, 3))


def pulled(dout: Any = DOUT, **given: Any) -> tuple[Any, Any]:
    """The output, and the gradients for `dout`."""
    out, pullback = aa.vjp(aa.pairwise_attention, **{**GIVEN, **given})
    return out, pullback(dout)


def test_it_is_additive_attention_of_explicit_pairs() -> None:
    x, hidden = GIVEN["x"], GIVEN["hidden"]
    pairs = np.concatenate(np.broadcast_arrays(x[:, :, None], x[:, None]), axis=-1)  # (B, T, T, 2 D)
    inner = pairs @ GIVEN["input_weight"].T + (hidden @ GIVEN["hidden_weight"].T)[:, :, None] + GIVEN["input_bias"]
    expected = aa.softmax(np.tanh(inner) @ GIVEN["score_vector"]) @ x
    out, ctx = aa.pairwise_attention_fwd(**GIVEN)
    assert_close(out, expected, ROUNDING)
    assert_close(aa.attention_weights(ctx) @ x, out, ROUNDING)


def test_nothing_of_the_size_of_all_pairs_is_kept() -> None:
    x = np.zeros((1, 500, 2))
    _, ctx = aa.pairwise_attention_fwd(x, np.zeros((3, 4)), np.zeros(3), is_causal=True)
    assert tree.nbytes(ctx) < 20 * x.nbytes  # q, k, v, out and views of x: a row of pairs alone has 1500 numbers


@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
@pytest.mark.parametrize("by_mask", [False, True], ids=["kv_lengths", "Padding"])
def test_a_ragged_batch_is_its_single_sequences(rubbish: float, by_mask: bool) -> None:
    lengths = (3, 0)
    past = (np.arange(5) >= np.array(lengths)[:, None])[..., None]
    dirty = {name: np.where(past, rubbish, GIVEN[name]) for name in ("x", "hidden")}
    options = {"attn_mask": aa.Padding(np.array(lengths))} if by_mask else {"kv_lengths": lengths}
    out, grads = pulled(np.where(past, 0.0, DOUT), **dirty, **options, is_causal=True)
    assert np.all(np.isfinite(out))
    sums = None
    for row, length in enumerate(lengths):
        alone = {name: GIVEN[name][row, :length] for name in ("x", "hidden")}
        its_out, its_grads = pulled(DOUT[row, :length], **alone, is_causal=True)
        assert_close(out[row, :length], its_out, ROUNDING)
        for name in ("x", "hidden"):
            assert_close(getattr(grads, name)[row, :length], getattr(its_grads, name), ROUNDING, name)
            assert not np.any(getattr(grads, name)[row, length:]), name
        shared = {name: getattr(its_grads, name) for name in SHARED}
        sums = shared if sums is None else tree.add(sums, shared)
    assert_trees_close({name: getattr(grads, name) for name in SHARED}, sums, ROUNDING)
    assert not np.any(out[1])  # a length of 0


def test_masked_memory_is_ignored() -> None:
    memory, seen = RNG.standard_normal((2, 7, 3)), np.array([True, False, True, True, False, True, True])
    dirty = np.where(seen[:, None], memory, math.nan)
    for options in ({"attn_mask": seen}, {"kv_lengths": 5, "attn_mask": seen}):
        expected, found = (pulled(memory=m, **options) for m in (memory, dirty))
        assert_trees_close(found, expected, ROUNDING)
        assert not np.any(found[1].memory[:, ~seen])


STEPS = {
    "causal": {"is_causal": True},
    "window": {"window": (2, 1)},
    "all, lengths": {"kv_lengths": np.array([5, 3])},
    "dropout": {"is_causal": True, "dropout_p": 0.4, "rng": 3},
}


@pytest.mark.parametrize("options", STEPS.values(), ids=list(STEPS))
def test_step_by_step_is_the_whole_run(options: dict[str, Any]) -> None:
    lengths = options.get("kv_lengths", np.array([5, 5]))
    dout = np.where((np.arange(5) < lengths[:, None])[..., None], DOUT, 0.0)
    whole, expected = pulled(dout, **options)
    total = None
    for t in range(5):
        step = {name: GIVEN[name][:, t : t + 1] for name in ("x", "hidden")}
        out, grads = pulled(dout[:, t : t + 1], **step, **options, memory=GIVEN["x"], q_offset=t)
        exists = (t < lengths)[:, None, None]
        assert_close(np.where(exists, out, 0.0), np.where(exists, whole[:, t : t + 1], 0.0), ROUNDING)
        dx = np.zeros((2, 5, 3))
        dx[:, t : t + 1] = grads.x
        assert_close(grads.hidden, expected.hidden[:, t : t + 1], ROUNDING)
        here = {"x": dx + grads.memory, **{name: getattr(grads, name) for name in SHARED}}
        total = here if total is None else tree.add(total, here)
    assert_trees_close(total, {name: getattr(expected, name) for name in total}, ROUNDING)


LAYER = aa.layers.PairwiseAttention(dim=3, hidden_dim=4, state_dim=2)


def large(layer: Any) -> Any:
    """Parameters that make weights far from uniform, and biases other than 0."""
    return tree.map(lambda leaf: 2 * leaf + 0.1, layer.init(aa.Philox(1), "float64"))


def test_the_layer_has_right_gradients_for_everything() -> None:
    params, x, hidden = large(LAYER), GIVEN["x"], RNG.standard_normal((2, 5, 2))
    memory, value = RNG.standard_normal((2, 7, 3)), RNG.standard_normal((2, 7, 6))
    options = {"kv_lengths": np.array([6, 3]), "bias": RNG.standard_normal((5, 7)), "scale": 1.5}
    for report in (
        aa.gradcheck(LAYER, params, x, hidden, is_causal=True, tolerance=1e-8),
        aa.gradcheck(LAYER, params, x, hidden, memory, value, **options, tolerance=1e-8),
    ):
        assert report, str(report)
    alone = aa.layers.PairwiseAttention(3, 4)
    report = aa.gradcheck(alone, large(alone), x, kv_lengths=np.array([5, 2]), tolerance=1e-8)
    assert report, str(report)
    for layer, given in ((LAYER, (x, hidden)), (alone, (x,))):
        params = layer.init(aa.Philox(1), "float64")
        out, ctx = layer.fwd(params, *given)
        tree.map(lambda leaf, grad: assert_alike(grad, leaf), params, layer.bwd(out, ctx).params)
        assert_close(aa.attention_weights(ctx).sum(axis=-1), np.ones((2, 5)), ROUNDING)


def assert_alike(found: np.ndarray, like: np.ndarray) -> None:
    assert found.shape == like.shape
    assert found.dtype == like.dtype


class Reader:
    """An LSTM whose inputs are attention outputs, and whose state is the next query."""

    def __call__(self, params: Any, x: Any) -> Any:
        return self.fwd(params, x)[0]

    def fwd(self, params: Any, x: Any) -> Any:
        state, steps, outs = {"h0": np.zeros((2, 2)), "c0": np.zeros((2, 2))}, [], []
        for t in range(5):
            here = {"memory": x, "kv_lengths": [5, 3], "is_causal": True, "q_offset": t}
            out, of_layer = LAYER.fwd(params["layer"], x[:, t : t + 1], state["h0"][:, None], **here)
            step, of_cell = aa.lstm_fwd(out, **params["cell"], **state)
            state = {"h0": step.h, "c0": step.c}
            steps.append((of_layer, of_cell))
            outs.append(out)
        return (np.concatenate(outs, axis=1), step.h), steps

    def bwd(self, dout: Any, steps: Any) -> Any:
        douts, dh = dout
        dc, dx, total = None, [], None
        for t in reversed(range(5)):
            recurrence = aa.lstm_bwd(aa.LSTMResult(None, dh, dc), steps[t][1])
            grads = LAYER.bwd(recurrence.x + douts[:, t : t + 1], steps[t][0])
            dh, dc = recurrence.h0 + grads.hidden[:, 0], recurrence.c0
            dx.insert(0, grads.x)
            cell = {name: getattr(recurrence, name) for name in ("weight_ih", "weight_hh", "bias_ih")}
            here = {"params": {"layer": grads.params, "cell": cell}, "memory": grads.memory}
            total = here if total is None else tree.add(total, here)
        return ReaderGrads(total["params"], np.concatenate(dx, axis=1) + total["memory"])


class ReaderGrads(NamedTuple):
    params: Any
    x: Any


def test_back_through_time_where_a_recurrence_makes_the_states() -> None:
    shapes = {"weight_ih": (8, 3), "weight_hh": (8, 2), "bias_ih": (8,)}
    params = {"layer": large(LAYER), "cell": {name: RNG.standard_normal(shape) for name, shape in shapes.items()}}
    report = aa.gradcheck(Reader(), params, GIVEN["x"], tolerance=1e-8)
    assert len(report.inputs) == 4 + 3 + 1
    assert report, str(report)


WRONG = {
    "x": ({"x": np.ones(3)}, "`x` has shape (3,), expected at least two axes: (*batch, positions, features)."),
    "one half": ({"input_weight": np.ones((4, 3))}, "`input_weight` has shape (4, 3), expected (A, 6): D = 3 columns"),
    "weight axes": ({"input_weight": np.ones(6)}, "`input_weight` has shape (6,), expected (A, 6): D = 3 columns for"),
    "score vector": ({"score_vector": np.ones(6)}, "`score_vector` has shape (6,), expected (4,): one number per row"),
    "bias": ({"input_bias": np.ones((2, 4))}, "`input_bias` has shape (2, 4), expected (4,): one number per row of"),
    "no weight": ({"hidden_weight": None}, "`hidden` is given without `hidden_weight`. Give both, or neither"),
    "no states": ({"hidden": None}, "`hidden_weight` is given without `hidden`. Give both, or neither where there"),
    "steps": ({"hidden": np.ones((2, 4, 6))}, "`hidden` has shape (2, 4, 6), expected (2, 5, 6): one state per"),
    "states": ({"hidden": np.ones((2, 6))}, "`hidden` has shape (2, 6), expected (2, 5, 6): one state per position"),
    "state": ({"hidden_weight": np.ones((4, 5))}, "`hidden_weight` has shape (4, 5), expected (4, 6): `input_weight`"),
    "memory": ({"memory": np.ones((2, 7, 4))}, "`memory` has shape (2, 7, 4), expected (2, 7, 3): the batch and the"),
    "batch": ({"memory": np.ones((1, 7, 3))}, "`memory` has shape (1, 7, 3), expected (2, 7, 3): the batch and the"),
    "value": ({"value": np.ones((2, 7, 3))}, "`value` has shape (2, 7, 3), expected (2, 5, 3): one value per position"),
    "length": ({"kv_lengths": 6}, "`kv_lengths` is 6, expected 0 to S = 5"),
    "mask": ({"attn_mask": np.ones((5, 6), bool)}, "`attn_mask` has shape (5, 6), which does not broadcast to (*batch"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=list(WRONG))
def test_bad_input(changes: dict[str, Any], expected: str) -> None:
    says(ValueError, expected, lambda: aa.pairwise_attention(**{**GIVEN, **changes}))


def test_bad_types_cotangents_and_layers() -> None:
    def call(**changes: Any) -> Any:
        return aa.pairwise_attention(**{**GIVEN, **changes})

    says(TypeError, "`input_weight` is None, expected an array.", lambda: call(input_weight=None))
    says(TypeError, "score_vector float32, hidden float64", lambda: call(score_vector=np.ones(4, "f4")))
    with pytest.raises(TypeError, match=r"no option `sinks`. The options: scale, bias, window"):
        call(sinks=np.ones(1))
    out, ctx = aa.pairwise_attention_fwd(**GIVEN)
    backward = aa.pairwise_attention_bwd
    says(ValueError, "`dout` has shape (1, 5, 3), expected (2, 5, 3): the shape of", lambda: backward(out[:1], ctx))
    says(TypeError, "expected the PairwiseContext that the forward", lambda: backward(out, None))
    layer, params = aa.layers.PairwiseAttention, LAYER.init(aa.Philox(0), "float64")
    says(ValueError, "`state_dim` is 0, expected an integer", lambda: layer(3, 4, 0))
    says(ValueError, "`hidden` is None, expected the states before each position", lambda: LAYER(params, GIVEN["x"]))
    without = layer(3, 4).init(aa.Philox(0), "float64")
    says(ValueError, "without state_dim has no states", lambda: layer(3, 4)(without, GIVEN["x"], GIVEN["hidden"]))

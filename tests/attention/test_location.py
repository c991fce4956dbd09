"""Properties of location-aware attention beyond the contract: steps, lengths, gradients through the weights."""

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

RNG = np.random.default_rng(3)
GIVEN = {  # B 2, T 4, S 7, A 5, Dv 6; 3 filters of width 5
    "query": RNG.standard_normal((2, 4, 5)),
    "key": RNG.standard_normal((2, 7, 5)),
    "value": RNG.standard_normal((2, 7, 6)),
    "score_vector": 2 * RNG.standard_normal(5),
    "location_filter": RNG.standard_normal((3, 5)),
    "location_weight": RNG.standard_normal((5, 3)),
}
PREVIOUS = RNG.standard_normal((2, 7))
SHARED = ("score_vector", "location_filter", "location_weight")
DOUT = aa.LocationResult(RNG.standard_normal((2, 4, 6)), RNG.standard_normal((2, 4, 7)))


def pulled(dout: Any = DOUT, **given: Any) -> tuple[Any, Any]:
    """The result, and the gradients for `dout`."""
    result, pullback = aa.vjp(aa.location_attention, **{**GIVEN, **given})
    return result, pullback(dout)


RUNS = {
    "plain": {},
    "from weights before": {"previous": PREVIOUS},
    "cumulative": {"previous": PREVIOUS, "cumulative": True},
    "lengths, sharpened": {"kv_lengths": np.array([7, 4]), "scale": 2.0},
    "positions, dropout": {"is_causal": True, "window": (3, None), "q_offset": 2, "dropout_p": 0.4, "rng": 5},
    "bias": {"bias": RNG.standard_normal((4, 7)), "cumulative": True},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_step_by_step_is_the_whole_run(options: dict[str, Any]) -> None:
    whole, whole_grads = pulled(**options)
    looked = options.get("previous", np.zeros((2, 7)))
    steps, contexts = [], []
    for i in range(4):
        here = {**options, "query": GIVEN["query"][:, i : i + 1], "previous": looked}
        here["q_offset"] = options.get("q_offset", 0) + i
        if "bias" in options:
            here["bias"] = options["bias"][i : i + 1]
        step, ctx = aa.location_attention_fwd(**{**GIVEN, **here})
        looked = looked + step.weights[:, 0] if options.get("cumulative") else step.weights[:, 0]
        steps.append(step)
        contexts.append(ctx)
    assert_close(np.concatenate([step.out for step in steps], axis=1), whole.out, ROUNDING)
    assert_close(np.concatenate([step.weights for step in steps], axis=1), whole.weights, ROUNDING)
    dqueries, dbiases, total, dlooked = [], [], None, np.zeros((2, 7))
    for i in reversed(range(4)):
        dweights = DOUT.weights[:, i] + dlooked
        grads = aa.location_attention_bwd(aa.LocationResult(DOUT.out[:, i : i + 1], dweights[:, None]), contexts[i])
        dlooked = grads.previous + dlooked if options.get("cumulative") else grads.previous
        dqueries.insert(0, grads.query)
        dbiases.insert(0, grads.bias)
        shared = {name: getattr(grads, name) for name in ("key", "value", *SHARED)}
        total = shared if total is None else tree.add(total, shared)
    assert_close(np.concatenate(dqueries, axis=1), whole_grads.query, ROUNDING)
    assert_trees_close(total, {name: getattr(whole_grads, name) for name in total}, ROUNDING)
    if "previous" in options:
        assert_close(dlooked, whole_grads.previous, ROUNDING)
    if "bias" in options:
        assert_close(np.concatenate(dbiases), whole_grads.bias, ROUNDING)


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_a_ragged_batch_is_its_single_sequences(cumulative: bool, rubbish: float) -> None:
    lengths = (3, 0)
    past = np.arange(7) >= np.array(lengths)[:, None]
    dirty = {name: np.where(past[..., None], rubbish, GIVEN[name]) for name in ("key", "value")}
    dirty["previous"] = np.where(past, rubbish, PREVIOUS)
    result, grads = pulled(**dirty, kv_lengths=lengths, cumulative=cumulative)
    sums = None
    for row, length in enumerate(lengths):
        alone = {name: GIVEN[name][row, :length] for name in ("key", "value")}
        alone |= {"query": GIVEN["query"][row], "previous": PREVIOUS[row, :length]}
        dout = aa.LocationResult(DOUT.out[row], DOUT.weights[row, :, :length])
        its_result, its_grads = pulled(dout, **alone, cumulative=cumulative)
        assert_close(result.out[row], its_result.out, ROUNDING)
        assert_close(result.weights[row, :, :length], its_result.weights, ROUNDING)
        assert_close(grads.query[row], its_grads.query, ROUNDING)
        for name in ("key", "value", "previous"):
            assert_close(getattr(grads, name)[row, :length], getattr(its_grads, name), ROUNDING, name)
            assert not np.any(getattr(grads, name)[row, length:]), name
        assert not np.any(result.weights[row, :, length:])
        shared = {name: getattr(its_grads, name) for name in SHARED}
        sums = shared if sums is None else tree.add(sums, shared)
    assert_trees_close({name: getattr(grads, name) for name in SHARED}, sums, ROUNDING)
    assert not np.any(result.out[1])  # a length of 0
    assert not np.any(grads.query[1])


def test_without_filters_it_is_additive_attention() -> None:
    plain = {name: GIVEN[name] for name in ("query", "key", "value", "score_vector")}
    none = {"location_filter": np.zeros((0, 5)), "location_weight": np.zeros((5, 0))}
    dout = aa.LocationResult(DOUT.out, None)
    out, pullback = aa.vjp(aa.additive_attention, **plain, kv_lengths=[7, 4], softcap=2.0)
    expected = pullback(DOUT.out)
    for maps in (none, {"location_weight": np.zeros((5, 3))}):
        result, grads = pulled(dout, **maps, kv_lengths=[7, 4], softcap=2.0)
        assert_close(result.out, out, ROUNDING)
        for name in plain:
            assert_close(getattr(grads, name), getattr(expected, name), ROUNDING, name)


def test_a_cotangent_that_does_not_count_is_one_of_zeros() -> None:
    zeros = tree.map(np.zeros_like, DOUT)
    for with_none, with_zeros in (
        (DOUT._replace(weights=None), DOUT._replace(weights=zeros.weights)),
        (DOUT._replace(out=None), DOUT._replace(out=zeros.out)),
        ((None, None), zeros),
    ):
        assert_trees_close(pulled(with_none)[1], pulled(with_zeros)[1], 0.0)


def test_the_weights_are_those_of_the_output() -> None:
    for options in RUNS.values():
        result, ctx = aa.location_attention_fwd(**{**GIVEN, **options})
        assert_close(aa.attention_weights(ctx), result.weights, ROUNDING)
        assert_close(aa.attention_weights(ctx, slice(1, 3)), result.weights[:, 1:3], ROUNDING)


def test_the_weights_before_may_be_any_numbers() -> None:
    for previous in (np.zeros((2, 7)), np.full((2, 7), 1 / 7), 9 * PREVIOUS):
        result, grads = pulled(previous=previous)
        assert_close(result.weights.sum(axis=-1), np.ones((2, 4)), ROUNDING)
        assert np.all(np.isfinite(grads.previous))
    assert_trees_close(pulled(previous=np.zeros((2, 7)))[0], pulled()[0], 0.0)


@pytest.mark.parametrize("sizes", [(0, 4, 7), (2, 0, 7), (2, 4, 0)], ids=["B", "T", "S"])
def test_empty_sizes(sizes: tuple[int, int, int]) -> None:
    B, T, S = sizes
    given = {"query": np.ones((B, T, 5)), "key": np.ones((B, S, 5)), "value": np.ones((B, S, 6))}
    given |= {"previous": np.ones((B, S)), "bias": np.ones((T, S))}
    result, grads = pulled(aa.LocationResult(np.ones((B, T, 6)), None), **given, cumulative=True)
    assert result.out.shape == (B, T, 6)
    assert result.weights.shape == (B, T, S)
    assert not np.any(result.out) or S
    for name, array in {**GIVEN, **given}.items():
        assert getattr(grads, name).shape == array.shape, name


LAYER = aa.layers.LocationAttention(query_dim=4, key_dim=6, hidden_dim=5, filters=3, width=3)
STATES, SOURCE = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 7, 6))


def test_the_layer_has_right_gradients_for_everything() -> None:
    params = LAYER.init(aa.Philox(1), "float64")
    params = tree.map(lambda leaf: 2 * leaf + 0.1, params)
    for layer in (LAYER, aa.layers.LocationAttention(4, 6, 5, 3, 3, cumulative=True)):
        options = {"kv_lengths": np.array([7, 4]), "scale": 1.5, "bias": RNG.standard_normal((3, 7))}
        report = aa.gradcheck(layer, params, STATES, SOURCE, None, PREVIOUS, **options, tolerance=1e-8)
        assert report, str(report)
        values = RNG.standard_normal((2, 7, 2))
        report = aa.gradcheck(layer, params, STATES, SOURCE, values, is_causal=True, q_offset=3, tolerance=1e-8)
        assert report, str(report)
    result, ctx = layer.fwd(params, STATES, SOURCE)
    assert_trees_close(aa.attention_weights(ctx), result.weights, ROUNDING)
    tree.map(lambda leaf, grad: assert_shape(grad, leaf), params, layer.bwd(result, ctx).params)


def assert_shape(found: np.ndarray, like: np.ndarray) -> None:
    assert found.shape == like.shape
    assert found.dtype == like.dtype


class Speller:
    """A decoder: a GRU whose next input is the attention output for its state; weights are passed on, too."""

    def __call__(self, params: Any, key: Any, start: Any) -> Any:
        return self.fwd(params, key, start)[0]

    def fwd(self, params: Any, key: Any, start: Any) -> Any:
        state, looked, steps, outs = start, np.eye(7)[[0, 0]], [], []
        for _ in range(3):
            result, of_layer = LAYER.fwd(params["layer"], state[:, None], key, previous=looked, kv_lengths=[7, 5])
            step, of_cell = aa.gru_fwd(result.out, **params["cell"], h0=state)
            state, looked = step.h, result.weights[:, 0]
            steps.append((of_layer, of_cell))
            outs.append(step.h)
        return np.stack(outs, axis=1), steps

    def bwd(self, dout: Any, steps: Any) -> Any:
        dstate, dlooked, total = np.zeros_like(dout[:, 0]), None, None
        for i in reversed(range(3)):
            recurrence = aa.gru_bwd(aa.GRUResult(None, dstate + dout[:, i]), steps[i][1])
            grads = LAYER.bwd(aa.LocationResult(recurrence.x, dlooked), steps[i][0])
            dstate, dlooked = recurrence.h0 + grads.query[:, 0], grads.previous[:, None]
            cell = {"weight_ih": recurrence.weight_ih, "weight_hh": recurrence.weight_hh}
            here = {"params": {"layer": grads.params, "cell": cell}, "key": grads.key}
            total = here if total is None else tree.add(total, here)
        return SpellerGrads(total["params"], total["key"], dstate)


class SpellerGrads(NamedTuple):
    params: Any
    key: Any
    start: Any


def test_back_through_a_decoder_and_through_its_weights() -> None:
    cell = {"weight_ih": RNG.standard_normal((12, 6)), "weight_hh": RNG.standard_normal((12, 4))}
    params = {"layer": tree.map(lambda leaf: 2 * leaf + 0.1, LAYER.init(aa.Philox(2), "float64")), "cell": cell}
    report = aa.gradcheck(Speller(), params, SOURCE, RNG.standard_normal((2, 4)), tolerance=1e-8)
    assert report, str(report)


WRONG = {
    "features": ({"key": np.ones((2, 7, 4))}, "`key` has 4 features but `query` has 5; they must match. Project them"),
    "batch": ({"key": np.ones((1, 7, 5)), "value": np.ones((1, 7, 6))}, "`key` has batch (1,) but `query` has (2,)"),
    "score vector": ({"score_vector": np.ones(4)}, "`score_vector` has shape (4,), expected (5,): one number per"),
    "even width": ({"location_filter": np.ones((3, 4))}, "`location_filter` has shape (3, 4), expected (F, width)"),
    "no width": ({"location_filter": np.ones((3, 0))}, "expected (F, width) with an odd width: a filter of even"),
    "filter axes": ({"location_filter": np.ones((3, 1, 5))}, "`location_filter` has shape (3, 1, 5), expected (F,"),
    "filters": ({"location_filter": np.ones((2, 5))}, "`location_weight` has shape (5, 3), expected (5, 2): `query`"),
    "swapped": ({"location_weight": np.ones((3, 5))}, "`location_weight` has shape (3, 5), expected (5, 3): `query`"),
    "previous": ({"previous": np.ones((2, 6))}, "`previous` has shape (2, 6), expected (2, 7): (*batch, S), one"),
    "previous, steps": ({"previous": np.ones((2, 1, 7))}, "`previous` has shape (2, 1, 7), expected (2, 7)"),
    "length": ({"kv_lengths": 8}, "`kv_lengths` is 8, expected 0 to S = 7"),
    "mask": ({"attn_mask": np.ones((7, 4), bool)}, "`attn_mask` has shape (7, 4), which does not broadcast to"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=list(WRONG))
def test_bad_input(changes: dict[str, Any], expected: str) -> None:
    says(ValueError, expected, lambda: aa.location_attention(**{**GIVEN, **changes}))


def test_bad_types_cotangents_and_layers() -> None:
    def call(**changes: Any) -> Any:
        return aa.location_attention(**{**GIVEN, **changes})

    says(TypeError, "`location_weight` is None, expected an array.", lambda: call(location_weight=None))
    says(TypeError, "`cumulative` is 'yes', expected True or False", lambda: call(cumulative="yes"))
    says(TypeError, "`previous` has dtype int64, expected one of", lambda: call(previous=np.ones((2, 7), int)))
    _, ctx = aa.location_attention_fwd(**GIVEN)
    backward = aa.location_attention_bwd
    says(TypeError, "`dout` is an array of shape (2, 4, 6) and dtype", lambda: backward(DOUT.out, ctx))
    says(ValueError, "`dout.weights` has shape (2, 7), expected (2, 4, 7)", lambda: backward((None, PREVIOUS), ctx))
    says(TypeError, "expected the LocationContext that the forward", lambda: backward(DOUT, None))
    layer = aa.layers.LocationAttention
    says(ValueError, "`width` is 4, expected an odd one: a filter of", lambda: layer(4, 6, 5, 3, 4))
    says(ValueError, "`filters` is 0, expected an integer", lambda: layer(4, 6, 5, 0, 3))

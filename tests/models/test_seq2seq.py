"""The recurrent encoder-decoder with every attention: whole gradients, steps against whole runs, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, tree
from attnarray.models import Seq2Seq
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says
from tests.support.tiers import slow

RNG = np.random.default_rng(0)
SOURCE = np.array([[4, 2, 7, 7, 1], [3, 10, 5, 0, 0], [6, 6, 1, 2, 0]])
TARGET = np.array([[1, 5, 6, 2], [1, 8, 2, 0], [1, 1, 3, 4]])
LENGTHS = np.array([5, 3, 4])
ROUNDING = 1e-12  # sums of a few dozen products in another order
H = 8
ATTENTIONS: dict[str, Any] = {
    "bahdanau": layers.BahdanauAttention(H, H, 5),
    "luong general": layers.LuongAttention(H, H),
    "luong concat": layers.LuongAttention(H, H, score="concat", hidden_dim=5, output=True),
    "location": layers.LocationAttention(H, H, 5, filters=2, width=3),
    "location, cumulative": layers.LocationAttention(H, H, 5, filters=2, width=3, cumulative=True),
    "local, monotonic": layers.LocalAttention(H, H, window=1, alignment="monotonic"),
    "local, predictive": layers.LocalAttention(H, H, window=2),
    "hard, top k": layers.HardAttention(H, H, 5, "top_k", k=2),
    "hard, gumbel": layers.HardAttention(H, H, 5, "gumbel", temperature=0.7),
    "scaled": layers.ScaledAttention(H),
    "multi-head": layers.MultiHeadAttention(H, 2),
}
each_attention = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=list(ATTENTIONS))


def model_of(attention: Any, **changes: Any) -> Seq2Seq:
    return dataclasses.replace(Seq2Seq(11, 9, dim=4, hidden_dim=H, attention=attention), **changes)


def fresh(model: Seq2Seq) -> Any:
    """Parameters that are nowhere 0, so that wrong gradients show."""
    return tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), model.init(aa.Philox(1), "float64"))


class Doubled:
    """A custom attention: the mean of all keys that exist, times a number."""

    def init(self, rng: aa.Philox, dtype: str = "float32") -> Any:
        return {"factor": rng.normal((1,), dtype=dtype)}

    def fwd(self, params: Any, query: Any, key: Any, kv_lengths: Any) -> Any:
        there = (np.arange(key.shape[1]) < kv_lengths[:, None]) / kv_lengths[:, None]  # (B, S)
        mean = (there[:, None, :] @ key).astype(query.dtype)
        return params["factor"] * mean, (params["factor"], mean, there, query)

    def bwd(self, dout: Any, ctx: Any) -> Any:
        factor, mean, there, query = ctx
        params = {"factor": np.sum(dout * mean)[None]}
        return layers.luong.LuongGrads(np.zeros_like(query), there[:, :, None] * factor * dout, None, params, None)


@each_attention
@pytest.mark.parametrize("cell", ["gru", slow("lstm")])
def test_gradients_of_the_whole_model(attention: Any, cell: str) -> None:
    model = model_of(attention, cell=cell, dropout=0.2)
    params = fresh(model)
    options = {"source_lengths": LENGTHS, "rng": aa.Philox(3)}
    report = aa.gradcheck(model, params, SOURCE, TARGET, **options, max_elements=2)
    assert report, str(report)
    assert {check.name for check in report.inputs} == {f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params)}


@each_attention
def test_gradients_along_random_directions(attention: Any) -> None:
    model, options = model_of(attention), {"source_lengths": LENGTHS, "rng": aa.Philox(4)}
    params = fresh(model)
    logits, ctx = model.fwd(params, SOURCE, TARGET, **options)
    dlogits = RNG.standard_normal(logits.shape)
    grads = model.bwd(dlogits, ctx).params
    direction = tree.map(lambda leaf: RNG.standard_normal(leaf.shape), params)
    slope = sum(np.sum(g * d) for (_, g), (_, d) in zip(tree.flatten(grads), tree.flatten(direction), strict=True))
    found = 0.0
    for steps, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
        there = tree.map(lambda leaf, d, steps=steps: leaf + steps * 1e-4 * d, params, direction)
        found += weight * np.sum(dlogits * model(there, SOURCE, TARGET, **options)) / 1e-4
    assert abs(found - slope) < 1e-8 * max(1.0, abs(slope))  # rounding over the step of 1e-4


@each_attention
def test_steps_are_the_whole_run(attention: Any) -> None:
    model = model_of(attention)
    params = fresh(model)
    whole = model(params, SOURCE, TARGET, source_lengths=LENGTHS)
    state, steps, written = model.start(params, SOURCE, source_lengths=LENGTHS), [], np.ones((3, 1), int)
    for t in range(4):
        logits, state = model.step(params, TARGET[:, t : t + 1], state)
        steps.append(logits)
    assert_close(np.concatenate(steps, axis=1), whole, ROUNDING)
    assert state.step == 4
    for _ in range(5):
        logits = model(params, SOURCE, written, source_lengths=LENGTHS)
        written = np.concatenate([written, logits[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(model.greedy(params, SOURCE, 1, 5, source_lengths=LENGTHS), written[:, 1:])


@each_attention
def test_alignments_are_distributions_over_what_is_there(attention: Any) -> None:
    model = model_of(attention)
    _, ctx = model.fwd(fresh(model), SOURCE, TARGET, source_lengths=LENGTHS, rng=aa.Philox(0))
    weights = model.alignments(ctx)
    assert weights.shape[-2:] == (4, 5)
    assert np.all(weights[1, ..., 3:] == 0)
    if not isinstance(attention, layers.LocalAttention):  # whose weights a Gaussian makes smaller
        assert_close(weights.sum(-1), np.ones(weights.shape[:-1]), ROUNDING)


def test_padding_of_the_source_is_masked() -> None:
    model = model_of(ATTENTIONS["location"], cell="lstm")
    params = fresh(model)
    other = np.where(np.arange(5) < LENGTHS[:, None], SOURCE, 9)
    expected = model(params, SOURCE, TARGET, source_lengths=LENGTHS)
    np.testing.assert_array_equal(model(params, other, TARGET, source_lengths=list(LENGTHS)), expected)
    alone = model(params, SOURCE[1:2, :3], TARGET[1:2])
    assert_close(alone, expected[1:2], ROUNDING)


def test_each_step_has_the_weights_of_the_last_one() -> None:
    model = model_of(ATTENTIONS["bahdanau"])
    params = fresh(model)
    fed = params["decoder"]["cell"]["weight_ih"][:, model.dim :]
    deaf = {**params["decoder"]["cell"], "weight_ih": np.concatenate(
        [params["decoder"]["cell"]["weight_ih"][:, : model.dim], np.zeros_like(fed)], axis=1)}  # fmt: skip
    without = {**params, "decoder": {**params["decoder"], "cell": deaf}}
    first, second = (model(p, SOURCE, TARGET, source_lengths=LENGTHS) for p in (params, without))
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert np.all(np.abs(first[:, 1:] - second[:, 1:]).max(-1) > 1e-6)


def test_a_custom_attention() -> None:
    model = model_of(Doubled())
    params = fresh(model)
    report = aa.gradcheck(model, params, SOURCE, TARGET, source_lengths=LENGTHS, max_elements=5)
    assert report, str(report)


def test_hard_attention_learns_from_the_cost_of_its_choices() -> None:
    model = model_of(layers.HardAttention(H, H, 5))
    params = fresh(model)
    says(
        ValueError,
        "`rng` is None, but this Seq2Seq needs one in training",
        lambda: model.fwd(params, SOURCE, TARGET),
    )
    logits, ctx = model.fwd(params, SOURCE, TARGET, source_lengths=LENGTHS, rng=aa.Philox(2))
    costs, of_cost = aa.cross_entropy_fwd(logits, TARGET, reduction="none")  # (B, T)
    dlogits = aa.cross_entropy_bwd(np.ones_like(costs), of_cost).logits
    says(ValueError, "`dlog_prob` is None, expected (B, T), cost less baseline", lambda: model.bwd(dlogits, ctx))
    zero, one, two = (model.bwd(dlogits, ctx, dlog_prob=factor * costs).params for factor in (0, 1, 2))
    for name, grad in one["decoder"]["attention"]["key"].items():
        assert np.all(zero["decoder"]["attention"]["key"][name] == 0)
        assert np.max(np.abs(grad)) > 1e-3
    twice = tree.map(lambda a, b: 2 * a - b, one, zero)
    assert_trees_close(two, twice, 1e-11)
    np.testing.assert_array_equal(model(params, SOURCE, TARGET), model(params, SOURCE, TARGET))
    other = model_of(ATTENTIONS["bahdanau"])
    logits, ctx = other.fwd(fresh(other), SOURCE, TARGET)
    says(ValueError, "expected None.", lambda: other.bwd(logits, ctx, dlog_prob=costs))


@pytest.mark.parametrize("name", ["bahdanau", "location"])
def test_results_are_equal_on_every_library(library: Library, name: str) -> None:
    model = model_of(ATTENTIONS[name], cell="lstm")
    params = model.init(aa.Philox(0), "float64")
    source, target, lengths, mine = (library.moved(each) for each in (SOURCE, TARGET, LENGTHS, params))
    logits, ctx = model.fwd(params, SOURCE, TARGET, source_lengths=LENGTHS)
    found, its = model.fwd(mine, source, target, source_lengths=lengths)
    assert_close(found, logits, ROUNDING)
    assert_trees_close(model.bwd(found, its), model.bwd(logits, ctx), 1e-11)
    expected = model.greedy(params, SOURCE, 1, 4, end=3, source_lengths=LENGTHS)
    assert_close(model.greedy(mine, source, 1, 4, end=3, source_lengths=lengths), expected, 0)


def test_bad_input_is_named() -> None:
    attention = ATTENTIONS["bahdanau"]
    model = model_of(attention)
    params = fresh(model)
    bad: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "`hidden_dim` is 7, expected an even number", lambda: model_of(attention, hidden_dim=7)),
        (ValueError, "`attention.query_dim` is 8, expected 6: the model's `hidden_dim`.",
         lambda: model_of(attention, hidden_dim=6)),
        (ValueError, "`cell` is 'rnn', expected one of 'gru', 'lstm'.", lambda: model_of(attention, cell="rnn")),
        (ValueError, "`source_lengths` has shape (2,), expected (3,): the length of each",
         lambda: model(params, SOURCE, TARGET, source_lengths=[1, 2])),
        (ValueError, "`target` has shape (1, 4), expected the batch size of `source` (3, 5).",
         lambda: model(params, SOURCE, TARGET[:1])),
        (ValueError, "`target` has shape (3, 0), expected at least one position",
         lambda: model(params, SOURCE, TARGET[:, :0])),
        (ValueError, "`params.decoder` lacks 'attention'",
         lambda: model({**params, "decoder": {"cell": {}, "combine": {}}}, SOURCE, TARGET)),
        (ValueError, "`params.decoder.attention.query.weight` has shape (5, 8), expected (6, 8)",
         lambda: model_of(layers.BahdanauAttention(H, H, 6))(params, SOURCE, TARGET)),
        (TypeError, "expected the Seq2SeqContext that the forward", lambda: model.bwd(SOURCE, None)),  # type: ignore[arg-type]
        (TypeError, "expected the DecoderState that the", lambda: model.step(params, TARGET, None)),  # type: ignore[arg-type]
    ]  # fmt: skip
    for error, expected, call in bad:
        says(error, expected, call)

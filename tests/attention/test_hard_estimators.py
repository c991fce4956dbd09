"""The gradients of hard attention against what they estimate: the gradient of the expected cost, by enumeration."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import HardResult
from attnarray.layers import HardAttention
from tests.support.libraries import assert_close, assert_trees_close

ROUNDING = 1e-13  # sums of a few products in another order
SEEDS, S, D, Dv = 4000, 4, 3, 2
RNG = np.random.default_rng(12)
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((1, D), (S, D), (S, Dv)))
SCALE = 0.8
MANY = {
    name: np.broadcast_to(array, (SEEDS, *array.shape))  # each batch has its own noise
    for name, array in {"query": QUERY, "key": KEY, "value": VALUE}.items()
}


def cost_of(out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cost (..., T) that is not linear in the output, and its gradient."""
    return np.sum(out**2 + np.sin(3 * out), axis=-1) + 2.0, 2 * out + 3 * np.cos(3 * out)


class Exact(NamedTuple):
    """The expected cost over all choices, and its gradients."""

    cost: float
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


def enumerated(cost_of: Any = cost_of) -> Exact:
    scores = SCALE * QUERY @ KEY.T
    p = np.exp(scores[0] - scores.max())
    p /= p.sum()
    costs, dcosts = cost_of(VALUE)
    expected = float(p @ costs)
    dscores = SCALE * p * (costs - expected)
    return Exact(expected, (dscores @ KEY)[None], dscores[:, None] * QUERY, p[:, None] * dcosts)


def samples(
    baseline: float = 0.0, rng: int = 1, estimator: str = "reinforce", cost_of: Any = cost_of, **options: Any
) -> Any:
    """One estimate of the gradients for each of many draws of the noise."""
    options = {"estimator": estimator, "scale": SCALE, "rng": rng, **options}
    result, ctx = aa.hard_attention_fwd(**MANY, **options)
    cost, dcost = cost_of(result.out)
    dresult = HardResult(dcost, None, None)
    if estimator == "reinforce":
        dresult = aa.reinforce_cotangent(result, cost, baseline, dout=dcost)
    return result, aa.hard_attention_bwd(dresult, ctx)


def assert_mean(found: np.ndarray, exact: np.ndarray, errors: float = 4.0) -> None:
    """Within four standard errors, which a random deviation exceeds once in 16,000 times."""
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - exact) <= errors * error + ROUNDING)


def test_choices_are_samples_of_the_softmax() -> None:
    result, ctx = aa.hard_attention_fwd(**MANY, rng=2, scale=SCALE)
    p = aa.attention_weights(ctx)[0, 0]
    chosen = ctx.choice[:, 0, 0, 0]
    for j in range(S):
        assert abs((chosen == j).mean() - p[j]) < 4 * np.sqrt(p[j] * (1 - p[j]) / SEEDS)
    assert_close(result.out[:, 0], VALUE[chosen], 0)
    assert_close(result.log_prob[:, 0], np.log(p[chosen]), ROUNDING)
    assert_close(result.entropy[:, 0], np.full(SEEDS, -np.sum(p * np.log(p))), ROUNDING)


@pytest.mark.parametrize("baseline", [0.0, 2.0, -5.0])
def test_the_mean_of_reinforce_is_the_gradient_of_the_expected_cost(baseline: float) -> None:
    exact = enumerated()
    _, grads = samples(baseline)
    for name in ("query", "key", "value"):
        assert_mean(getattr(grads, name), getattr(exact, name))
    assert (
        np.abs(exact.query).max() > 10 * (grads.query.std(axis=0) / np.sqrt(SEEDS)).max()
    )  # else the test would miss it


def test_a_baseline_lowers_the_variance() -> None:
    variances = [
        sum(np.var(getattr(samples(baseline)[1], name), axis=0).sum() for name in ("query", "key"))
        for baseline in (0.0, 0.5 * enumerated().cost, enumerated().cost)
    ]
    assert variances[2] < variances[1] < variances[0]
    assert variances[2] < 0.5 * variances[0]


def test_a_moving_average_is_such_a_baseline() -> None:
    baseline = 0.0
    for seed in range(60):
        result = aa.hard_attention(QUERY, KEY, VALUE, rng=seed, scale=SCALE)
        baseline = 0.9 * baseline + 0.1 * float(cost_of(result.out)[0].mean())
    variance = np.var(samples(baseline)[1].query, axis=0).sum()
    assert variance < 0.7 * np.var(samples(0.0)[1].query, axis=0).sum()


def test_the_entropy_term_is_the_gradient_of_the_entropy() -> None:
    result, ctx = aa.hard_attention_fwd(QUERY, KEY, VALUE, rng=0, scale=SCALE)
    dresult = aa.reinforce_cotangent(result, 0.0, entropy_weight=0.3)
    assert dresult.out is None
    grads = aa.hard_attention_bwd(dresult, ctx)
    h = 1e-5
    for place in np.ndindex(QUERY.shape):
        step = np.zeros_like(QUERY)
        step[place] = h
        entropies = [aa.hard_attention(QUERY + s, KEY, VALUE, rng=0, scale=SCALE).entropy.sum() for s in (step, -step)]
        assert grads.query[place] == pytest.approx(-0.3 * (entropies[0] - entropies[1]) / (2 * h), abs=1e-9)
    assert not np.any(grads.value)


def test_costs_count_for_leading_axes() -> None:
    q, k, v = RNG.standard_normal((3, 2, 3, 4, 5))  # B 2, H 3, T 4
    result = aa.hard_attention(q, k, v, rng=0)
    costs = RNG.standard_normal((2, 3, 4))
    each = aa.reinforce_cotangent(result, costs, costs[:, 0, 0], dout=result.out)
    assert_close(each.log_prob, costs - costs[:, :1, :1], ROUNDING)
    assert each.out is result.out
    batch = aa.reinforce_cotangent(result, costs[:, 0, 0], 0.5)
    assert_close(batch.log_prob, np.broadcast_to(costs[:, :1, :1] - 0.5, (2, 3, 4)), ROUNDING)


def test_gumbel_gradients_are_those_of_frozen_noise() -> None:
    report = aa.gradcheck(
        aa.hard_attention, QUERY, KEY, VALUE, estimator="gumbel", temperature=0.6, rng=5, scale=SCALE, tolerance=1e-8
    )
    assert report, str(report)


def test_gumbel_goes_to_the_choice_as_the_temperature_goes_to_zero() -> None:
    exact = aa.hard_attention(**MANY, rng=3, scale=SCALE)
    distances = []
    for temperature in (1.0, 0.1, 0.01, 1e-6):
        soft = aa.hard_attention(**MANY, estimator="gumbel", temperature=temperature, rng=3, scale=SCALE)
        assert_trees_close(soft[1:], exact[1:], ROUNDING)
        distances.append(np.abs(soft.out - exact.out).mean())
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 8 * distances[3]
    assert distances[3] < 1e-3  # a few pairs of 4,000 are closer than that


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    options = {"temperature": 0.7, "rng": 4, "scale": SCALE}
    hard, of_hard = aa.vjp(aa.hard_attention, **MANY, estimator="straight_through", **options)
    sampled, of_sampled = aa.vjp(aa.hard_attention, **MANY, rng=4, scale=SCALE)
    _, of_soft = aa.vjp(aa.hard_attention, **MANY, estimator="gumbel", **options)
    assert_trees_close(hard, sampled, 0)
    dout = HardResult(RNG.standard_normal(hard.out.shape), None, None)
    grads, soft, exact = of_hard(dout), of_soft(dout), of_sampled(dout)
    assert_close(grads.query, soft.query, ROUNDING)
    assert_close(grads.key, soft.key, ROUNDING)
    assert_close(grads.value, exact.value, 0)
    assert not np.any(exact.query)


def bias_of(cost: Any, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The bias of the mean gradient of straight-through, and its standard error."""
    found = samples(0.0, 6, "straight_through", cost, temperature=temperature)[1].query
    return found.mean(axis=0) - enumerated(cost).query, found.std(axis=0) / np.sqrt(SEEDS)


def linear_cost(out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    direction = np.array([1.0, -2.0])
    return out @ direction, np.broadcast_to(direction, out.shape)


def test_the_bias_of_straight_through() -> None:
    """It equals that of the soft surrogate, and vanishes only for linear costs and small temperatures."""
    biases = {temperature: bias_of(linear_cost, temperature) for temperature in (2.0, 0.1)}
    assert np.any(np.abs(biases[2.0][0]) > 8 * biases[2.0][1])
    assert np.all(np.abs(biases[0.1][0]) <= 4 * biases[0.1][1])
    assert biases[0.1][1].max() > 3 * biases[2.0][1].max()  # at the price of variance
    bias, error = bias_of(cost_of, 0.1)
    assert np.any(np.abs(bias) > 8 * error)  # not for a cost that is not linear
    # For a linear cost the surrogate, whose exact gradient "gumbel" gives, has the same gradients draw by draw.
    hard = samples(0.0, 6, "straight_through", linear_cost, temperature=2.0)[1].query
    assert_close(hard, samples(0.0, 6, "gumbel", linear_cost, temperature=2.0)[1].query, ROUNDING)


def test_top_k_of_all_keys_is_softmax_attention() -> None:
    q, k, v, dout = RNG.standard_normal((4, 2, 3, 5, 5))
    result, pullback = aa.vjp(aa.hard_attention, q, k, v, estimator="top_k", k=5)
    soft, expected = aa.vjp(aa.scaled_dot_product_attention, q, k, v)
    assert_close(result.out, soft, ROUNDING)
    assert_close(result.log_prob, np.zeros((2, 3, 5)), ROUNDING)
    assert_trees_close(pullback(HardResult(dout, None, None))[:3], expected(dout)[:3], ROUNDING)


def test_top_k_renormalizes_and_top_one_is_argmax() -> None:
    q, k, v = RNG.standard_normal((3, 2, 3, 5, 5))
    p = aa.softmax(q @ k.mT / np.sqrt(5))
    kept = np.where(p >= np.sort(p)[..., -2:-1], p, 0.0)
    result = aa.hard_attention(q, k, v, estimator="top_k", k=2)
    assert_close(result.out, kept / kept.sum(-1, keepdims=True) @ v, ROUNDING)
    assert_close(result.log_prob, np.log(kept.sum(-1)), ROUNDING)
    first = aa.hard_attention(q, k, v, estimator="argmax")
    assert_trees_close(aa.hard_attention(q, k, v, estimator="top_k", k=1), first, ROUNDING)
    best = (q @ k.mT).argmax(-1)
    assert_close(first.out, np.take_along_axis(v, best[..., None], axis=2), 0)


def test_of_equal_scores_the_first_is_chosen() -> None:
    q, v = np.ones((1, 2)), np.arange(5.0)[:, None]
    k = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    for kernels in ("reference", "auto"):
        with aa.use_kernels(kernels):
            assert aa.hard_attention(q, k, v, estimator="argmax").out.item() == 1.0
            _, ctx = aa.hard_attention_fwd(q, k, v, estimator="top_k", k=2)
            assert ctx.choice.ravel().tolist() == [1, 2]


def test_a_layer_learns_to_attend_from_rewards_alone() -> None:
    """The key of the query's kind has reward 1, others 0; no gradient flows through the output."""
    layer = HardAttention(S, S, 8)
    params, baseline = layer.init(aa.Philox(3), "float64"), 0.0
    query, key = np.eye(S)[None], np.eye(S)[None]  # query i wants key i
    for step in range(400):
        result, ctx = layer.fwd(params, query, key, rng=step)
        cost = -np.sum(result.out * query, axis=-1)
        dresult = aa.reinforce_cotangent(result, cost, baseline, entropy_weight=0.01)
        grads = layer.bwd(dresult, ctx).params
        params = aa.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        baseline = 0.9 * baseline + 0.1 * float(cost.mean())
    sure = np.diagonal(aa.attention_weights(ctx)[0])
    assert sure.min() > 0.9
    assert -baseline > 0.9

"""Every known mistake is recognized at random shapes, and so are those written by another hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnarray.learn.calls import Case, Outcome, draw_all
from attnarray.learn.course import NAMES, load
from attnarray.learn.exercise import Exercise
from attnarray.learn.grading import grade
from attnarray.learn.mistakes import candidates, recognize
from attnarray.learn.symptoms import same
from tests.support.tiers import first

SEEDS = 20
ROUNDING = 1e-9  # far above that of another order of sums, far below what separates mistakes


def rounded(outcome: Outcome, seed: int) -> Outcome:
    """The results as another order of sums would give them."""
    rng = np.random.default_rng(seed)
    results = [
        result if result.dtype.kind == "b" else result * (1 + ROUNDING * rng.uniform(-1, 1, result.shape))
        for result in outcome.results
    ]
    return outcome._replace(results=tuple(results))


def wrong_results(exercise: Exercise, cases: list[Case], outcomes: list[Outcome]) -> list[int]:
    pairs = list(zip(outcomes, cases, strict=True))
    return [
        n
        for n in range(len(exercise.results))
        if any(outcome.problem or not same(outcome.results[n], case.expected[n]) for outcome, case in pairs)
    ]


@pytest.mark.parametrize("name", first(12, NAMES))
def test_every_mistake_is_recognized_in_95_of_100_cases(name: str) -> None:
    exercise = load(name)
    found = dict.fromkeys((mistake.name for mistake in exercise.mistakes), 0)
    for seed in range(SEEDS):
        cases = draw_all(exercise, seed)
        singles = list(candidates(exercise, cases))
        for candidate in singles:
            outcomes = [rounded(outcome, seed) for outcome in candidate.outcomes]
            wrong = wrong_results(exercise, cases, outcomes)
            findings = recognize(exercise, cases, outcomes, wrong, singles)
            found[candidate.mistakes[0].name] += [finding.mistake for finding in findings] == [*candidate.mistakes]
    assert all(count >= 0.95 * SEEDS for count in found.values()), found


@pytest.mark.parametrize("name", first(8, NAMES))
def test_every_mistake_is_reported_by_a_grading(name: str) -> None:
    exercise = load(name)
    for mistake in exercise.mistakes:
        report = grade(exercise, exercise.mistaken(mistake), seed=7)
        assert not report.passed
        if mistake.name in exercise.planted:
            assert "bug" in report.says
        else:
            assert [found.name for found in report.mistakes] == [mistake.name], report
            assert mistake.says in str(report)


def softmax_loops(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    dx = np.zeros_like(p)
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            dx[i, j] = p[i, j] * (1 - p[i, j]) * dout[i, j]
    return dx


def softmax_jacobian_plus(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    jacobians = np.einsum("ij,jk->ijk", p, np.eye(p.shape[1])) + np.einsum("ij,ik->ijk", p, p)
    return np.einsum("ijk,ik->ij", jacobians, dout)


def cross_entropy_summed(dout: float, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return dout * (shifted / shifted.sum(1)[:, None] - np.eye(logits.shape[1])[targets])


def attention_einsum(dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, delta: bool, scale_k: bool) -> Any:
    scale = q.shape[1] ** -0.5
    e = np.exp(np.einsum("td,sd->ts", q, k) * scale)
    p = e / e.sum(1, keepdims=True)
    dp = np.einsum("te,se->ts", dout, v)
    ds = p * dp - (p * np.einsum("ts,ts->t", p, dp)[:, None] if delta else 0)
    dk = np.einsum("ts,td->sd", ds, q) * (scale if scale_k else 1)
    return np.einsum("ts,sd->td", ds, k) * scale, dk, np.einsum("ts,te->se", p, dout)


def transposed_keys(dout: np.ndarray, q: np.ndarray, k: np.ndarray, scale: float) -> Any:
    return scale * np.dot(dout, k.transpose()), scale * np.dot(dout.transpose(), q)


def forgotten_mask(dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> Any:
    return attention_einsum(dout, q, k, v, delta=True, scale_k=True)


def first_head_of_a_group(dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Any:
    grads = [
        attention_einsum(dout[h], q[h], k[h * len(k) // len(q)], v[h * len(k) // len(q)], delta=True, scale_k=True)
        for h in range(len(q))
    ]
    groups = len(q) // len(k)
    dk, dv = (np.stack([grads[h * groups][n] for h in range(len(k))]) for n in (1, 2))
    return np.stack([grad[0] for grad in grads]), dk, dv


def dropout_without_factor(dout: np.ndarray, p: np.ndarray, v: np.ndarray, keep: np.ndarray, rate: float) -> Any:
    return np.where(keep, np.inner(dout, v), 0.0), np.where(keep, p, 0.0).T @ dout


def norm_without_eps(dout: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> Any:
    size = np.linalg.norm(x, axis=-1, keepdims=True) / x.shape[-1] ** 0.5
    n, dn = x / size, dout * weight
    return (dn - n * (dn * n).mean(-1, keepdims=True)) / size, np.einsum("bte,bte->e", dout, n)


def embedding_by_assignment(dout: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    dtable = np.zeros((vocab_size, dout.shape[2]))
    for b in range(tokens.shape[0]):
        for t in range(tokens.shape[1]):
            dtable[tokens[b, t]] = dout[b, t]
    return dtable


def strict_causal(T: int, S: int, offset: int) -> np.ndarray:
    return np.tri(T, S, offset - 1) > 0


def unscaled_sums(blocks: Any) -> Any:
    arrays = list(blocks)
    largest = np.maximum.accumulate([array.max(1) for array in arrays])
    sums = [np.exp(array - top[:, None]).sum(1) for array, top in zip(arrays, largest, strict=True)]
    return largest[-1], np.sum(sums, axis=0)


# By exercise: a mistake, and a function of another hand that has it.
BY_ANOTHER_HAND: list[tuple[str, list[str], Callable[..., Any]]] = [
    ("softmax_bwd", ["diagonal-only"], softmax_loops),
    ("softmax_bwd", ["delta-added"], softmax_jacobian_plus),
    ("cross_entropy_bwd", ["no-mean"], cross_entropy_summed),
    ("attention_bwd", ["no-delta"], lambda dout, q, k, v: attention_einsum(dout, q, k, v, False, True)),
    ("attention_bwd", ["no-scale-k"], lambda dout, q, k, v: attention_einsum(dout, q, k, v, True, False)),
    ("attention_bwd", ["no-delta", "no-scale-k"], lambda dout, q, k, v: attention_einsum(dout, q, k, v, False, False)),
    ("scores_bwd", ["k-transposed"], transposed_keys),
    ("masked_attention_bwd", ["mask-forgotten"], forgotten_mask),
    ("grouped_heads_bwd", ["no-head-sum"], first_head_of_a_group),
    ("dropout_attention_bwd", ["no-factor-dv", "no-factor-dp"], dropout_without_factor),
    ("rms_norm_bwd", ["eps-forgotten"], norm_without_eps),
    ("embedding_bwd", ["last-one-wins"], embedding_by_assignment),
    ("causal_mask", ["own-position-hidden"], strict_causal),
    ("online_softmax", ["not-rescaled"], unscaled_sums),
]


@pytest.mark.parametrize(("name", "mistakes", "function"), BY_ANOTHER_HAND, ids=[row[1][0] for row in BY_ANOTHER_HAND])
def test_mistakes_of_another_hand_are_recognized(name: str, mistakes: list[str], function: Callable[..., Any]) -> None:
    for seed in range(3):
        report = grade(load(name), function, seed)
        assert [found.name for found in report.mistakes] == mistakes, report


def test_two_mistakes_in_different_results_are_told_apart() -> None:
    exercise = load("attention_bwd")

    def two(dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Any:
        dq, dk, dv = exercise.solution(dout, q, k, v)
        return dq * np.sqrt(q.shape[1]), dk, np.ones_like(dv)

    report = grade(exercise, two)
    assert [(found.name, found.results) for found in report.mistakes] == [("no-scale-q", ("dq",))]
    assert [result.ok for result in report.results] == [False, True, False]
    assert report.score == pytest.approx(1 / 3)


def test_edits_that_do_not_fit_are_an_error() -> None:
    exercise = load("softmax_bwd")
    mistake = exercise.mistakes[0]._replace(edits={"not there": ""})
    with pytest.raises(ValueError, match="stands 0 times"):
        exercise.mistaken_source([mistake])
    assert "(dout - delta)" in inspect.getsource(exercise.solution)

"""Which known mistakes a wrong function has: its results are compared with those of the mistaken solutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from attnarray.learn.calls import Case, Outcome, call
from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.symptoms import same


class Finding(NamedTuple):
    """Mistakes that explain the wrong results `labels`, all together."""

    labels: tuple[str, ...]
    mistakes: tuple[Mistake, ...]


class Candidate(NamedTuple):
    """The solution with one or two mistakes, and what it returns for the cases."""

    mistakes: tuple[Mistake, ...]
    outcomes: list[Outcome]


def recognize(
    exercise: Exercise,
    cases: Sequence[Case],
    outcomes: Sequence[Outcome],
    wrong: Sequence[int],
    singles: Sequence[Candidate] | None = None,
) -> list[Finding]:
    """The mistakes that give the same results in every case.

    `wrong` are the numbers of the results to explain. At best one mistake explains all results, the right ones too;
    then two at once; then each wrong result for itself, by one mistake or two. `singles` are the candidates of one
    mistake, if they are at hand.
    """
    everything = range(len(exercise.results))
    singles = list(candidates(exercise, cases)) if singles is None else singles
    for candidate in itertools.chain(singles, candidates(exercise, cases, 2)):
        if all(_agrees(candidate, outcomes, n) for n in everything) and _differs(candidate, cases):
            return [Finding(tuple(exercise.labels[n] for n in wrong), candidate.mistakes)]
    findings: dict[tuple[str, ...], list[str]] = {}
    known: dict[tuple[str, ...], Candidate] = {}
    for n in wrong:
        for candidate in sorted(
            itertools.chain(singles, candidates(exercise, cases, 2)),
            key=lambda c: (len(c.mistakes), -sum(_agrees(c, outcomes, m) for m in everything)),
        ):
            if _agrees(candidate, outcomes, n) and _differs(candidate, cases, n):
                names = tuple(mistake.name for mistake in candidate.mistakes)
                findings.setdefault(names, []).append(exercise.labels[n])
                known[names] = candidate
                break
    return [Finding(tuple(labels), known[names].mistakes) for names, labels in findings.items()]


def candidates(exercise: Exercise, cases: Sequence[Case], count: int = 1) -> Iterator[Candidate]:
    """The solution with each of its mistakes, or with each pair of them that does not change the same words."""
    for mistakes in itertools.combinations(exercise.mistakes, count):
        try:
            function = exercise.mistaken(*mistakes)
        except ValueError:
            continue
        yield Candidate(mistakes, [call(exercise, function, case.arguments) for case in cases])


def _agrees(candidate: Candidate, outcomes: Sequence[Outcome], n: int) -> bool:
    """Whether result `n` is the same in all cases: errors are the same as errors, if some case has results."""
    pairs = list(zip(candidate.outcomes, outcomes, strict=True))
    if any(bool(mine.problem) != bool(given.problem) for mine, given in pairs):
        return False
    compared = [(mine.results[n], given.results[n]) for mine, given in pairs if not mine.problem]
    return bool(compared) and all(same(given, mine) for mine, given in compared)


def _differs(candidate: Candidate, cases: Sequence[Case], n: int | None = None) -> bool:
    """Whether a candidate is wrong in any case, or in result `n`."""
    for outcome, case in zip(candidate.outcomes, cases, strict=True):
        if outcome.problem:
            return True
        chosen = range(len(case.expected)) if n is None else [n]
        if any(not same(np.asarray(outcome.results[m]), case.expected[m]) for m in chosen):
            return True
    return False

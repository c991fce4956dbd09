"""Which known mistakes a wrong function has: its results are compared with those of the mistaken solutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from attnarray.learn.calls import Case, Outcome, call
from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.symptoms import same


class Finding(NamedTuple):
    """A mistake, and the wrong results that it explains, perhaps together with another mistake."""

    labels: tuple[str, ...]
    mistake: Mistake


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
    singles = list(candidates(exercise, cases)) if singles is None else singles
    everything = range(len(exercise.results))
    for candidate in itertools.chain(singles, candidates(exercise, cases, 2)):
        if all(_agrees(candidate, outcomes, n) for n in everything) and _differs(candidate, cases):
            return _by_mistake(exercise, cases, dict.fromkeys(wrong, candidate), singles)
    known = [*singles, *candidates(exercise, cases, 2)]
    known.sort(key=lambda one: (len(one.mistakes), -sum(_agrees(one, outcomes, n) for n in everything)))
    found = {n: _first(known, cases, outcomes, n) for n in wrong}
    return _by_mistake(exercise, cases, {n: one for n, one in found.items() if one is not None}, singles)


def _first(known: Sequence[Candidate], cases: Sequence[Case], outcomes: Sequence[Outcome], n: int) -> Candidate | None:
    return next((one for one in known if _agrees(one, outcomes, n) and _differs(one, cases, n)), None)


def _by_mistake(
    exercise: Exercise, cases: Sequence[Case], found: Mapping[int, Candidate], singles: Sequence[Candidate]
) -> list[Finding]:
    """A finding for each mistake: of two, each explains the results that it changes by itself."""
    alone = {single.mistakes[0].name: single for single in singles}
    labels: dict[str, list[str]] = {}
    for n, candidate in found.items():
        changing = [one for one in candidate.mistakes if _changes(alone[one.name], cases, n)]
        for mistake in changing or candidate.mistakes:
            labels.setdefault(mistake.name, []).append(exercise.labels[n])
    return [Finding(tuple(labels[m.name]), m) for m in exercise.mistakes if m.name in labels]


def _changes(candidate: Candidate, cases: Sequence[Case], n: int) -> bool:
    """Whether result `n` differs in a case that is no error."""
    pairs = zip(candidate.outcomes, cases, strict=True)
    return any(not outcome.problem and not same(outcome.results[n], case.expected[n]) for outcome, case in pairs)


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

"""Grade a function: random calls, gradcheck for a backward, then which result is wrong, where, and by which mistake."""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnarray.gradient_check import gradcheck
from attnarray.learn.calls import Case, Outcome, call, draw_all, quiet
from attnarray.learn.exercise import Exercise, Function
from attnarray.learn.mistakes import recognize
from attnarray.learn.report import Recognized, Report, ResultReport, Status
from attnarray.learn.symptoms import Pair, same, symptom

TOLERANCE = 1e-7  # that of gradcheck: the same sums in another order agree to far more digits
UNKNOWN = "shows none of the mistakes that are known here: derive it once more for one entry, or take a hint."
MOST_ELEMENTS, FEWEST_ELEMENTS = 90, 10  # of all inputs of a call, and of each, for gradcheck


def grade(exercise: Exercise, function: Function, seed: int = 0) -> Report:
    """Grade a function in this process."""
    with quiet() as printed:
        cases = draw_all(exercise, seed)
        outcomes = []
        for case in cases:
            outcomes.append(call(exercise, function, case.arguments))
            if outcomes[-1].problem in ("unfinished", "exit", "mutation", "type"):
                break
        report = _report(exercise, function, cases, outcomes, seed)
    return dataclasses.replace(report, printed=printed.getvalue())


def _report(exercise: Exercise, function: Function, cases: list[Case], outcomes: list[Outcome], seed: int) -> Report:
    problem = next((outcome for outcome in outcomes if outcome.problem and outcome.problem != "error"), None)
    if problem is not None:
        status: Status = "unfinished" if problem.problem == "unfinished" else "error"
        return Report(exercise.name, status, problem.says, problem.where)
    graded = [(case, outcome) for case, outcome in zip(cases, outcomes, strict=True) if not case.equal]
    failed = next((outcome for _, outcome in graded if outcome.problem), None)
    if failed is not None:
        found = _mistakes(exercise, cases, outcomes, range(len(exercise.results)))
        return Report(exercise.name, "error", failed.says, failed.where, mistakes=found)
    says = next(filter(None, (_dtype(exercise, case, outcome) for case, outcome in graded)), "")
    if says:
        return Report(exercise.name, "error", says)
    results = [_judge(exercise, graded, n) for n in range(len(exercise.results))]
    if exercise.forward is not None:
        results = _checked(exercise, function, graded, results, seed)
    wrong = [n for n, result in enumerate(results) if not result.ok]
    if not wrong:
        return Report(exercise.name, "passed", results=tuple(results))
    found = _mistakes(exercise, cases, outcomes, wrong)
    hidden = [mistake for mistake in found if mistake.name in exercise.planted]
    if hidden:  # naming the bug would be the solution
        says = f"It still has {'a bug' if len(exercise.planted) > 1 else 'the bug'} that it came with."
        rest = tuple(mistake for mistake in found if mistake not in hidden)
        return Report(exercise.name, "wrong", says, results=tuple(results), mistakes=rest)
    unexplained = [n for n in wrong if exercise.labels[n] not in {label for m in found for label in m.results}]
    symptoms = [_symptom(exercise, graded, n) or f"`{exercise.labels[n]}` {UNKNOWN}" for n in unexplained]
    return Report(exercise.name, "wrong", results=tuple(results), mistakes=found, symptoms=tuple(symptoms))


def _dtype(exercise: Exercise, case: Case, outcome: Outcome) -> str:
    """What is wrong with the dtypes of the results, or ""; integers pass for real numbers."""
    for label, given, right in zip(exercise.labels, outcome.results, case.expected, strict=True):
        whole = given.dtype.kind in "iu" and right.dtype.kind == "f"
        if given.dtype != right.dtype and not whole:
            do = "compare, or convert by .astype(bool)" if right.dtype.kind == "b" else "that of the inputs"
            return f"`{label}` has dtype {given.dtype}, expected {right.dtype}: {do}."
    return ""


def _judge(exercise: Exercise, graded: Sequence[tuple[Case, Outcome]], n: int) -> ResultReport:
    """The first call whose result is not the solution's, and there the entry of the largest error."""
    label, largest = exercise.labels[n], 0.0
    for case, outcome in graded:
        given, right = outcome.results[n], case.expected[n]
        if given.shape != right.shape:
            return ResultReport(label, False, None, None, f"{given.shape}", f"{right.shape}", right.shape)
        if same(given, right, TOLERANCE):
            largest = max(largest, _errors(given, right).max(initial=0.0))
            continue
        errors = _errors(given, right)
        entry = tuple(int(index) for index in np.unravel_index(int(np.argmax(errors)), errors.shape))
        finite = float(errors[entry]) if np.isfinite(errors[entry]) else None
        return ResultReport(label, False, finite, entry, _number(given[entry]), _number(right[entry]), right.shape)
    return ResultReport(label, True, float(largest))


def _errors(given: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Differences relative to the largest entry; infinite where one of both is not finite."""
    a, b = given.astype(np.float64), right.astype(np.float64)
    with np.errstate(all="ignore"):
        errors = np.abs(a - b) / max(float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0)), 1e-9)
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(alike, 0.0, np.where(np.isfinite(errors), errors, np.inf))


def _number(value: Any) -> str:
    return str(bool(value)) if isinstance(value, np.bool_) else f"{float(value):.5g}"


class _Triple:
    """The exercise's forward with the learner's backward, as `gradcheck` takes them."""

    def __init__(self, exercise: Exercise, function: Function) -> None:
        assert exercise.forward is not None
        self.forward, self.exercise, self.function = exercise.forward, exercise, function
        self.__signature__ = inspect.signature(exercise.forward)
        self.grads = collections.namedtuple("grads", exercise.results)  # type: ignore[misc]

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)[0]

    def fwd(self, **inputs: Any) -> Any:
        return self.forward(**inputs)

    def bwd(self, dout: Any, saved: Any) -> Any:
        results = call(self.exercise, self.function, {"dout": dout, **saved}).results
        return self.grads(*(result.astype(np.float64) for result in results))


def _checked(
    exercise: Exercise,
    function: Function,
    graded: Sequence[tuple[Case, Outcome]],
    results: list[ResultReport],
    seed: int,
) -> list[ResultReport]:
    """The verdict of `gradcheck` on each gradient that equals the solution's: central differences decide."""
    fitting = [n for n, result in enumerate(results) if result.ok]
    wrt = [exercise.results[n] for n in fitting]
    if not wrt:
        return results
    most = max(MOST_ELEMENTS // len(wrt), FEWEST_ELEMENTS)
    errors = dict.fromkeys(wrt, 0.0)
    verdicts = dict.fromkeys(wrt, True)
    for case, _ in graded:
        report = gradcheck(_Triple(exercise, function), wrt=wrt, max_elements=most, seed=seed, **case.inputs)
        for check in report.inputs:
            errors[check.name] = max(errors[check.name], check.error)
            verdicts[check.name] = verdicts[check.name] and check.ok
    found = list(results)
    for n, name in zip(fitting, wrt, strict=True):
        found[n] = results[n]._replace(ok=verdicts[name], error=errors[name])
    return found


def _mistakes(
    exercise: Exercise, cases: list[Case], outcomes: list[Outcome], wrong: Sequence[int]
) -> tuple[Recognized, ...]:
    findings = recognize(exercise, cases, outcomes, wrong)
    return tuple(Recognized(finding.mistake.name, finding.mistake.says, finding.labels) for finding in findings)


def _symptom(exercise: Exercise, graded: Sequence[tuple[Case, Outcome]], n: int) -> str:
    pairs = [Pair(outcome.results[n], case.expected[n], case) for case, outcome in graded]
    others = {label: [case.expected[m] for case, _ in graded] for m, label in enumerate(exercise.labels) if m != n}
    return symptom(exercise.labels[n], pairs, others)

"""Grading a function: a clear message for whatever a learner's function does, and the entry of a wrong result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.learn.course import load
from attnarray.learn.grading import grade
from attnarray.learn.report import Report


def right(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    return p * (dout - np.sum(dout * p, axis=-1, keepdims=True))


def raises(error: BaseException) -> Callable[..., Any]:
    def function(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
        raise error

    return function


def changes_its_input(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    dout -= np.sum(dout * p, axis=-1, keepdims=True)
    return p * dout


def endless(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    return endless(dout, p)


def asks(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    raise EOFError


PROBLEMS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "exits": (raises(SystemExit(1)), "error", "The function ends the program (sys.exit or quit)."),
    "raises": (raises(KeyError("key")), "error", "It raised KeyError: 'key'. It was called with dout ("),
    "raises without words": (raises(ValueError()), "error", "ValueError: without a message"),
    "not written": (
        raises(NotImplementedError("later")),
        "unfinished",
        "Write the function in place of the line that raises NotImplementedError.",
    ),
    "memory": (raises(MemoryError()), "error", "more memory than there is"),
    "recursion": (endless, "error", "calls itself without end"),
    "input": (asks, "error", "input() has nobody to ask here"),
    "changes its input": (
        changes_its_input,
        "error",
        "changes its argument `dout` in place. Work on a copy: dout.copy()",
    ),
    "no return": (lambda dout, p: None, "error", "returned None. Is a `return` missing? Expected: `dx`."),
    "list": (lambda dout, p: right(dout, p).tolist(), "error", "`dx` is a list, expected a NumPy array."),
    "string": (lambda dout, p: "dx", "error", "`dx` is a str, expected a NumPy array."),
    "two values": (lambda dout, p: (dout, p), "error", "It returned 2 values, expected one: `dx`."),
    "complex": (lambda dout, p: right(dout, p) * 1j, "error", "`dx` has dtype complex128, expected real numbers."),
    "float32": (lambda dout, p: right(dout, p).astype("f4"), "error", "`dx` has dtype float32, expected float64"),
    "other arguments": (lambda dout, weights: dout, "error", "Keep the signature: def softmax_bwd(dout: np.ndarray"),
    "no keepdims": (
        lambda dout, p: dout - np.sum(p, axis=-1),
        "error",
        "is keepdims=True missing in a sum, or an axis [:, None]? It was called",
    ),
    "shapes of a product": (lambda dout, p: dout @ p, "error", "the inner sizes of a matrix product are"),
    "NaN": (lambda dout, p: np.full(p.shape, np.nan), "wrong", "is NaN or infinite in"),
    "zero": (lambda dout, p: np.zeros(p.shape), "wrong", "`dx` is 0 everywhere."),
    "sign": (lambda dout, p: -right(dout, p), "wrong", "`dx` has the wrong sign."),
    "factor": (lambda dout, p: right(dout, p) / p.shape[0], "wrong", "`dx` is the right result times 1 / N."),
    "transposed": (lambda dout, p: right(dout, p).T, "wrong", "it is the right result, transposed."),
    "sum of all": (lambda dout, p: np.sum(right(dout, p)), "wrong", "is a sum or a maximum taken over all axes"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_has_a_clear_message(problem: str) -> None:
    function, status, words = PROBLEMS[problem]
    report = grade(load("softmax_bwd"), function)
    assert (report.status, report.passed, bool(report)) == (status, False, False)
    assert words in str(report), report
    assert 0 <= report.score < 1


def test_the_right_function_passes() -> None:
    report = grade(load("softmax_bwd"), right)
    assert report
    assert str(report).splitlines()[0] == "softmax_bwd: passed"
    assert report.results[0].error is not None
    assert report.results[0].error < 1e-9  # central differences of fourth order in float64 are good to 1e-10 and better


def softmax_bwd(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    return p * dout


def test_central_differences_decide_and_not_the_solution() -> None:
    exercise = load("softmax_bwd")._replace(solution=softmax_bwd, mistakes=())
    report = grade(exercise, softmax_bwd)
    assert not report.passed, "it equals the solution, which is wrong here"
    assert report.results[0].error is not None
    assert report.results[0].error > 0.01
    assert "differs from central differences" in str(report)


def test_integers_pass_for_real_numbers() -> None:
    report = grade(load("softmax_bwd"), lambda dout, p: np.zeros(p.shape, int))
    assert "`dx` is 0 everywhere." in str(report)


def test_the_entry_of_the_largest_error_is_named() -> None:
    def wrong(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
        dx = right(dout, p)
        dx[1, 0] += 5
        return dx

    report = grade(load("softmax_bwd"), wrong)
    (result,) = report.results
    assert (result.name, result.ok, result.entry) == ("dx", False, (1, 0))
    assert float(result.given) == pytest.approx(float(result.expected) + 5, abs=1e-3)  # printed with five digits
    assert "WRONG  [1, 0] of (" in str(report)
    assert "Only row 1 of `dx` is wrong" in str(report)


def test_what_is_printed_is_shown_and_cut() -> None:
    def talks(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
        print("shape", p.shape)
        print("x" * 10**5, file=sys.stderr)
        return right(dout, p)

    report = grade(load("softmax_bwd"), talks)
    assert report.passed
    assert report.printed.startswith("shape (")
    assert len(report.printed) <= 2000


def test_swapped_results_are_named() -> None:
    exercise = load("scores_bwd")
    report = grade(exercise, lambda **arguments: exercise.solution(**arguments)[::-1])
    assert "`dq` has shape" in str(report)

    def swapped(dout: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> Any:
        dx, dweight, dbias = load("layer_norm_bwd").solution(dout, x, weight, eps)
        return dx, dbias, dweight

    report = grade(load("layer_norm_bwd"), swapped)
    assert "`dweight` is what `dbias` should be. Check the order of what is returned." in str(report)


def test_a_mask_of_numbers_is_refused() -> None:
    report = grade(load("causal_mask"), lambda T, S, offset: np.tri(T, S, offset))
    assert "`mask` has dtype float64, expected bool" in str(report)


def test_a_kernel_must_fill_its_output() -> None:
    exercise = load("attention_kernel")
    assert "fill `out`, return nothing" in str(grade(exercise, lambda q, k, v, out: out))
    report = grade(exercise, lambda q, k, v, out: None)
    assert report.status == "wrong"

    def rebinds(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
        k *= 2

    assert "changes its argument `k` in place" in str(grade(exercise, rebinds))


def test_a_stream_can_be_read_once() -> None:
    def twice(blocks: Any) -> Any:
        largest = np.max([block.max(axis=-1) for block in blocks], axis=0)
        return largest, sum(np.exp(block - largest[:, None]).sum(axis=-1) for block in blocks)

    report = grade(load("online_softmax"), twice)
    assert not report.passed


def test_a_report_survives_json() -> None:
    for function in (right, PROBLEMS["factor"][0], PROBLEMS["raises"][0], PROBLEMS["NaN"][0], lambda dout, p: p * dout):
        report = grade(load("softmax_bwd"), function)
        fields = json.loads(json.dumps(report.as_json(), allow_nan=False))
        assert Report.from_json(fields) == report
        assert (fields["passed"], fields["format"]) == (report.passed, 1)


def test_in_a_notebook() -> None:
    assert aa.learn.check("softmax_bwd", right)
    report = aa.learn.check("softmax_bwd", lambda dout, p: p * dout, seed=5)
    assert "delta is missing" in repr(report)
    assert aa.learn.names()[:2] == ("softmax", "softmax_bwd")
    assert "p_j (dout_j - delta)" in repr(aa.learn.show("softmax_bwd"))
    assert "raise NotImplementedError" in aa.learn.starting_code("softmax_bwd")
    assert "p * (dout - delta)" in aa.learn.solution("softmax_bwd")
    assert aa.learn.hint("softmax_bwd", 3) != aa.learn.hint("softmax_bwd")
    with pytest.raises(ValueError, match="Did you mean softmax_bwd"):
        aa.learn.check("softmaxbwd", right)
    with pytest.raises(TypeError, match="expected the function that you wrote"):
        aa.learn.check("softmax_bwd", right(np.ones((2, 2)), np.ones((2, 2))))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`step` is 4, expected 1 to 3"):
        aa.learn.hint("softmax_bwd", 4)

"""Every exercise: its text, its files, its solution, and that its solution is what the library computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.learn.calls import draw_all
from attnarray.learn.course import LECTURES, NAMES, following, lecture_number, load
from attnarray.learn.exercise import Exercise
from attnarray.learn.grading import grade
from attnarray.learn.worker import grade_source

EXERCISES = [load(name) for name in NAMES]
every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)


def test_the_course() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 24
    assert len(LECTURES) == 6
    assert [lecture_number(name) for name in NAMES] == sorted(lecture_number(name) for name in NAMES)
    assert (NAMES[0], NAMES[-1]) == ("softmax", "gpt_block_bwd")
    assert [following(name) for name in NAMES] == [*NAMES[1:], None]
    assert {exercise.kind for exercise in EXERCISES} == {"forward", "backward", "mask", "kernel", "bug"}


@every_exercise
def test_the_text(exercise: Exercise) -> None:
    assert exercise.title
    assert len(re.findall(r"[.!?](?= |$)", exercise.story)) == 2, "a story has two sentences"
    assert "=" in exercise.formula
    assert len(exercise.hints) == 3
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes) >= 4
    assert all(mistake.says.endswith(".") for mistake in exercise.mistakes)
    docstring = exercise.solution.__doc__ or ""
    parameters = set(exercise.solution.__annotations__) - {"return"}
    described = {
        name for line in docstring.splitlines() if ":" in line for name in re.findall(r"\w+", line.split(":")[0])
    }
    assert parameters <= described, "each argument has a line in the docstring"
    assert "returns:" in docstring or exercise.writes
    assert set(exercise.planted) <= {mistake.name for mistake in exercise.mistakes}
    assert bool(exercise.planted) == (exercise.kind == "bug")


@every_exercise
def test_the_solution_passes_as_a_file(exercise: Exercise, tmp_path: Path) -> None:
    path = tmp_path / f"{exercise.name}.py"
    path.write_text(exercise.solution_file(), encoding="utf-8")
    report = grade_source(exercise, path, seed=1)
    assert report.passed, report
    assert (report.score, report.printed, report.mistakes, report.symptoms) == (1.0, "", (), ())


@every_exercise
def test_the_starting_file_runs_and_does_not_pass(exercise: Exercise, tmp_path: Path) -> None:
    path = tmp_path / f"{exercise.name}.py"
    text = exercise.starting_file()
    path.write_text(text, encoding="utf-8")
    report = grade_source(exercise, path, seed=0)
    assert report.status == ("wrong" if exercise.planted else "unfinished"), report
    assert exercise.story[:40] in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "attnarray.learn" not in text, "learners need NumPy alone"
    if exercise.planted:
        assert "bug" in report.says
        assert not report.mistakes, "naming the bug would be the solution"


@every_exercise
def test_sizes_are_distinct_or_equal(exercise: Exercise) -> None:
    for case in draw_all(exercise, seed=3):
        sizes = list(case.sizes.values())
        assert len(set(sizes)) == (1 if case.equal else len(sizes))


@every_exercise
def test_other_seeds_are_other_inputs(exercise: Exercise) -> None:
    first, second = (draw_all(exercise, seed)[0] for seed in (0, 1))
    assert repr(first.arguments) != repr(second.arguments)
    assert repr(first.arguments) == repr(draw_all(exercise, 0)[0].arguments)


RNG = np.random.default_rng(0)
X, DOUT = RNG.standard_normal((2, 3, 5, 4))
WEIGHT, BIAS = RNG.standard_normal((2, 4))
Q, K, V = RNG.standard_normal((5, 4)), RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3))
HEADS = RNG.standard_normal((4, 5, 3)), RNG.standard_normal((2, 6, 3)), RNG.standard_normal((2, 6, 3))
MASK = np.tri(5, 6, dtype=bool)
MASK[2] = False
TOKENS = RNG.integers(0, 7, (3, 5))
ANGLES = RNG.standard_normal((5, 2))


def solution(name: str) -> Callable[..., Any]:
    return load(name).solution


def pullback(function: Callable[..., Any], dout: np.ndarray, *args: Any, **kwargs: Any) -> list[np.ndarray]:
    return [grad for grad in aa.vjp(function, *args, **kwargs)[1](dout) if grad is not None]


P = aa.softmax(X)
LOG_P = aa.log_softmax(X)
SDPA = aa.scaled_dot_product_attention
DQ = RNG.standard_normal((5, 3))
LIBRARY: dict[str, Callable[[], tuple[Any, Any]]] = {
    "softmax": lambda: (solution("softmax")(X), aa.softmax(X)),
    "softmax_bwd": lambda: (solution("softmax_bwd")(DOUT, P), pullback(aa.softmax, DOUT, X)),
    "log_softmax_bwd": lambda: (solution("log_softmax_bwd")(DOUT, LOG_P), pullback(aa.log_softmax, DOUT, X)),
    "cross_entropy_bwd": lambda: (
        solution("cross_entropy_bwd")(0.7, X[0], TOKENS[0] % 4),
        pullback(aa.cross_entropy, np.asarray(0.7), X[0], TOKENS[0] % 4),
    ),
    "linear_bwd": lambda: (
        solution("linear_bwd")(DOUT[..., :3], X, V[:3].T.repeat(2, 1)[:3, :4]),
        pullback(aa.linear, DOUT[..., :3], X, V[:3].T.repeat(2, 1)[:3, :4], BIAS[:3]),
    ),
    "attention": lambda: (solution("attention")(Q, K, V), SDPA(Q, K, V)),
    "attention_bwd": lambda: (solution("attention_bwd")(DQ, Q, K, V), pullback(SDPA, DQ, Q, K, V)),
    "masked_attention_bwd": lambda: (
        solution("masked_attention_bwd")(DQ, Q, K, V, MASK),
        pullback(SDPA, DQ, Q, K, V, MASK),
    ),
    "grouped_heads_bwd": lambda: (
        solution("grouped_heads_bwd")(HEADS[0] ** 2, *HEADS),
        [grad[0] for grad in pullback(SDPA, HEADS[0][None] ** 2, *(array[None] for array in HEADS))],
    ),
    "causal_mask": lambda: (solution("causal_mask")(5, 6, 2), aa.Causal(2).to_dense(5, 6)),
    "window_mask": lambda: (solution("window_mask")(5, 6, 2, 1), aa.Window(2, 1).to_dense(5, 6)),
    "masked_softmax": lambda: (solution("masked_softmax")(Q @ K.T, MASK), aa.softmax(Q @ K.T, mask=MASK)),
    "rms_norm_bwd": lambda: (
        solution("rms_norm_bwd")(DOUT, X, WEIGHT, 0.1),
        pullback(aa.rms_norm, DOUT, X, WEIGHT, eps=0.1),
    ),
    "layer_norm_bwd": lambda: (
        solution("layer_norm_bwd")(DOUT, X, WEIGHT, 0.1),
        pullback(aa.layer_norm, DOUT, X, WEIGHT, BIAS, eps=0.1),
    ),
    "gelu_bwd": lambda: (solution("gelu_bwd")(DOUT, X), pullback(aa.gelu, DOUT, X, approximate="tanh")),
    "embedding_bwd": lambda: (
        solution("embedding_bwd")(DOUT, TOKENS, 7),
        pullback(aa.embedding, DOUT, TOKENS, RNG.standard_normal((7, 4))),
    ),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_solution_is_what_the_library_computes(name: str) -> None:
    ours, library = LIBRARY[name]()
    ours = ours if isinstance(ours, tuple) else (ours,)
    library = library if isinstance(library, list) else [library]
    for a, b in zip(ours, library, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)  # the same formula in another order of sums


def test_a_wrong_solution_would_be_noticed() -> None:
    exercise = load("softmax_bwd")
    report = grade(exercise, lambda dout, p: exercise.solution(dout, p) * (1 + 1e-6))
    assert not report.passed

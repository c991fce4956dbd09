"""What is said about a wrong result that no known mistake explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnarray.learn.calls import draw_all
from attnarray.learn.course import load
from attnarray.learn.symptoms import Pair, same, symptom

Change = Callable[[np.ndarray, dict[str, Any]], np.ndarray]

CHANGES: dict[str, tuple[str, Change, str]] = {
    "twice": ("attention_bwd", lambda dq, a: 2 * dq, "is the right result times 2."),
    "minus": ("attention_bwd", lambda dq, a: -dq, "has the wrong sign."),
    "scale": ("scores_bwd", lambda dq, a: dq / a["scale"] ** 2, "is the right result times a number ("),
    "by an argument": ("scores_bwd", lambda dq, a: dq * a["scale"], "is the right result times `scale`."),
    "by a size": ("attention_bwd", lambda dq, a: dq * len(a["q"]), "is the right result times T."),
    "by a root": ("attention_bwd", lambda dq, a: dq / len(a["k"]) ** 0.5, "is the right result times 1 / sqrt(S)."),
    "rows moved": (
        "attention_bwd",
        lambda dq, a: dq + np.arange(len(dq))[:, None] + 1,
        "Each row of `dq` is off by one number",
    ),
    "rows scaled": (
        "attention_bwd",
        lambda dq, a: dq * (np.arange(len(dq))[:, None] + 2),
        "Each row of `dq` is off by one factor",
    ),
    "almost": ("attention_bwd", lambda dq, a: dq * (1 + 1e-5), "is almost right"),
    "axis too many": ("attention_bwd", lambda dq, a: dq[None], "its numbers are right. Is an axis too many"),
    "not summed": (
        "attention_bwd",
        lambda dq, a: np.stack([dq / 3, 2 * dq / 3]),
        "sum over the axes that were broadcast",
    ),
    "another shape": ("attention_bwd", lambda dq, a: np.ones((9, 9)), "has shape (9, 9), expected"),
    "one row": (
        "attention_bwd",
        lambda dq, a: np.concatenate([np.sin(dq[:1]) + 1, dq[1:]]),
        "Only row 0 of `dq` is wrong",
    ),
    "nothing in common": ("attention_bwd", lambda dq, a: np.sin(np.arange(dq.size)).reshape(dq.shape), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_symptom(change: str) -> None:
    name, apply, words = CHANGES[change]
    pairs = [
        Pair(apply(case.expected[0], case.arguments), case.expected[0], case) for case in draw_all(load(name), 1)[:3]
    ]
    said = symptom("dq", pairs, {})
    assert words in said
    assert bool(words) == bool(said)


def test_wrong_only_behind_a_mask() -> None:
    cases = draw_all(load("masked_softmax"), 1)[:3]
    pairs = [Pair(case.expected[0] + 0.1 * ~case.arguments["mask"], case.expected[0], case) for case in cases]
    assert symptom("p", pairs, {}) == "`p` is wrong only where `mask` hides a pair."


def test_masks_that_allow_too_much_or_too_little() -> None:
    cases = draw_all(load("causal_mask"), 1)[:3]
    right = [case.expected[0] for case in cases]
    for change, words in (
        (~right[0], "is inverted"),
        (right[0] & False, "is 0 everywhere"),
        (right[0] | True, "too much"),
    ):
        assert words in symptom("mask", [Pair(change, right[0], cases[0])], {})


def test_what_counts_as_the_same() -> None:
    a = np.array([1.0, 2.0, np.nan, np.inf])
    assert same(a, a + 1e-9)  # relative to the largest entry, far below the limit of 1e-6
    assert not same(a, a + np.array([0, 1e-3, 0, 0]))
    assert not same(a, np.array([1.0, 2.0, np.nan, -np.inf]))
    assert not same(a, np.array([1.0, 2.0, np.inf, np.nan]))
    assert not same(a, a[None])
    assert same(np.zeros(3), np.zeros(3))

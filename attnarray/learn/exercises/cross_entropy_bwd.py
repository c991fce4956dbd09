"""The gradient of the loss.

A language model is trained to give the next token a large weight, and the loss is minus its logarithm. All
training starts with the gradient of this one number, and it is the simplest of the course: what the model said,
minus what was right.

    loss = -1/N sum_i log p[i, targets_i],        p = softmax(logits)
    dlogits_ij = dout / N (p_ij - 1[j = targets_i])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.softmax import softmax


def cross_entropy_bwd(dout: float, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the gradient of the logits.

    dout: gradient of the loss, a number
    logits: (N, C)
    targets: integers (N,), the right class of each row
    returns: dlogits (N, C)
    """
    dlogits = softmax(logits)
    dlogits[np.arange(len(targets)), targets] -= 1
    return dout * dlogits / len(targets)


def _forward(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    p = softmax(logits)
    loss = -np.mean(np.log(p[np.arange(len(targets)), targets]))
    return np.asarray(loss), {"logits": logits, "targets": targets}


def _draw(rng: np.random.Generator, regime: int, N: int, C: int) -> dict[str, Any]:
    return {"logits": rng.standard_normal((N, C)) * (1 + regime), "targets": rng.integers(0, C, N)}


EXERCISE = Exercise(
    cross_entropy_bwd,
    "backward",
    "NC",
    _draw,
    ("logits",),
    forward=_forward,
    given=(softmax,),
    hints=(
        ("Start with the softmax of each row. At how many entries of a row does it differ from what you need?"),
        ("One entry of each row changes: that of its target. p[np.arange(N), targets] are these entries."),
        ("Take p = softmax(logits), subtract 1 at [np.arange(N), targets], multiply by dout and divide by N."),
    ),
    mistakes=(
        Mistake("no-mean", "1/N is missing: the loss is the mean over N rows.", {" / len(targets)": ""}),
        Mistake(
            "mean-twice",
            "1/N stands twice: the mean over the rows divides by N once.",
            {"/ len(targets)": "/ len(targets) / len(targets)"},
        ),
        Mistake(
            "mean-over-classes",
            ("it is divided by the number of all entries: the mean goes over the N rows, not over the classes."),
            {"/ len(targets)": "/ logits.size"},
        ),
        Mistake("no-target", "1 is not subtracted at the target of each row.", {"-= 1": "-= 0"}),
        Mistake(
            "wrong-sign",
            ("the sign is wrong: it is p - 1 at the target, not 1 - p, so that a step against the gradient raises p."),
            {"dout * dlogits": "-dout * dlogits"},
        ),
        Mistake("no-dout", "dout is forgotten: the loss may be one part of a larger one.", {"dout * ": ""}),
        Mistake(
            "logits-for-p",
            "the logits are taken for the weights: p is their softmax.",
            {"softmax(logits)": "logits.copy()"},
        ),
        Mistake(
            "target-column",
            (
                "1 is subtracted in the whole column of each target: index rows and columns together, "
                "[np.arange(N), targets]."
            ),
            {"dlogits[np.arange(len(targets)), targets]": "dlogits[:, targets]"},
        ),
        Mistake(
            "target-rows",
            "`targets` are taken for rows: index rows and columns together, [np.arange(N), targets].",
            {"dlogits[np.arange(len(targets)), targets]": "dlogits[targets]"},
        ),
    ),
)

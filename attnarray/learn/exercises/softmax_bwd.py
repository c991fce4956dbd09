"""The gradient of softmax.

Each weight of a row depends on every score of it, so the derivative of a row is a whole matrix, its Jacobian.
Nobody stores that matrix: the sum over it collapses into one number for each row, which is called delta.

    dp_k / dx_j = p_k (1[k = j] - p_j)            1[...] is 1 if true, else 0
    dx_j = sum_k dout_k dp_k / dx_j
         = p_j (dout_j - delta),    delta = sum_k dout_k p_k

`dout` is the gradient of some loss with respect to the weights p; you return that with respect to the scores x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def softmax_bwd(dout: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return the gradient of the scores.

    dout: gradient of the weights (N, M)
    p: weights (N, M), the softmax of each row of x
    returns: dx (N, M)
    """
    delta = np.sum(dout * p, axis=-1, keepdims=True)
    return p * (dout - delta)


def _forward(x: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    weights = np.exp(x - np.max(x, axis=-1, keepdims=True))
    p = weights / np.sum(weights, axis=-1, keepdims=True)
    return p, {"p": p}


def _draw(rng: np.random.Generator, regime: int, N: int, M: int) -> dict[str, Any]:
    return {"x": rng.standard_normal((N, M)) * (1 + regime)}


EXERCISE = Exercise(
    softmax_bwd,
    "backward",
    "NM",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        (
            "Write out dx_j for a row of two scores, from the first two lines of the formula. Which "
            "part is the same for both?"
        ),
        (
            "delta is one number for each row: the sum over the row of dout times p. Keep its axis "
            "for broadcasting (keepdims=True)."
        ),
        "delta = np.sum(dout * p, axis=-1, keepdims=True), and dx is p times (dout minus delta).",
    ),
    mistakes=(
        Mistake(
            "no-delta",
            ("delta is missing: dx = p * dout treats each weight as if it depended on its own score alone."),
            {"(dout - delta)": "dout"},
        ),
        Mistake("delta-added", "delta is added instead of subtracted.", {"dout - delta": "dout + delta"}),
        Mistake(
            "delta-unweighted",
            "delta is the sum of dout alone: it must be weighted, sum_k dout_k p_k.",
            {"dout * p,": "dout,"},
        ),
        Mistake("delta-mean", "delta is a mean over the row instead of a sum.", {"np.sum": "np.mean"}),
        Mistake(
            "delta-wrong-axis",
            "delta is summed over the wrong axis: it is one number for each row.",
            {"axis=-1": "axis=0"},
        ),
        Mistake(
            "delta-of-all",
            "delta is summed over the whole array: it is one number for each row.",
            {", axis=-1, keepdims=True": ""},
        ),
        Mistake(
            "no-weight",
            "the factor p in front is missing: dx = p * (dout - delta).",
            {"p * (dout - delta)": "dout - delta"},
        ),
        Mistake(
            "diagonal-only",
            (
                "only the diagonal of the Jacobian is used, p (1 - p): the other weights of the row "
                "depend on the score, too."
            ),
            {"p * (dout - delta)": "p * (1 - p) * dout"},
        ),
        Mistake(
            "p-twice",
            "delta is multiplied by p twice: p stands in front of the difference, once.",
            {"(dout - delta)": "(dout - p * delta)"},
        ),
        Mistake(
            "no-keepdims",
            "delta has lost its axis: without keepdims=True it is added along the wrong one.",
            {", keepdims=True": ""},
        ),
    ),
)

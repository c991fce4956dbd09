"""The gradient of the scores.

Queries and keys meet in one product, and its gradient goes back to both. The scale of the forward is a factor
of each gradient, and forgetting it is the mistake that trains, only worse.

    scores_ij = scale q_i · k_j
    dq_i = scale sum_j dout_ij k_j
    dk_j = scale sum_i dout_ij q_i
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def scores_bwd(dout: np.ndarray, q: np.ndarray, k: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of queries and keys.

    dout: gradient of the scores (T, S)
    q: queries (T, D)
    k: keys (S, D)
    scale: a number
    returns: dq (T, D), dk (S, D)
    """
    dq = scale * dout @ k
    dk = scale * dout.T @ q
    return dq, dk


def _forward(q: np.ndarray, k: np.ndarray, scale: float) -> tuple[np.ndarray, dict[str, Any]]:
    return scale * q @ k.T, {"q": q, "k": k, "scale": scale}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q, "k": k, "scale": (1 / float(np.sqrt(D)), 0.3, 1.7)[regime]}


EXERCISE = Exercise(
    scores_bwd,
    "backward",
    "TSD",
    _draw,
    ("q", "k"),
    forward=_forward,
    hints=(
        "Write both sums as matrix products: the index that is summed must stand in the middle.",
        ("dq sums over the keys: dout has the keys last, k has them first. For dk, dout must be transposed."),
        "dq = scale * dout @ k and dk = scale * dout.T @ q.",
    ),
    mistakes=(
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk = scale * ": "dk = "}),
        Mistake("scale-twice-q", "the scale stands twice in dq.", {"dq = scale * ": "dq = scale * scale * "}),
        Mistake("scale-twice-k", "the scale stands twice in dk.", {"dk = scale * ": "dk = scale * scale * "}),
        Mistake(
            "k-transposed",
            "the keys are transposed in dq: the forward has k^T, the backward k.",
            {"dout @ k": "dout @ k.T"},
        ),
        Mistake(
            "dout-not-transposed",
            "dout is not transposed in dk: dk_j sums over the queries.",
            {"dout.T @ q": "dout @ q"},
        ),
        Mistake(
            "divided-by-scale",
            "it is divided by the scale instead of multiplied.",
            {"dq = scale * dout @ k": "dq = dout @ k / scale", "dk = scale * dout.T @ q": "dk = dout.T @ q / scale"},
        ),
    ),
)

"""The gradient of log-softmax.

Losses want the logarithm of a weight, and log(softmax(x)) of a tiny weight is log(0). Taking both steps at once
is safe, and its gradient is shorter than that of softmax.

    out_j = x_j - log(sum_m exp(x_m))
    dout_k / dx_j = 1[k = j] - p_j,        p = exp(out)
    dx_j = dout_j - p_j sum_k dout_k
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def log_softmax_bwd(dout: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Return the gradient of the scores.

    dout: gradient of out (N, M)
    out: log-softmax of each row of x (N, M)
    returns: dx (N, M)
    """
    total = np.sum(dout, axis=-1, keepdims=True)
    return dout - np.exp(out) * total


def _forward(x: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    shifted = x - np.max(x, axis=-1, keepdims=True)
    out = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return out, {"out": out}


def _draw(rng: np.random.Generator, regime: int, N: int, M: int) -> dict[str, Any]:
    return {"x": rng.standard_normal((N, M)) * (1 + regime)}


EXERCISE = Exercise(
    log_softmax_bwd,
    "backward",
    "NM",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        "The weights are not given, but their logarithm is.",
        "The sum over k is one number for each row; p_j stands in front of it, not in it.",
        ("total = np.sum(dout, axis=-1, keepdims=True), and dx is dout minus np.exp(out) times total."),
    ),
    mistakes=(
        Mistake(
            "no-sum",
            "the second term is missing: raising one score lowers the log-weights of the whole row.",
            {" - np.exp(out) * total": ""},
        ),
        Mistake(
            "no-weight", "the sum of dout must be multiplied by the weight, exp(out).", {"np.exp(out) * total": "total"}
        ),
        Mistake("log-as-weight", "`out` is used as the weight: it is the logarithm of it.", {"np.exp(out)": "out"}),
        Mistake(
            "softmax-gradient",
            "dout is weighted inside of the sum, as for softmax: here the sum is that of dout alone.",
            {"np.sum(dout,": "np.sum(dout * np.exp(out),"},
        ),
        Mistake(
            "sum-wrong-axis", "the sum goes over the wrong axis: it is one number for each row.", {"axis=-1": "axis=0"}
        ),
        Mistake(
            "sum-of-all",
            "the sum is that of the whole array: it is one number for each row.",
            {", axis=-1, keepdims=True": ""},
        ),
        Mistake("plus", "the second term is added instead of subtracted.", {"dout - np": "dout + np"}),
        Mistake(
            "no-keepdims",
            "the sum has lost its axis: without keepdims=True it is broadcast along the wrong one.",
            {", keepdims=True": ""},
        ),
    ),
)

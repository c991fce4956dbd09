"""Find the bugs: a cap on scores.

The gradients of this head look plausible, the loss goes down, and after a day it stops going down. There are
two bugs, and the grader names an input for each.

    scores = scale q k^T,   capped = cap tanh(scores / cap),   p = softmax(capped),   out = p v
    dcapped = p * (dp - delta),   dscores = dcapped (1 - tanh(scores / cap)^2)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.softmax import softmax


def repair_softcap_attention_bwd(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, cap: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values.

    dout: gradient of the output (T, E)
    q, k, v: (T, D), (S, D), (S, E)
    scale, cap: numbers
    returns: dq (T, D), dk (S, D), dv (S, E)
    """
    t = np.tanh(scale * q @ k.T / cap)
    p = softmax(cap * t)
    dv = p.T @ dout
    dp = dout @ v.T
    dcapped = p * (dp - np.sum(dp * p, axis=-1, keepdims=True))
    dscores = dcapped * (1 - t**2)
    dq = scale * dscores @ k
    dk = scale * dscores.T @ q
    return dq, dk, dv


def _forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, cap: float
) -> tuple[np.ndarray, dict[str, Any]]:
    out = softmax(cap * np.tanh(scale * q @ k.T / cap)) @ v
    return out, {"q": q, "k": k, "v": v, "scale": scale, "cap": cap}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q, "k": k, "v": rng.standard_normal((S, E)), "scale": 0.6, "cap": (1.5, 0.8, 2.5)[regime]}


EXERCISE = Exercise(
    repair_softcap_attention_bwd,
    "bug",
    "TSDE",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    given=(softmax,),
    planted=("slope-without-square", "no-scale-k"),
    hints=(
        ("Which lines do dq and dk share, and which belong to one of them? The first bug is in a shared line."),
        "Compare the slope of tanh with that of softcap_bwd; then compare the lines of dq and dk.",
        "The slope is 1 - t**2; and dk needs the scale, as dq does.",
    ),
    mistakes=(
        Mistake(
            "slope-without-square", "the slope of tanh is 1 - tanh^2: the square is missing.", {"(1 - t**2)": "(1 - t)"}
        ),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk = scale * ": "dk = "}),
        Mistake("no-slope", "the slope of the cap is missing.", {" * (1 - t**2)": ""}),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake(
            "slope-of-capped",
            ("the slope is taken at the capped score: tanh(scores / cap) is meant, without the factor cap."),
            {"1 - t**2": "1 - (cap * t) ** 2"},
        ),
        Mistake(
            "slope-on-dp",
            "the slope is applied before the backward of softmax: it comes after it.",
            {"dp = dout @ v.T": "dp = dout @ v.T * (1 - t**2)", "dcapped * (1 - t**2)": "dcapped"},
        ),
    ),
)

"""A cap on the scores.

Some models keep their scores small by a tanh, as scores of a hundred make softmax deaf to everything else. A
smooth function of each entry has the simplest backward: dout times the slope.

    out = cap tanh(x / cap)
    slope = 1 - tanh(x / cap)^2
    dx = dout slope
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def softcap_bwd(dout: np.ndarray, x: np.ndarray, cap: float) -> np.ndarray:
    """Return the gradient of the scores.

    dout: gradient of the capped scores (T, S)
    x: scores (T, S)
    cap: a number, which no capped score exceeds
    returns: dx (T, S)
    """
    t = np.tanh(x / cap)
    return dout * (1 - t**2)


def _forward(x: np.ndarray, cap: float) -> tuple[np.ndarray, dict[str, Any]]:
    return cap * np.tanh(x / cap), {"x": x, "cap": cap}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int) -> dict[str, Any]:
    return {"x": 2 * rng.standard_normal((T, S)), "cap": (1.5, 3.0, 0.7)[regime]}


EXERCISE = Exercise(
    softcap_bwd,
    "backward",
    "TS",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        "Derive the slope: the chain rule gives a factor cap and a factor 1 / cap.",
        "The slope of tanh(u) is 1 - tanh(u)^2, and here u = x / cap.",
        "t = np.tanh(x / cap); return dout * (1 - t**2).",
    ),
    mistakes=(
        Mistake("no-slope", "the slope is missing: dx is dout unchanged.", {" * (1 - t**2)": ""}),
        Mistake("slope-without-square", "the slope of tanh is 1 - tanh^2: the square is missing.", {"t**2": "t"}),
        Mistake(
            "slope-of-capped",
            "the slope is taken at the capped score: tanh(x / cap) is meant, without the factor cap.",
            {"np.tanh(x / cap)": "cap * np.tanh(x / cap)"},
        ),
        Mistake("cap-inside", "x is not divided by the cap inside of tanh.", {"x / cap": "x"}),
        Mistake(
            "cap-left",
            "a factor cap is left: it cancels the 1 / cap of the inner derivative.",
            {"dout * (": "dout * cap * ("},
        ),
        Mistake(
            "cap-divided",
            "a factor 1 / cap is left: it cancels the cap in front of tanh.",
            {"dout * (": "dout / cap * ("},
        ),
        Mistake("slope-inverted", "the slope of tanh is 1 - tanh^2, not tanh^2.", {"(1 - t**2)": "t**2"}),
    ),
)

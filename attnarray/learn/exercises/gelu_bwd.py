"""GELU.

Between two linear layers stands a function that lets large numbers pass and stops negative ones, softly; GPT-2
uses this approximation. Its slope is a matter of the product rule and the chain rule, and of not losing the 3.

    u = sqrt(2 / pi) (x + 0.044715 x^3),   t = tanh(u)
    out = 0.5 x (1 + t)
    slope = 0.5 (1 + t) + 0.5 x (1 - t^2) du/dx,        dx = dout slope
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def gelu_bwd(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the gradient of x.

    dout: gradient of the output (T, E)
    x: (T, E)
    returns: dx (T, E)
    """
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)
    return dout * slope


def _forward(x: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), {"x": x}


def _draw(rng: np.random.Generator, regime: int, T: int, E: int) -> dict[str, Any]:
    return {"x": rng.standard_normal((T, E)) * (1, 2, 0.5)[regime]}


EXERCISE = Exercise(
    gelu_bwd,
    "backward",
    "TE",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        ("The product rule gives two terms: the slope of x times the rest, and x times the slope of the rest."),
        "du/dx is sqrt(2 / pi) (1 + 3 · 0.044715 x^2).",
        ("slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2) with c = np.sqrt(2 / np.pi)."),
    ),
    mistakes=(
        Mistake(
            "cube-without-3", "the slope of the cube lacks its 3: d(x^3)/dx = 3 x^2.", {"3 * 0.044715": "0.044715"}
        ),
        Mistake(
            "first-term-only",
            "the second term of the product rule is missing.",
            {" + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)": ""},
        ),
        Mistake("second-term-only", "the first term of the product rule is missing.", {"0.5 * (1 + t) + ": ""}),
        Mistake("no-inner-slope", "the inner derivative du/dx is missing.", {" * c * (1 + 3 * 0.044715 * x**2)": ""}),
        Mistake("no-constant", "the factor sqrt(2 / pi) of du/dx is missing.", {"(1 - t**2) * c *": "(1 - t**2) *"}),
        Mistake(
            "tanh-without-square", "the slope of tanh is 1 - tanh^2: the square is missing.", {"1 - t**2": "1 - t"}
        ),
        Mistake("cube-ignored", "the cube is left out of du/dx.", {" * (1 + 3 * 0.044715 * x**2)": ""}),
        Mistake(
            "x-forgotten", "the factor x of the second term is missing.", {"0.5 * x * (1 - t**2)": "0.5 * (1 - t**2)"}
        ),
        Mistake("half-once", "the second term lacks its factor 0.5.", {"0.5 * x * (1 - t**2)": "x * (1 - t**2)"}),
    ),
)

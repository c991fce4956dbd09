"""RMS norm.

Each token is divided by its own root mean square, so that layers see numbers of one size whatever comes before.
The divisor depends on all features of the token, and so its gradient has a sum in it, as that of softmax has.

    r = 1 / sqrt(mean(x^2) + eps)        the mean goes over the features
    n = r x,   out = n weight
    dn = dout weight
    dx = r (dn - n mean(dn n))
    dweight = sum of dout n over batch and positions
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def rms_norm_bwd(dout: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of x and weight.

    dout: gradient of the output (B, T, E)
    x: (B, T, E)
    weight: (E,)
    eps: a small number
    returns: dx (B, T, E), dweight (E,)
    """
    r = 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    n = r * x
    dn = dout * weight
    dx = r * (dn - n * np.mean(dn * n, axis=-1, keepdims=True))
    dweight = np.sum(dout * n, axis=(0, 1))
    return dx, dweight


def _forward(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, dict[str, Any]]:
    r = 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return r * x * weight, {"x": x, "weight": weight, "eps": eps}


def _draw(rng: np.random.Generator, regime: int, B: int, T: int, E: int) -> dict[str, Any]:
    B, T, E = B + 1, T + 1, E + 1
    x, weight = rng.standard_normal((B, T, E)) * (1, 0.3, 2)[regime], rng.standard_normal(E) + 1
    return {"x": x, "weight": weight, "eps": 0.02}


EXERCISE = Exercise(
    rms_norm_bwd,
    "backward",
    "BTE",
    _draw,
    ("x", "weight"),
    forward=_forward,
    hints=(
        ("Compute r and n again first. Which arrays have one number a token, and need keepdims=True?"),
        (
            "weight is shared by all tokens: its gradient is summed over batch and positions. In dx, "
            "the mean goes over the features."
        ),
        (
            "dn = dout * weight; dx = r * (dn - n * np.mean(dn * n, axis=-1, keepdims=True)); "
            "dweight = np.sum(dout * n, axis=(0, 1))."
        ),
    ),
    mistakes=(
        Mistake(
            "no-projection",
            "the second term is missing in dx: the divisor depends on x, too.",
            {" - n * np.mean(dn * n, axis=-1, keepdims=True)": ""},
        ),
        Mistake("eps-forgotten", "eps is forgotten in the root.", {" + eps)": ")"}),
        Mistake(
            "eps-outside",
            "eps is added outside of the root: it belongs to the mean of the squares.",
            {
                "np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)": (
                    "(np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + eps)"
                )
            },
        ),
        Mistake(
            "sum-for-mean",
            "the second term of dx has a sum where the mean over the features belongs.",
            {"np.mean(dn * n": "np.sum(dn * n"},
        ),
        Mistake("weight-forgotten", "the weight is forgotten in dx: dn = dout * weight.", {"dout * weight": "dout"}),
        Mistake(
            "weight-after-mean",
            "the weight is left out of the mean: both terms of dx have dn = dout * weight.",
            {"np.mean(dn * n": "np.mean(dout * n"},
        ),
        Mistake("no-r", "the factor r in front of dx is missing.", {"dx = r * (": "dx = ("}),
        Mistake(
            "x-for-n-in-dweight",
            "dweight is computed from x: it is the sum of dout times the normalized n.",
            {"np.sum(dout * n": "np.sum(dout * x"},
        ),
        Mistake(
            "dweight-mean",
            "dweight is a mean over batch and positions instead of the sum.",
            {"np.sum(dout * n": "np.mean(dout * n"},
        ),
        Mistake(
            "dweight-batch-only",
            "dweight is summed over the batch alone: the positions share the weight, too.",
            {"axis=(0, 1)": "axis=0"},
        ),
        Mistake(
            "mean-wrong-axis",
            "the mean of the second term goes over the positions: it goes over the features.",
            {"np.mean(dn * n, axis=-1": "np.mean(dn * n, axis=-2"},
        ),
        Mistake(
            "x-for-n",
            "x is used for the normalized n in the second term of dx.",
            {"- n * np.mean(dn * n": "- x * np.mean(dn * x"},
        ),
        Mistake(
            "no-keepdims",
            "the mean of dn n has lost its axis: without keepdims=True it is broadcast along the wrong one.",
            {"np.mean(dn * n, axis=-1, keepdims=True)": "np.mean(dn * n, axis=-1)"},
        ),
    ),
)

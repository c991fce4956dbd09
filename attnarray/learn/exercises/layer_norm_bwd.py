"""Layer norm.

Layer norm subtracts the mean of a token before it divides, and two sums appear in the gradient. Read them as a
projection: what would only shift or stretch the whole token has no effect on the output, and is taken out.

    r = 1 / sqrt(var(x) + eps),   n = r (x - mean(x)),   out = n weight + bias
    dn = dout weight
    dx = r (dn - mean(dn) - n mean(dn n))        means over the features
    dweight = sum of dout n,   dbias = sum of dout        over batch and positions
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def layer_norm_bwd(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x, weight and bias.

    dout: gradient of the output (B, T, E)
    x: (B, T, E)
    weight: (E,)
    eps: a small number
    returns: dx (B, T, E), dweight (E,), dbias (E,)
    """
    r = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
    n = r * (x - np.mean(x, axis=-1, keepdims=True))
    dn = dout * weight
    dx = r * (dn - np.mean(dn, axis=-1, keepdims=True) - n * np.mean(dn * n, axis=-1, keepdims=True))
    return dx, np.sum(dout * n, axis=(0, 1)), np.sum(dout, axis=(0, 1))


def _forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> tuple[np.ndarray, dict[str, Any]]:
    r = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
    out = r * (x - np.mean(x, axis=-1, keepdims=True)) * weight + bias
    return out, {"x": x, "weight": weight, "eps": eps}


def _draw(rng: np.random.Generator, regime: int, B: int, T: int, E: int) -> dict[str, Any]:
    B, T, E = B + 1, T + 1, E + 1
    x, weight = rng.standard_normal((B, T, E)) * (1, 0.3, 2)[regime], rng.standard_normal(E) + 1
    return {"x": x, "weight": weight, "bias": rng.standard_normal(E), "eps": 0.02}


EXERCISE = Exercise(
    layer_norm_bwd,
    "backward",
    "BTE",
    _draw,
    ("x", "weight", "bias"),
    forward=_forward,
    hints=(
        ("It is rms_norm_bwd with one more term. np.var divides by the number of features, as it must here."),
        ("The three terms of dx are dn, its mean, and n times the mean of dn n; all means keep their axis."),
        (
            "dx = r * (dn - np.mean(dn, axis=-1, keepdims=True) - n * np.mean(dn * n, axis=-1, "
            "keepdims=True)); dweight and dbias sum over axes (0, 1)."
        ),
    ),
    mistakes=(
        Mistake(
            "no-mean",
            "the mean of dn is not subtracted in dx: the mean of x depends on every feature.",
            {" - np.mean(dn, axis=-1, keepdims=True)": ""},
        ),
        Mistake(
            "no-projection",
            "the third term is missing in dx: the variance depends on x, too.",
            {" - n * np.mean(dn * n, axis=-1, keepdims=True)": ""},
        ),
        Mistake("eps-forgotten", "eps is forgotten in the root.", {" + eps)": ")"}),
        Mistake(
            "sample-variance",
            "the variance is divided by E - 1: layer norm divides by E.",
            {"np.var(x, axis=-1, keepdims=True)": "np.var(x, axis=-1, keepdims=True, ddof=1)"},
        ),
        Mistake("weight-forgotten", "the weight is forgotten in dx: dn = dout * weight.", {"dout * weight": "dout"}),
        Mistake("no-r", "the factor r in front of dx is missing.", {"dx = r * (": "dx = ("}),
        Mistake(
            "mean-not-subtracted",
            "the mean of x is not subtracted in n.",
            {"(x - np.mean(x, axis=-1, keepdims=True))": "x"},
        ),
        Mistake(
            "sums-for-means",
            "dx has sums where the means over the features belong.",
            {"np.mean(dn, axis": "np.sum(dn, axis", "np.mean(dn * n": "np.sum(dn * n"},
        ),
        Mistake(
            "dweight-from-dn",
            "the weight is in dweight once more: it is the sum of dout n, not of dn n.",
            {"np.sum(dout * n, axis": "np.sum(dn * n, axis"},
        ),
        Mistake(
            "x-for-n-in-dweight",
            "dweight is computed from x: it is the sum of dout times the normalized n.",
            {"np.sum(dout * n, axis": "np.sum(dout * x, axis"},
        ),
        Mistake(
            "parameter-means",
            "dweight and dbias are means over batch and positions instead of sums.",
            {"np.sum(dout * n": "np.mean(dout * n", "np.sum(dout, axis": "np.mean(dout, axis"},
        ),
        Mistake(
            "batch-only",
            "dweight and dbias are summed over the batch alone.",
            {
                "np.sum(dout * n, axis=(0, 1))": "np.sum(dout * n, axis=0)",
                "np.sum(dout, axis=(0, 1))": "np.sum(dout, axis=0)",
            },
        ),
        Mistake(
            "no-keepdims",
            "the means of dx have lost their axis: without keepdims=True they are broadcast along the wrong one.",
            {
                "np.mean(dn, axis=-1, keepdims=True)": "np.mean(dn, axis=-1)",
                "np.mean(dn * n, axis=-1, keepdims=True)": "np.mean(dn * n, axis=-1)",
            },
        ),
        Mistake(
            "eps-outside",
            "eps is added outside of the root: it belongs to the variance.",
            {"np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)": "(np.std(x, axis=-1, keepdims=True) + eps)"},
        ),
    ),
)

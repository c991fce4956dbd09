"""A residual connection.

Deep networks learn because each layer only adds to what is there: out = x + f(norm(x)). So the gradient reaches
the first layer without passing any other, and whoever forgets this term trains the last layer alone.

    n = rms_norm(x, weight),   y = tanh(n W),   out = x + y
    dn = (dout (1 - y^2)) W^T,   dW = n^T (dout (1 - y^2))
    dx = dout + what rms_norm_bwd returns for dn
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def pre_norm_bwd(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, w: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x, of the weight of the norm, and of w.

    dout: gradient of the output (T, E)
    x: (T, E)
    weight: (E,)
    w: (E, E)
    eps: a small number
    returns: dx (T, E), dweight (E,), dw (E, E)
    """
    n = rms_norm(x, weight, eps)
    dy = dout * (1 - np.tanh(n @ w) ** 2)
    dw = n.T @ dy
    dx, dweight = rms_norm_bwd(dy @ w.T, x, weight, eps)
    return dout + dx, dweight, dw


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) weight, for x (T, E)."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rms_norm_bwd(dout: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return dx and dweight, for x (T, E)."""
    r = 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    n, dn = r * x, dout * weight
    return r * (dn - n * np.mean(dn * n, axis=-1, keepdims=True)), np.sum(dout * n, axis=0)


def _forward(x: np.ndarray, weight: np.ndarray, w: np.ndarray, eps: float) -> tuple[np.ndarray, dict[str, Any]]:
    out = x + np.tanh(rms_norm(x, weight, eps) @ w)
    return out, {"x": x, "weight": weight, "w": w, "eps": eps}


def _draw(rng: np.random.Generator, regime: int, T: int, E: int) -> dict[str, Any]:
    E += 1
    x, w = rng.standard_normal((T, E)) * (1 + regime), rng.standard_normal((E, E)) / np.sqrt(E)
    return {"x": x, "weight": rng.standard_normal(E) + 1, "w": w, "eps": 0.02}


EXERCISE = Exercise(
    pre_norm_bwd,
    "backward",
    "TE",
    _draw,
    ("x", "weight", "w"),
    forward=_forward,
    given=(rms_norm, rms_norm_bwd),
    hints=(
        "Name every array of the forward, and write the gradient of each, last one first.",
        "x is used twice: in the sum, and in the norm. Its gradient has two terms.",
        (
            "dy = dout * (1 - np.tanh(n @ w) ** 2); dx, dweight = rms_norm_bwd(dy @ w.T, x, weight, "
            "eps); return dout + dx, dweight, n.T @ dy."
        ),
    ),
    mistakes=(
        Mistake(
            "residual-lost",
            "the residual connection has no gradient: dx lacks the term dout.",
            {"return dout + dx": "return dx"},
        ),
        Mistake(
            "residual-only",
            "only the residual connection has a gradient: dx lacks what comes through the layer.",
            {"return dout + dx": "return dout + 0 * dx"},
        ),
        Mistake(
            "norm-skipped",
            "the backward of the norm is skipped in dx.",
            {"return dout + dx": "return dout + dy @ w.T + 0 * dx"},
        ),
        Mistake(
            "residual-normalized",
            "dout goes through the norm: the residual connection leads around it.",
            {"rms_norm_bwd(dy @ w.T": "rms_norm_bwd(dout + dy @ w.T", "return dout + dx": "return dx"},
        ),
        Mistake("no-slope", "the slope of tanh is missing.", {" * (1 - np.tanh(n @ w) ** 2)": ""}),
        Mistake("w-not-transposed", "w is not transposed in the gradient of the norm.", {"dy @ w.T": "dy @ w"}),
        Mistake("dw-from-x", "dw is computed from x: the layer gets the normalized n.", {"n.T @ dy": "x.T @ dy"}),
        Mistake(
            "tanh-without-square",
            "the slope of tanh is 1 - tanh^2: the square is missing.",
            {"np.tanh(n @ w) ** 2": "np.tanh(n @ w)"},
        ),
    ),
)

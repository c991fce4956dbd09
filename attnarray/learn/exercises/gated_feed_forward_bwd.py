"""A gated feed-forward layer.

Half of the parameters of a language model stand here: one product opens and closes the features of another.
Both see the same x, so its gradient comes on two paths.

    g = x Wgate,   u = x Wup,   h = silu(g) u,   out = h Wdown
    silu(g) = g s,   s = 1 / (1 + exp(-g)),   slope = s (1 + g (1 - s))
    dh = dout Wdown^T,   dg = dh u slope,   du = dh silu(g)
    dx = dg Wgate^T + du Wup^T
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def gated_feed_forward_bwd(
    dout: np.ndarray, x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x and the three weights.

    dout: gradient of the output (T, E)
    x: (T, E)
    w_gate, w_up: (E, F)
    w_down: (F, E)
    returns: dx (T, E), dw_gate (E, F), dw_up (E, F), dw_down (F, E)
    """
    g, u = x @ w_gate, x @ w_up
    s = 1 / (1 + np.exp(-g))
    a = g * s
    dh = dout @ w_down.T
    dg = dh * u * s * (1 + g * (1 - s))
    du = dh * a
    dx = dg @ w_gate.T + du @ w_up.T
    return dx, x.T @ dg, x.T @ du, (a * u).T @ dout


def _forward(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    g = x @ w_gate
    out = (g / (1 + np.exp(-g)) * (x @ w_up)) @ w_down
    return out, {"x": x, "w_gate": w_gate, "w_up": w_up, "w_down": w_down}


def _draw(rng: np.random.Generator, regime: int, T: int, E: int, F: int) -> dict[str, Any]:
    shapes = {"x": (T, E), "w_gate": (E, F), "w_up": (E, F), "w_down": (F, E)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


EXERCISE = Exercise(
    gated_feed_forward_bwd,
    "backward",
    "TEF",
    _draw,
    ("x", "w_gate", "w_up", "w_down"),
    forward=_forward,
    hints=(
        ("Compute g, u, s again, then walk back from out: first dh and dw_down, then dg and du, then the rest."),
        (
            "A product of two arrays gives each the other as its factor: du gets silu(g), dg gets u, "
            "and the slope of silu besides."
        ),
        (
            "dg = dh * u * s * (1 + g * (1 - s)); du = dh * g * s; dx = dg @ w_gate.T + du @ w_up.T; "
            "the weights get x.T @ dg, x.T @ du, (g * s * u).T @ dout."
        ),
    ),
    mistakes=(
        Mistake("gate-path-only", "dx lacks what comes through w_up.", {" + du @ w_up.T": ""}),
        Mistake("up-path-only", "dx lacks what comes through the gate.", {"dg @ w_gate.T + ": ""}),
        Mistake("no-slope", "the slope of silu is missing in dg.", {" * s * (1 + g * (1 - s))": ""}),
        Mistake(
            "sigmoid-for-slope",
            "the slope of silu is not the sigmoid alone: g s is a product, and s depends on g.",
            {"s * (1 + g * (1 - s))": "s"},
        ),
        Mistake(
            "slope-of-sigmoid",
            "the slope of the sigmoid, s (1 - s), is taken for that of silu.",
            {"s * (1 + g * (1 - s))": "s * (1 - s)"},
        ),
        Mistake("up-forgotten", "dg lacks the factor u.", {"dh * u * s": "dh * s"}),
        Mistake("gate-not-activated", "du has the factor g instead of silu(g).", {"du = dh * a": "du = dh * g"}),
        Mistake("gate-forgotten", "du lacks the factor silu(g).", {"du = dh * a": "du = dh"}),
        Mistake("down-not-activated", "dw_down is computed without silu: h = silu(g) u.", {"(a * u).T": "(g * u).T"}),
    ),
)

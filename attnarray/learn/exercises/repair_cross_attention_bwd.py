"""Find the bug: cross-attention.

A translator reads a sentence, the memory, and writes another one that attends to it; the model trains, but
worse than that of the paper. One gradient below is wrong, and not by a factor.

    q = x Wq,   k = memory Wk,   v = memory Wv,        out = attention(q, k, v)
    An array that is used twice gets the sum of two gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.attention_bwd import attention_bwd
from attnarray.learn.exercises.softmax import softmax


def repair_cross_attention_bwd(
    dout: np.ndarray, x: np.ndarray, memory: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of all five arrays.

    dout: gradient of the output (T, F)
    x: (T, E)
    memory: (S, E)
    wq, wk, wv: (E, D), (E, D), (E, F)
    returns: dx, dmemory, dwq, dwk, dwv
    """
    q, k, v = x @ wq, memory @ wk, memory @ wv
    dq, dk, dv = attention_bwd(dout, q, k, v)
    dx = dq @ wq.T
    dmemory = dk @ wk.T + dv @ wv.T
    return dx, dmemory, x.T @ dq, memory.T @ dk, memory.T @ dv


def _forward(
    x: np.ndarray, memory: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    q, k, v = x @ wq, memory @ wk, memory @ wv
    out = softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v
    return out, {"x": x, "memory": memory, "wq": wq, "wk": wk, "wv": wv}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, E: int, D: int, F: int) -> dict[str, Any]:
    shapes = {"x": (T, E), "memory": (S, E), "wq": (E, D), "wk": (E, D), "wv": (E, F)}
    return {name: rng.standard_normal(shape) / np.sqrt(E) ** (name[0] == "w") for name, shape in shapes.items()}


EXERCISE = Exercise(
    repair_cross_attention_bwd,
    "bug",
    "TSEDF",
    _draw,
    ("x", "memory", "wq", "wk", "wv"),
    forward=_forward,
    given=(softmax, attention_bwd),
    planted=("values-forgotten",),
    hints=(
        ("Run the check: it says which of the five gradients is wrong. How often does the forward use that array?"),
        "The memory makes the keys and the values. Count the terms of its gradient.",
        "dmemory = dk @ wk.T + dv @ wv.T: the second term was lost.",
    ),
    mistakes=(
        Mistake(
            "values-forgotten", "the gradient of the memory lacks what comes through the values.", {" + dv @ wv.T": ""}
        ),
        Mistake(
            "keys-forgotten", "the gradient of the memory lacks what comes through the keys.", {"dk @ wk.T + ": ""}
        ),
        Mistake(
            "difference",
            "the two gradients of the memory are added, not subtracted.",
            {"dk @ wk.T + dv": "dk @ wk.T - dv"},
        ),
        Mistake(
            "mean",
            "the two gradients of the memory are summed, not averaged.",
            {"dk @ wk.T + dv @ wv.T": "(dk @ wk.T + dv @ wv.T) / 2"},
        ),
    ),
)

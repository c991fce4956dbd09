"""Rotary positions.

LLaMA and most others turn pairs of features of queries and keys by an angle that grows with the position, so
that scores depend on distances. A rotation is undone by the opposite rotation, and this is all that its
backward is.

    x = (a, b), two halves of the features
    out = (a cos - b sin,   b cos + a sin)
    da = dout_a cos + dout_b sin,   db = dout_b cos - dout_a sin
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def rotary_bwd(dout: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Return the gradient of x.

    dout: gradient of the output (T, D), where D is even
    cos, sin: cosines and sines of the angles (T, D / 2)
    returns: dx (T, D)
    """
    half = dout.shape[-1] // 2
    a, b = dout[:, :half], dout[:, half:]
    return np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)


def _forward(x: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1), {"cos": cos, "sin": sin}


def _draw(rng: np.random.Generator, regime: int, T: int, K: int) -> dict[str, Any]:
    angles = np.arange(T)[:, None] * 100.0 ** (-np.arange(K) / K) + 0.3 + regime
    return {"x": rng.standard_normal((T, 2 * K)), "angles": angles}


EXERCISE = Exercise(
    rotary_bwd,
    "backward",
    "TK",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        "Write the forward as a 2 x 2 matrix times (a, b). The backward is the transposed matrix.",
        ("The transposed matrix of a rotation is the rotation by the opposite angle: sin changes its sign."),
        (
            "a, b = dout[:, :half], dout[:, half:]; return np.concatenate([a * cos + b * sin, b * "
            "cos - a * sin], axis=-1)."
        ),
    ),
    mistakes=(
        Mistake(
            "rotated-forward",
            ("it is rotated in the direction of the forward: the backward rotates back, so sin changes its sign."),
            {"a * cos + b * sin, b * cos - a * sin": "a * cos - b * sin, b * cos + a * sin"},
        ),
        Mistake(
            "cos-only", "the terms with sin are missing.", {"a * cos + b * sin, b * cos - a * sin": "a * cos, b * cos"}
        ),
        Mistake("not-rotated", "dout is returned as it is.", {"a * cos + b * sin, b * cos - a * sin": "a, b"}),
        Mistake(
            "interleaved",
            "neighbors are taken as pairs, instead of the two halves of the features.",
            {"a, b = dout[:, :half], dout[:, half:]": "a, b = dout[:, ::2], dout[:, 1::2]"},
        ),
        Mistake(
            "interleaved-throughout",
            "neighbors are rotated as pairs, instead of the two halves of the features.",
            {
                "a, b = dout[:, :half], dout[:, half:]": "a, b = dout[:, ::2], dout[:, 1::2]",
                "np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)": (
                    "np.stack([a * cos + b * sin, b * cos - a * sin], axis=-1).reshape(dout.shape) + 0 * half"
                ),
            },
        ),
        Mistake(
            "halves-swapped",
            "the two halves of the result are swapped.",
            {"a * cos + b * sin, b * cos - a * sin": "b * cos - a * sin, a * cos + b * sin"},
        ),
        Mistake(
            "both-plus",
            "both terms with sin have the same sign: one is added, the other subtracted.",
            {"b * cos - a * sin": "b * cos + a * sin"},
        ),
        Mistake(
            "both-minus",
            "both terms with sin have the same sign: one is added, the other subtracted.",
            {"a * cos + b * sin": "a * cos - b * sin"},
        ),
    ),
)

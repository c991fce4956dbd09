"""Splitting into heads.

Heads are not separate layers: the features of one product are cut into heads, and the head axis moves to the
front. Nothing is computed, so nothing can go wrong, except that a reshape without a transpose gives the right
shape with the wrong numbers.

    out[h, t, d] = x[t, h D + d]        (T, H D) becomes (H, T, D)
    dx[t, h D + d] = dout[h, t, d]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def split_heads_bwd(dout: np.ndarray) -> np.ndarray:
    """Return the gradient of the features.

    dout: gradient of the heads (H, T, D)
    returns: dx (T, H D)
    """
    heads, length, dim = dout.shape
    return np.transpose(dout, (1, 0, 2)).reshape(length, heads * dim)


def _forward(x: np.ndarray, heads: int) -> tuple[np.ndarray, dict[str, Any]]:
    return np.transpose(x.reshape(len(x), heads, -1), (1, 0, 2)).copy(), {}


def _draw(rng: np.random.Generator, regime: int, T: int, H: int, D: int) -> dict[str, Any]:
    return {"x": rng.standard_normal((T, H * D)), "heads": H}


EXERCISE = Exercise(
    split_heads_bwd,
    "backward",
    "THD",
    _draw,
    ("x",),
    forward=_forward,
    hints=(
        ("Undo the steps of the forward in the opposite order: it was reshaped first, then transposed."),
        "First move the position axis to the front, (T, H, D); then reshape.",
        "return np.transpose(dout, (1, 0, 2)).reshape(T, H * D) with the sizes of dout.shape.",
    ),
    mistakes=(
        Mistake(
            "no-transpose",
            ("it is reshaped without a transpose: the shape is right, but features of different tokens are mixed."),
            {"np.transpose(dout, (1, 0, 2))": "dout"},
        ),
        Mistake(
            "heads-last",
            ("heads and features are swapped within a token: the features of a head stand next to each other."),
            {"(1, 0, 2)": "(1, 2, 0)"},
        ),
        Mistake(
            "features-first",
            "the features are moved to the front: the axes must be (T, H, D) before the reshape.",
            {"(1, 0, 2)": "(2, 0, 1)"},
        ),
        Mistake(
            "head-mean",
            "the heads are averaged: each head has its own features.",
            {"np.transpose(dout, (1, 0, 2)).reshape(length, heads * dim)": ("np.tile(np.mean(dout, axis=0), heads)")},
        ),
        Mistake(
            "one-head",
            "each head gets the gradient of the first.",
            {"np.transpose(dout, (1, 0, 2)).reshape(length, heads * dim)": "np.tile(dout[0], heads)"},
        ),
    ),
)

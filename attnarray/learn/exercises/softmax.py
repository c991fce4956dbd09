"""Softmax, without overflow.

Attention has to turn scores of any size into weights that are positive and sum to 1. Softmax does it, but
written as it is defined it overflows at a score of 710.

    p_ij = exp(x_ij) / sum_m exp(x_im)        for each row i

Softmax does not change when one number is added to all scores of a row. Use that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax of each row.

    x: scores (..., M), as large as 1000
    returns: weights (..., M); each row, along the last axis, sums to 1
    """
    weights = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def _draw(rng: np.random.Generator, regime: int, N: int, M: int) -> dict[str, Any]:
    far = (0.0, 1000.0, -1000.0)[regime]
    return {"x": rng.standard_normal((N, M)) + far * np.arange(1, N + 1)[:, None]}


EXERCISE = Exercise(
    softmax,
    "forward",
    "NM",
    _draw,
    ("p",),
    hints=(
        (
            "exp(1000) is infinite, and infinity divided by infinity is NaN. Which number could you "
            "subtract from a row first?"
        ),
        (
            "Subtract the largest score of each row: then the largest exponent is 0. Keep the axis "
            "of the row for broadcasting (keepdims=True)."
        ),
        ("weights = np.exp(x - np.max(x, axis=-1, keepdims=True)), then divide each row by its sum."),
    ),
    mistakes=(
        Mistake(
            "no-shift",
            ("the largest score of the row is not subtracted: exp overflows, or all weights are 0, for large scores."),
            {" - np.max(x, axis=-1, keepdims=True)": ""},
        ),
        Mistake(
            "shift-by-all",
            (
                "the largest score of the whole array is subtracted instead of that of the row: rows far "
                "below it become 0 / 0."
            ),
            {"np.max(x, axis=-1, keepdims=True)": "np.max(x)"},
        ),
        Mistake(
            "wrong-axis",
            "the sum goes over the wrong axis: columns sum to 1 instead of rows.",
            {"np.max(x, axis=-1": "np.max(x, axis=0", "np.sum(weights, axis=-1": "np.sum(weights, axis=0"},
        ),
        Mistake(
            "sum-of-all",
            "the sum is that of the whole array instead of each row.",
            {"weights, axis=-1, keepdims=True": "weights"},
        ),
        Mistake(
            "no-division",
            "the weights are not divided by their sum.",
            {" / np.sum(weights, axis=-1, keepdims=True)": ""},
        ),
        Mistake(
            "mean-for-sum",
            "the weights are divided by their mean instead of their sum: a row sums to M.",
            {"np.sum(weights": "np.mean(weights"},
        ),
        Mistake(
            "no-keepdims",
            "maximum and sum have lost their axis: without keepdims=True they are broadcast along the wrong one.",
            {"x, axis=-1, keepdims=True": "x, axis=-1", "weights, axis=-1, keepdims=True": "weights, axis=-1"},
        ),
    ),
)

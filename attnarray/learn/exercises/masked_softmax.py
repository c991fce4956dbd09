"""Softmax with a mask.

A masked key must get the weight 0, and the weights of the others must still sum to 1. A row whose keys are all
masked, such as padding, has no such weights: it becomes 0 / 0, and one NaN is enough to destroy a whole
training.

    p_ij = exp(x_ij) / sum over allowed m of exp(x_im)        where mask_ij is True
    p_ij = 0                                                 where it is False, and in rows without any True
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def masked_softmax(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the softmax of each row over the allowed keys.

    x: scores (T, S)
    mask: booleans (T, S), True where a query may attend to a key
    returns: weights (T, S); rows without any allowed key are 0
    """
    scores = np.where(mask, x, -np.inf)
    largest = np.max(scores, axis=-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)  # -inf in rows without any key
    weights = np.exp(scores - largest)
    total = np.sum(weights, axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)


def _draw(rng: np.random.Generator, regime: int, T: int, S: int) -> dict[str, Any]:
    mask = rng.random((T, S)) < 0.6
    mask[0, 0], mask[0, 1] = True, False
    if regime == 1:
        mask[-1] = False
    if regime == 2:
        mask[1] = True
    x = rng.standard_normal((T, S))
    if regime == 2:
        x += np.where(mask, 800, 2600)  # a large score behind the mask must not matter
    return {"x": x, "mask": mask}


EXERCISE = Exercise(
    masked_softmax,
    "forward",
    "TS",
    _draw,
    ("p",),
    hints=(
        (
            "exp(-inf) is 0: give masked scores the value -inf before everything else. Then look at "
            "the rows that are all -inf."
        ),
        (
            "In such a row the largest score is -inf, and -inf minus -inf is NaN: subtract 0 there. "
            "Its sum is 0: divide by 1 there."
        ),
        (
            "largest = np.where(np.isfinite(largest), largest, 0.0) after np.max, and weights / "
            "np.where(total > 0, total, 1.0) at the end."
        ),
    ),
    mistakes=(
        Mistake(
            "empty-row-nan",
            "a row whose keys are all masked becomes NaN: -inf minus -inf, and 0 / 0.",
            {
                ("    largest = np.where(np.isfinite(largest), largest, 0.0)  # -inf in rows without any key\n"): "",
                "np.where(total > 0, total, 1.0)": "total",
            },
        ),
        Mistake(
            "empty-row-uniform",
            (
                "a large negative number stands for -inf: a row whose keys are all masked gets equal "
                "weights instead of 0."
            ),
            {"-np.inf": "-1e9"},
        ),
        Mistake(
            "zero-for-inf",
            ("masked scores are set to 0: exp(0) is 1, and such keys get weight. The score must be -inf."),
            {"-np.inf": "0.0"},
        ),
        Mistake(
            "not-renormalized",
            "the mask is applied after softmax: the weights that are left no longer sum to 1.",
            {"np.where(mask, x, -np.inf)": "x", "weights / np": "mask * weights / np"},
        ),
        Mistake("mask-forgotten", "the mask is not applied.", {"np.where(mask, x, -np.inf)": "x"}),
        Mistake(
            "inverted",
            "the mask is inverted: True means that the query may attend to the key.",
            {"mask, x, -np.inf": "mask, -np.inf, x"},
        ),
        Mistake(
            "overflow",
            "the largest score of the row is not subtracted: exp overflows for scores of 800.",
            {"scores - largest": "scores"},
        ),
        Mistake(
            "wrong-axis",
            "the sum goes over the queries instead of the keys.",
            {"np.max(scores, axis=-1": "np.max(scores, axis=0", "np.sum(weights, axis=-1": "np.sum(weights, axis=0"},
        ),
        Mistake(
            "max-of-masked",
            "the largest score that is subtracted may be a masked one: far above the others, it makes all weights 0.",
            {"np.max(scores, axis=-1": "np.max(x, axis=-1"},
        ),
    ),
)

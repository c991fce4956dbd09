"""Merging two parts.

Two machines attend to half of the keys each, and neither saw the other half. From the outputs and one number a
row, the log-sum-exp, the output of the whole follows exactly.

    lse = log(exp(lse1) + exp(lse2))
    out = exp(lse1 - lse) out1 + exp(lse2 - lse) out2
    A part without any key has lse = -inf and out = 0.

The lse may be as large as 1000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def merge_parts(
    out1: np.ndarray, lse1: np.ndarray, out2: np.ndarray, lse2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the output and the log-sum-exp over the keys of both parts.

    out1, out2: outputs of the parts (T, E)
    lse1, lse2: their log-sum-exps (T,), not both -inf
    returns: out (T, E), lse (T,)
    """
    largest = np.maximum(lse1, lse2)
    weight1, weight2 = np.exp(lse1 - largest), np.exp(lse2 - largest)
    total = weight1 + weight2
    out = (weight1[:, None] * out1 + weight2[:, None] * out2) / total[:, None]
    return out, largest + np.log(total)


def _draw(rng: np.random.Generator, regime: int, T: int, E: int) -> dict[str, Any]:
    lse1, lse2 = 2 * rng.standard_normal((2, T)) + 1000 * (regime == 1)
    out1, out2 = rng.standard_normal((2, T, E))
    if regime == 2:
        lse2[0], out2[0] = -np.inf, 0.0
    return {"out1": out1, "lse1": lse1, "out2": out2, "lse2": lse2}


EXERCISE = Exercise(
    merge_parts,
    "forward",
    "TE",
    _draw,
    ("out", "lse"),
    hints=(
        ("It is a softmax of two scores, lse1 and lse2, for each row. You know how to make that safe."),
        (
            "Subtract the larger of both before exp, and add it to the logarithm at the end. Weights "
            "(T,) need an axis for (T, E)."
        ),
        (
            "largest = np.maximum(lse1, lse2); w1, w2 = np.exp(lse1 - largest), np.exp(lse2 - "
            "largest); divide by w1 + w2; lse = largest + np.log(w1 + w2)."
        ),
    ),
    mistakes=(
        Mistake(
            "overflow",
            "the larger lse is not subtracted before exp, which overflows.",
            {
                "np.exp(lse1 - largest), np.exp(lse2 - largest)": "np.exp(lse1), np.exp(lse2)",
                "largest + np.log": "np.log",
            },
        ),
        Mistake(
            "largest-not-added",
            "the number that was subtracted is not added to the lse again.",
            {"largest + np.log": "np.log"},
        ),
        Mistake(
            "mean",
            "the outputs are averaged: each must be weighted by exp(lse).",
            {"(weight1[:, None] * out1 + weight2[:, None] * out2) / total[:, None]": "(out1 + out2) / 2"},
        ),
        Mistake(
            "no-division", "the weighted outputs are not divided by the sum of the weights.", {" / total[:, None]": ""}
        ),
        Mistake(
            "weights-swapped",
            "each output is multiplied by the weight of the other.",
            {
                "weight1[:, None] * out1 + weight2[:, None] * out2": (
                    "weight2[:, None] * out1 + weight1[:, None] * out2"
                )
            },
        ),
        Mistake(
            "lse-added",
            "the lse is the sum of both: exponentials are added, not logarithms.",
            {"largest + np.log(total)": "lse1 + lse2"},
        ),
        Mistake(
            "lse-maximum",
            "the lse is the larger of both: the logarithm of the sum of the weights is missing.",
            {"largest + np.log(total)": "largest"},
        ),
        Mistake(
            "weights-are-lse",
            "the lse itself is taken for the weight: it is exp(lse).",
            {
                "(weight1[:, None] * out1 + weight2[:, None] * out2) / total[:, None]": (
                    "(lse1[:, None] * out1 + lse2[:, None] * out2) / (lse1 + lse2)[:, None]"
                )
            },
        ),
    ),
)

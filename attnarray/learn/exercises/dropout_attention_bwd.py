"""Dropout on the weights.

In training some weights are set to 0 by chance, and the others grow, so that the sum stays the same on average.
The backward must drop the same weights and use the same factor, in both gradients.

    out = (p * m) v,        m = keep / (1 - rate)
    dv = (p * m)^T dout
    dp = (dout v^T) * m
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def dropout_attention_bwd(
    dout: np.ndarray, p: np.ndarray, v: np.ndarray, keep: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of weights and values.

    dout: gradient of the output (T, E)
    p: weights before dropout (T, S)
    v: values (S, E)
    keep: booleans (T, S), False where a weight is dropped
    rate: the probability that a weight is dropped
    returns: dp (T, S), dv (S, E)
    """
    dropped = p * keep / (1 - rate)
    dv = dropped.T @ dout
    dp = dout @ v.T * keep / (1 - rate)
    return dp, dv


def _forward(p: np.ndarray, v: np.ndarray, keep: np.ndarray, rate: float) -> tuple[np.ndarray, dict[str, Any]]:
    return (p * keep / (1 - rate)) @ v, {"p": p, "v": v, "keep": keep, "rate": rate}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, E: int) -> dict[str, Any]:
    p = rng.random((T, S))
    keep = rng.random((T, S)) < 0.6
    keep[0, 0], keep[1, 1], keep[0, 1] = True, True, False
    p /= p.sum(axis=-1, keepdims=True)
    return {"p": p, "v": rng.standard_normal((S, E)), "keep": keep, "rate": (0.4, 0.1, 0.25)[regime]}


EXERCISE = Exercise(
    dropout_attention_bwd,
    "backward",
    "TSE",
    _draw,
    ("p", "v"),
    forward=_forward,
    hints=(
        ("The values are multiplied by the weights after dropout, the gradient of which goes back through dropout."),
        "m = keep / (1 - rate) appears once in each gradient.",
        "m = keep / (1 - rate); dv = (p * m).T @ dout; dp = (dout @ v.T) * m.",
    ),
    mistakes=(
        Mistake(
            "no-factor-dv", "the dropout factor 1 / (1 - rate) is missing in dv.", {"p * keep / (1 - rate)": "p * keep"}
        ),
        Mistake(
            "no-factor-dp",
            "the dropout factor 1 / (1 - rate) is missing in dp.",
            {"v.T * keep / (1 - rate)": "v.T * keep"},
        ),
        Mistake(
            "no-dropout-dv",
            "dropout is forgotten in dv: dropped weights give no gradient to their values.",
            {"p * keep / (1 - rate)": "p"},
        ),
        Mistake(
            "no-dropout-dp",
            "dropout is forgotten in dp: a dropped weight has the gradient 0.",
            {"v.T * keep / (1 - rate)": "v.T"},
        ),
        Mistake(
            "factor-only-dv",
            "the weights are not dropped in dv: only the factor is applied.",
            {"p * keep / (1 - rate)": "p / (1 - rate)"},
        ),
        Mistake(
            "factor-only-dp",
            "nothing is dropped in dp: only the factor is applied.",
            {"v.T * keep / (1 - rate)": "v.T / (1 - rate)"},
        ),
        Mistake(
            "factor-of-rate",
            ("the factor is 1 / (1 - rate): what is kept grows by the share that is kept, not by the rate."),
            {"p * keep / (1 - rate)": "p * keep / rate", "v.T * keep / (1 - rate)": "v.T * keep / rate"},
        ),
        Mistake(
            "factor-inverted",
            "it is multiplied by 1 - rate instead of divided.",
            {"p * keep / (1 - rate)": "p * keep * (1 - rate)", "v.T * keep / (1 - rate)": "v.T * keep * (1 - rate)"},
        ),
        Mistake(
            "keep-inverted",
            "`keep` is inverted: True means that the weight is kept.",
            {"p * keep": "p * ~keep", "v.T * keep": "v.T * ~keep"},
        ),
        Mistake(
            "p-not-transposed",
            "the weights are not transposed in dv: dv_j sums over the queries.",
            {"dropped.T @ dout": "dropped @ dout"},
        ),
    ),
)

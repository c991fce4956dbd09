"""The gradient of a weighted sum.

The last step of attention is a matrix product, and its backward is two. A value that many queries look at gets
gradients from all of them.

    out_i = sum_j p_ij v_j
    dp_ij = dout_i · v_j
    dv_j = sum_i p_ij dout_i
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def weighted_sum_bwd(dout: np.ndarray, p: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of weights and values.

    dout: gradient of the output (T, E)
    p: weights (T, S)
    v: values (S, E)
    returns: dp (T, S), dv (S, E)
    """
    dp = dout @ v.T
    dv = p.T @ dout
    return dp, dv


def _forward(p: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return p @ v, {"p": p, "v": v}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, E: int) -> dict[str, Any]:
    p = rng.random((T, S))
    return {"p": p / p.sum(axis=-1, keepdims=True), "v": rng.standard_normal((S, E))}


EXERCISE = Exercise(
    weighted_sum_bwd,
    "backward",
    "TSE",
    _draw,
    ("p", "v"),
    forward=_forward,
    hints=(
        "Write both sums as matrix products: the index that is summed must stand in the middle.",
        "dp sums over the features of dout and v; dv sums over the queries of p and dout.",
        "dp = dout @ v.T and dv = p.T @ dout.",
    ),
    mistakes=(
        Mistake("v-not-transposed", "the values are not transposed in dp: it is dout v^T.", {"dout @ v.T": "dout @ v"}),
        Mistake(
            "p-not-transposed",
            "the weights are not transposed in dv: dv_j sums over the queries, p^T dout.",
            {"p.T @ dout": "p @ dout"},
        ),
        Mistake(
            "dv-unweighted",
            "dv lacks the weights: each value gets dout_i times its weight p_ij.",
            {"p.T @ dout": "np.ones_like(p).T @ dout"},
        ),
        Mistake(
            "dv-mean", "dv is the mean over the queries instead of the sum.", {"p.T @ dout": "p.T @ dout / len(p)"}
        ),
        Mistake(
            "dp-weighted",
            "dp has a factor p: that comes with the backward of softmax, not here.",
            {"dout @ v.T": "p * (dout @ v.T)"},
        ),
    ),
)

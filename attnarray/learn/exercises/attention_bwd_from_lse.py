"""The weights from one number a row.

FlashAttention does not keep the weights for the backward, as they take T S numbers; of each row it keeps the
logarithm of its sum, called lse. From it any weight can be computed again, and delta comes from the output, as
sum_j dp_ij p_ij = dout_i · out_i.

    lse_i = log(sum_j exp(scores_ij)),        scores = scale q k^T
    p_ij = exp(scores_ij - lse_i)
    delta_i = sum_e dout_ie out_ie
    dv = p^T dout,   dscores = p * (dout v^T - delta),   dq = scale dscores k,   dk = scale dscores^T q
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def attention_bwd_from_lse(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, lse: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values.

    dout: gradient of the output (T, E)
    q, k, v: (T, D), (S, D), (S, E)
    out: output of the forward (T, E)
    lse: log-sum-exp of each row of the scores (T,)
    scale: a number
    returns: dq (T, D), dk (S, D), dv (S, E)
    """
    p = np.exp(scale * q @ k.T - lse[:, None])
    delta = np.sum(dout * out, axis=-1, keepdims=True)
    dv = p.T @ dout
    dscores = p * (dout @ v.T - delta)
    dq = scale * dscores @ k
    dk = scale * dscores.T @ q
    return dq, dk, dv


def _forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, dict[str, Any]]:
    scores = scale * q @ k.T
    largest = np.max(scores, axis=-1)
    lse = largest + np.log(np.sum(np.exp(scores - largest[:, None]), axis=-1))
    out = np.exp(scores - lse[:, None]) @ v
    return out, {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q, "k": k, "v": rng.standard_normal((S, E)), "scale": (1 / float(np.sqrt(D)), 0.4, 1.5)[regime]}


EXERCISE = Exercise(
    attention_bwd_from_lse,
    "backward",
    "TSDE",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    hints=(
        ("No softmax is needed: subtracting the lse of its row from a score is the division by the sum."),
        ("lse has one number for each query: lse[:, None] broadcasts it along the keys. delta needs neither p nor dp."),
        (
            "p = np.exp(scale * q @ k.T - lse[:, None]); delta = np.sum(dout * out, axis=-1, "
            "keepdims=True); the rest is as in attention_bwd."
        ),
    ),
    mistakes=(
        Mistake(
            "no-scale-in-p",
            "the scale is missing where the weights are computed again.",
            {"np.exp(scale * q": "np.exp(q"},
        ),
        Mistake(
            "lse-along-queries",
            "lse is subtracted along the wrong axis: it has one number for each query, lse[:, None].",
            {"lse[:, None]": "lse[None, :]"},
        ),
        Mistake("no-lse", "lse is not subtracted: the weights do not sum to 1.", {" - lse[:, None]": ""}),
        Mistake(
            "delta-unweighted",
            "delta is the sum of dout alone: it is the sum of dout times out.",
            {"dout * out": "dout"},
        ),
        Mistake(
            "delta-of-all",
            "delta is summed over the whole array: it is one number for each query.",
            {", axis=-1, keepdims=True": ""},
        ),
        Mistake("no-delta", "delta is missing in the backward of softmax.", {" - delta": ""}),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk = scale * ": "dk = "}),
        Mistake(
            "dscores-not-transposed",
            "dscores is not transposed in dk: dk_j sums over the queries.",
            {"dscores.T @ q": "dscores @ q"},
        ),
        Mistake(
            "no-keepdims",
            "delta has lost its axis: without keepdims=True it is added along the wrong one.",
            {"axis=-1, keepdims=True": "axis=-1"},
        ),
    ),
)

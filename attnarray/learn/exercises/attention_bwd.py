"""The gradient of attention.

Now the three backwards come together: weighted sum, softmax, scores, in the opposite order of the forward. Five
lines train every transformer there is.

    scores = scale q k^T,   p = softmax(scores),   out = p v,        scale = 1 / sqrt(D)
    dv = p^T dout
    dp = dout v^T
    dscores = p * (dp - delta),    delta_i = sum_j dp_ij p_ij
    dq = scale dscores k
    dk = scale dscores^T q
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.softmax import softmax


def attention_bwd(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values.

    dout: gradient of the output (T, E)
    q: queries (T, D)
    k: keys (S, D)
    v: values (S, E)
    returns: dq (T, D), dk (S, D), dv (S, E)
    """
    scale = 1 / np.sqrt(q.shape[-1])
    p = softmax(scale * q @ k.T)  # (T, S)
    dv = p.T @ dout
    dp = dout @ v.T
    delta = np.sum(dp * p, axis=-1, keepdims=True)
    dscores = p * (dp - delta)
    dq = scale * dscores @ k
    dk = scale * dscores.T @ q
    return dq, dk, dv


def _forward(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v, {"q": q, "k": k, "v": v}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q * (1 + regime), "k": k, "v": rng.standard_normal((S, E))}


EXERCISE = Exercise(
    attention_bwd,
    "backward",
    "TSDE",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    given=(softmax,),
    hints=(
        ("First compute the weights p again, as in the forward. Then go through the formula from top to bottom."),
        (
            "You have written each step: weighted_sum_bwd gives dp and dv, softmax_bwd turns dp into "
            "dscores, scores_bwd gives dq and dk."
        ),
        (
            "dv = p.T @ dout; dp = dout @ v.T; dscores = p * (dp - np.sum(dp * p, axis=-1, "
            "keepdims=True)); dq = scale * dscores @ k; dk = scale * dscores.T @ q."
        ),
    ),
    mistakes=(
        Mistake(
            "no-delta",
            "delta is missing in the backward of softmax: dscores = p * (dp - delta).",
            {"(dp - delta)": "dp"},
        ),
        Mistake(
            "delta-unweighted",
            "delta is the sum of dp alone: it must be weighted, sum_j dp_ij p_ij.",
            {"np.sum(dp * p,": "np.sum(dp,"},
        ),
        Mistake(
            "delta-wrong-axis",
            "delta is summed over the queries: it is one number for each query, a sum over the keys.",
            {"axis=-1, keepdims": "axis=-2, keepdims"},
        ),
        Mistake(
            "no-softmax",
            "the backward of softmax is missing: dp is taken for the gradient of the scores.",
            {"p * (dp - delta)": "dp"},
        ),
        Mistake("no-weight", "the factor p of the backward of softmax is missing.", {"p * (dp - delta)": "dp - delta"}),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk = scale * ": "dk = "}),
        Mistake(
            "k-transposed",
            "the keys are transposed in dq: the forward has k^T, the backward k.",
            {"dscores @ k": "dscores @ k.T"},
        ),
        Mistake(
            "dscores-not-transposed",
            "dscores is not transposed in dk: dk_j sums over the queries.",
            {"dscores.T @ q": "dscores @ q"},
        ),
        Mistake(
            "p-not-transposed",
            "the weights are not transposed in dv: dv_j sums over the queries.",
            {"p.T @ dout": "p @ dout"},
        ),
        Mistake(
            "scale-in-softmax",
            "the scale is missing where the weights are computed again: p is that of other scores.",
            {"softmax(scale * q @ k.T)": "softmax(q @ k.T)"},
        ),
        Mistake(
            "dv-from-scores",
            "dv is computed from dscores: it needs the weights, p^T dout.",
            {
                "p.T @ dout": "dscores.T @ dout",
                "    dscores = p * (dp - delta)\n": "",
                "    delta = np.sum(dp * p, axis=-1, keepdims=True)\n": "",
                "    dp = dout @ v.T\n": "",
                "    p = softmax(scale * q @ k.T)  # (T, S)\n": (
                    "    p = softmax(scale * q @ k.T)  # (T, S)\n"
                    "    dp = dout @ v.T\n"
                    "    dscores = p * (dp - np.sum(dp * p, axis=-1, keepdims=True))\n"
                ),
            },
        ),
        Mistake(
            "no-keepdims",
            "delta has lost its axis: without keepdims=True it is added along the wrong one.",
            {"axis=-1, keepdims=True": "axis=-1"},
        ),
    ),
)

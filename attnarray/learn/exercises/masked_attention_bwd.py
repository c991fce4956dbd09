"""The gradient of masked attention.

The mask was part of the forward, so it is part of the weights that the backward computes again. After that
nothing else is needed: a weight of 0 makes all gradients through it 0, and a fully masked row gives none to
anybody.

    p = masked_softmax(scale q k^T, mask),        scale = 1 / sqrt(D)
    dv = p^T dout,   dscores = p * (dout v^T - delta),   dq = scale dscores k,   dk = scale dscores^T q
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.masked_softmax import masked_softmax


def masked_attention_bwd(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values.

    dout: gradient of the output (T, E)
    q, k, v: (T, D), (S, D), (S, E)
    mask: booleans (T, S), True where a query may attend to a key
    returns: dq (T, D), dk (S, D), dv (S, E)
    """
    scale = 1 / np.sqrt(q.shape[-1])
    p = masked_softmax(scale * q @ k.T, mask)
    dv = p.T @ dout
    dp = dout @ v.T
    dscores = p * (dp - np.sum(dp * p, axis=-1, keepdims=True))
    dq = scale * dscores @ k
    dk = scale * dscores.T @ q
    return dq, dk, dv


def _forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    out = masked_softmax(q @ k.T / np.sqrt(q.shape[-1]), mask) @ v
    return out, {"q": q, "k": k, "v": v, "mask": mask}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    mask = np.arange(S)[None, :] <= np.arange(T)[:, None] + (S - T if regime == 2 else 0)
    mask[:, 0] = True
    if regime == 1:
        mask[-1] = False
    return {"q": q, "k": k, "v": rng.standard_normal((S, E)), "mask": mask}


EXERCISE = Exercise(
    masked_attention_bwd,
    "backward",
    "TSDE",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    given=(masked_softmax,),
    hints=(
        "Take your attention_bwd. Where does it compute the weights?",
        (
            "masked_softmax is given, and treats fully masked rows right: their weights are 0. Must "
            "dscores be masked once more?"
        ),
        "Only one line differs from attention_bwd: p = masked_softmax(scale * q @ k.T, mask).",
    ),
    mistakes=(
        Mistake(
            "mask-forgotten",
            "the mask is forgotten where the weights are computed again.",
            {"masked_softmax(scale * q @ k.T, mask)": ("masked_softmax(scale * q @ k.T, np.ones_like(mask))")},
        ),
        Mistake(
            "mask-after-softmax",
            "the mask is applied after softmax: the weights that are left must sum to 1 again.",
            {"masked_softmax(scale * q @ k.T, mask)": ("mask * masked_softmax(scale * q @ k.T, np.ones_like(mask))")},
        ),
        Mistake(
            "inverted",
            "the mask is inverted: True means that the query may attend to the key.",
            {", mask)": ", ~mask)"},
        ),
        Mistake(
            "mask-as-zero",
            "masked scores are set to 0 instead of -inf.",
            {"masked_softmax(scale * q @ k.T, mask)": ("masked_softmax(mask * (scale * q @ k.T), np.ones_like(mask))")},
        ),
        Mistake(
            "mask-only-in-dscores",
            "the mask is applied to dscores alone: the weights must be those of the masked forward.",
            {
                "masked_softmax(scale * q @ k.T, mask)": ("masked_softmax(scale * q @ k.T, np.ones_like(mask))"),
                "dscores = p": "dscores = mask * p",
            },
        ),
        Mistake(
            "no-delta",
            "delta is missing in the backward of softmax.",
            {" - np.sum(dp * p, axis=-1, keepdims=True)": ""},
        ),
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

"""FlashAttention, backward.

The backward goes over the keys in blocks as well: a block of keys gets its whole gradient at once, while that
of the queries is summed over all blocks. With lse and delta a block needs nothing of the others.

    delta = sum of dout * out over the features        once, before the loop
    for each block of keys j:
        p = exp(scale q k_j^T - lse)
        dv_j = p^T dout
        ds = p * (dout v_j^T - delta)
        dk_j = scale ds^T q
        dq += scale ds k_j
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def blockwise_attention_bwd(
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    scale: float,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values, `size` keys at a time.

    dout, out: gradient of the output, and the output (T, E)
    q, k, v: (T, D), (S, D), (S, E)
    lse: log-sum-exp of each row of the scores (T,)
    scale: a number
    size: the keys of a block; the last block may have less
    returns: dq (T, D), dk (S, D), dv (S, E)
    """
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    delta = np.sum(dout * out, axis=-1, keepdims=True)
    for first in range(0, len(k), size):
        block = slice(first, first + size)
        p = np.exp(scale * q @ k[block].T - lse[:, None])
        dv[block] = p.T @ dout
        ds = p * (dout @ v[block].T - delta)
        dk[block] = scale * ds.T @ q
        dq += scale * ds @ k[block]
    return dq, dk, dv


def _forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    scores = scale * q @ k.T
    largest = np.max(scores, axis=-1)
    lse = largest + np.log(np.sum(np.exp(scores - largest[:, None]), axis=-1))
    out = np.exp(scores - lse[:, None]) @ v
    return out, {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale, "size": size}


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    S, size = ((2 * S + 1, S), (3 * S, S), (S + 1, S))[regime]
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q, "k": k, "v": rng.standard_normal((S, E)), "scale": (0.5, 0.8, 1.5)[regime], "size": size}


EXERCISE = Exercise(
    blockwise_attention_bwd,
    "backward",
    "TSDE",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    hints=(
        (
            "Take attention_bwd_from_lse, put a loop around it, and use k[block] and v[block] with "
            "block = slice(first, first + size)."
        ),
        (
            "dk and dv are assigned block by block; dq starts at 0 and grows. delta has to do with "
            "all keys: it stands before the loop."
        ),
        (
            "for first in range(0, len(k), size): block = slice(first, first + size); p from "
            "k[block]; dv[block] = p.T @ dout; ds; dk[block] = scale * ds.T @ q; dq += scale * ds @ "
            "k[block]."
        ),
    ),
    mistakes=(
        Mistake(
            "dq-last-block",
            "dq is that of the last block of keys: it must be summed over all.",
            {"dq += scale": "dq = scale"},
        ),
        Mistake(
            "delta-of-block",
            "delta is computed from one block: it sums over all keys, which dout * out does.",
            {
                "    delta = np.sum(dout * out, axis=-1, keepdims=True)\n": "",
                "        ds = p": (
                    "        delta = np.sum(p * (dout @ v[block].T), axis=-1, keepdims=True)\n        ds = p"
                ),
            },
        ),
        Mistake(
            "softmax-of-block",
            "the weights are normalized within the block: lse is that of all keys.",
            {"- lse[:, None])": "- lse[:, None])\n        p = p / np.sum(p, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "last-block-lost",
            "the last block is left out when it is not full.",
            {"range(0, len(k), size)": "range(0, len(k) - size + 1, size)"},
        ),
        Mistake("no-delta", "delta is missing in the backward of softmax.", {" - delta": ""}),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq += scale * ": "dq += "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk[block] = scale * ": "dk[block] = "}),
        Mistake(
            "no-scale-in-p",
            "the scale is missing where the weights are computed again.",
            {"np.exp(scale * q": "np.exp(q"},
        ),
        Mistake("dq-not-cleared", "dq starts with the queries instead of 0.", {"np.zeros_like(q)": "q.copy()"}),
        Mistake(
            "first-block-only",
            "the loop ends after its first block.",
            {"        dq += scale * ds @ k[block]": ("        dq += scale * ds @ k[block]\n        break")},
        ),
    ),
)

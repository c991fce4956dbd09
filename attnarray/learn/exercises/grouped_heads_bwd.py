"""Heads that share keys.

A cache of keys and values for every head is what fills the memory when text is generated; so several query
heads share one. Sharing is broadcasting, and you know what its gradient does.

    query head h uses key head h // G,        G = number of query heads / number of key heads
    dk of a key head = sum of the gradients of its G query heads; dv alike

`.mT` swaps the last two axes; np.repeat(k, G, axis=0) repeats each key head G times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.softmax import softmax


def grouped_heads_bwd(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of queries, keys and values.

    dout: gradient of the output (H, T, D)
    q: (H, T, D)
    k, v: (K, S, D), where H is a multiple of K
    returns: dq (H, T, D), dk (K, S, D), dv (K, S, D)
    """
    heads, groups = k.shape[0], q.shape[0] // k.shape[0]
    scale = 1 / np.sqrt(q.shape[-1])
    keys, values = np.repeat(k, groups, axis=0), np.repeat(v, groups, axis=0)  # (H, S, D)
    p = softmax(scale * q @ keys.mT)
    dp = dout @ values.mT
    dscores = p * (dp - np.sum(dp * p, axis=-1, keepdims=True))
    dq = scale * dscores @ keys
    dkeys = scale * dscores.mT @ q  # (H, S, D)
    dvalues = p.mT @ dout
    dk = np.sum(dkeys.reshape(heads, groups, *k.shape[1:]), axis=1)
    dv = np.sum(dvalues.reshape(heads, groups, *v.shape[1:]), axis=1)
    return dq, dk, dv


def _forward(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    keys, values = (np.repeat(x, q.shape[0] // k.shape[0], axis=0) for x in (k, v))
    return softmax(q @ keys.mT / np.sqrt(q.shape[-1])) @ values, {"q": q, "k": k, "v": v}


def _draw(rng: np.random.Generator, regime: int, G: int, K: int, T: int, S: int, D: int) -> dict[str, Any]:
    q = rng.standard_normal((G * K, T, D))
    return {"q": q, "k": rng.standard_normal((K, S, D)), "v": rng.standard_normal((K, S, D))}


EXERCISE = Exercise(
    grouped_heads_bwd,
    "backward",
    "GKTSD",
    _draw,
    ("q", "k", "v"),
    forward=_forward,
    given=(softmax,),
    hints=(
        (
            "Repeat the keys and values for all query heads, and write attention_bwd for arrays with "
            "heads in front: `.mT` instead of `.T`."
        ),
        (
            "You get a gradient of keys for each of the H query heads. Reshape (H, S, D) to (K, G, "
            "S, D): which axis is to be summed?"
        ),
        "dk = dkeys.reshape(K, G, S, D).sum(axis=1), and dv alike from dvalues.",
    ),
    mistakes=(
        Mistake(
            "no-head-sum",
            ("keys and values get the gradient of one query head: it must be summed over the heads that share them."),
            {
                "dk = np.sum(dkeys.reshape(heads, groups, *k.shape[1:]), axis=1)": "dk = dkeys[::groups]",
                "dv = np.sum(dvalues.reshape(heads, groups, *v.shape[1:]), axis=1)": ("dv = dvalues[::groups]"),
            },
        ),
        Mistake(
            "not-shared",
            "dk and dv have a head for each query head: sum over the heads that share one.",
            {
                "dk = np.sum(dkeys.reshape(heads, groups, *k.shape[1:]), axis=1)": "dk = dkeys",
                "dv = np.sum(dvalues.reshape(heads, groups, *v.shape[1:]), axis=1)": "dv = dvalues",
            },
        ),
        Mistake(
            "head-mean",
            "it is the mean over the heads that share a key head, instead of the sum.",
            {"np.sum(dkeys": "np.mean(dkeys", "np.sum(dvalues": "np.mean(dvalues"},
        ),
        Mistake(
            "interleaved-sum",
            (
                "the wrong heads are summed: query heads of one group stand next to each other, so the "
                "shape is (K, G, S, D)."
            ),
            {
                "dkeys.reshape(heads, groups, *k.shape[1:]), axis=1": (
                    "dkeys.reshape(groups, heads, *k.shape[1:]), axis=0"
                ),
                "dvalues.reshape(heads, groups, *v.shape[1:]), axis=1": (
                    "dvalues.reshape(groups, heads, *v.shape[1:]), axis=0"
                ),
            },
        ),
        Mistake(
            "interleaved-heads",
            (
                "query head h uses key head h % K: it must be h // G. np.repeat repeats each head, "
                "np.tile the whole array."
            ),
            {
                "np.repeat(k, groups, axis=0), np.repeat(v, groups, axis=0)": (
                    "np.tile(k, (groups, 1, 1)), np.tile(v, (groups, 1, 1))"
                )
            },
        ),
        Mistake(
            "interleaved-throughout",
            "query head h uses key head h % K, in the forward and in the sums: it must be h // G.",
            {
                "np.repeat(k, groups, axis=0), np.repeat(v, groups, axis=0)": (
                    "np.tile(k, (groups, 1, 1)), np.tile(v, (groups, 1, 1))"
                ),
                "dkeys.reshape(heads, groups, *k.shape[1:]), axis=1": (
                    "dkeys.reshape(groups, heads, *k.shape[1:]), axis=0"
                ),
                "dvalues.reshape(heads, groups, *v.shape[1:]), axis=1": (
                    "dvalues.reshape(groups, heads, *v.shape[1:]), axis=0"
                ),
            },
        ),
        Mistake(
            "sum-of-all-heads",
            "all query heads are summed: only those of one group share a key head.",
            {
                "dk = np.sum(dkeys.reshape(heads, groups, *k.shape[1:]), axis=1)": (
                    "dk = np.sum(dkeys, axis=0) + np.zeros_like(k)"
                ),
                "dv = np.sum(dvalues.reshape(heads, groups, *v.shape[1:]), axis=1)": (
                    "dv = np.sum(dvalues, axis=0) + np.zeros_like(v)"
                ),
            },
        ),
        Mistake(
            "no-delta",
            "delta is missing in the backward of softmax.",
            {" - np.sum(dp * p, axis=-1, keepdims=True)": ""},
        ),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dkeys = scale * ": "dkeys = "}),
        Mistake(
            "last-head",
            "keys and values get the gradient of the last head that shares them: in a loop, add to it by +=.",
            {
                "np.sum(dkeys.reshape(heads, groups, *k.shape[1:]), axis=1)": "dkeys[groups - 1 :: groups]",
                "np.sum(dvalues.reshape(heads, groups, *v.shape[1:]), axis=1)": "dvalues[groups - 1 :: groups]",
            },
        ),
    ),
)

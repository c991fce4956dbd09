"""Causal multi-head self-attention.

Now a whole layer: one product makes queries, keys and values of all heads, each head attends, and one product
mixes the heads. In self-attention x is all three, and the one product of its gradient adds them up.

    q, k, v = split(x Wqkv into three, each into heads)        (H, T, D) each
    out = join(attention(q, k, v, causal)) Wout
    djoined = dout Wout^T,   dWout = joined^T dout
    dq, dk, dv as before, for all heads;   dqkv = (dq, dk, dv) joined and side by side
    dx = dqkv Wqkv^T,   dWqkv = x^T dqkv
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.masked_softmax import masked_softmax


def multi_head_bwd(
    dout: np.ndarray, x: np.ndarray, w_qkv: np.ndarray, w_out: np.ndarray, heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x and the two weights.

    dout: gradient of the output (T, E)
    x: (T, E), where E = heads D
    w_qkv: (E, 3 E), side by side those of queries, keys, values
    w_out: (E, E)
    heads: the number of heads
    returns: dx (T, E), dw_qkv (E, 3 E), dw_out (E, E)
    """
    q, k, v = (split_heads(part, heads) for part in np.split(x @ w_qkv, 3, axis=-1))
    scale = 1 / np.sqrt(q.shape[-1])
    p = masked_softmax(scale * q @ k.mT, np.tri(len(x), dtype=bool))
    joined = join_heads(p @ v)
    dhead = split_heads(dout @ w_out.T, heads)
    dv = p.mT @ dhead
    dp = dhead @ v.mT
    dscores = p * (dp - np.sum(dp * p, axis=-1, keepdims=True))
    dq = scale * dscores @ k
    dk = scale * dscores.mT @ q
    dqkv = np.concatenate([join_heads(dq), join_heads(dk), join_heads(dv)], axis=-1)
    return dqkv @ w_qkv.T, x.T @ dqkv, joined.T @ dout


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(T, H D) becomes (H, T, D)."""
    return np.transpose(x.reshape(len(x), heads, -1), (1, 0, 2))


def join_heads(x: np.ndarray) -> np.ndarray:
    """(H, T, D) becomes (T, H D)."""
    return np.transpose(x, (1, 0, 2)).reshape(x.shape[1], -1)


def multi_head(x: np.ndarray, w_qkv: np.ndarray, w_out: np.ndarray, heads: int) -> np.ndarray:
    """Causal multi-head self-attention of x (T, E)."""
    q, k, v = (split_heads(part, heads) for part in np.split(x @ w_qkv, 3, axis=-1))
    p = masked_softmax(q @ k.mT / np.sqrt(q.shape[-1]), np.tri(len(x), dtype=bool))
    return join_heads(p @ v) @ w_out


def _forward(x: np.ndarray, w_qkv: np.ndarray, w_out: np.ndarray, heads: int) -> tuple[np.ndarray, dict[str, Any]]:
    return multi_head(x, w_qkv, w_out, heads), {"x": x, "w_qkv": w_qkv, "w_out": w_out, "heads": heads}


def _draw(rng: np.random.Generator, regime: int, T: int, H: int, D: int) -> dict[str, Any]:
    E = H * D
    shapes = {"x": (T, E), "w_qkv": (E, 3 * E), "w_out": (E, E)}
    arrays = {name: rng.standard_normal(shape) / np.sqrt(E) ** (name != "x") for name, shape in shapes.items()}
    return {**arrays, "heads": H}


EXERCISE = Exercise(
    multi_head_bwd,
    "backward",
    "THD",
    _draw,
    ("x", "w_qkv", "w_out"),
    forward=_forward,
    given=(masked_softmax, split_heads, join_heads),
    hints=(
        (
            "Compute the forward again up to `joined`, with the given functions. Then walk back; "
            "split_heads undoes join_heads."
        ),
        ("After dhead = split_heads(dout @ w_out.T, heads), it is masked_attention_bwd with .mT instead of .T."),
        (
            "dqkv = np.concatenate([join_heads(dq), join_heads(dk), join_heads(dv)], axis=-1); "
            "return dqkv @ w_qkv.T, x.T @ dqkv, joined.T @ dout."
        ),
    ),
    mistakes=(
        Mistake(
            "mask-forgotten",
            "the causal mask is forgotten where the weights are computed again.",
            {"np.tri(len(x), dtype=bool)": "np.ones((len(x), len(x)), bool)"},
        ),
        Mistake(
            "scale-of-model",
            "the scale is 1 / sqrt(E): each head has its own, 1 / sqrt(D).",
            {"np.sqrt(q.shape[-1])": "np.sqrt(x.shape[-1])"},
        ),
        Mistake(
            "no-delta",
            "delta is missing in the backward of softmax.",
            {" - np.sum(dp * p, axis=-1, keepdims=True)": ""},
        ),
        Mistake("no-scale-q", "the scale is missing in dq.", {"dq = scale * ": "dq = "}),
        Mistake("no-scale-k", "the scale is missing in dk.", {"dk = scale * ": "dk = "}),
        Mistake(
            "keys-and-values-swapped",
            "the gradients of keys and values stand in each other's place in dqkv.",
            {"join_heads(dk), join_heads(dv)]": "join_heads(dv), join_heads(dk)]"},
        ),
        Mistake(
            "queries-and-keys-swapped",
            "the gradients of queries and keys stand in each other's place in dqkv.",
            {"[join_heads(dq), join_heads(dk),": "[join_heads(dk), join_heads(dq),"},
        ),
        Mistake(
            "values-only",
            "dx and dw_qkv get the gradient of the values alone.",
            {"[join_heads(dq), join_heads(dk), ": "[0 * join_heads(dq), 0 * join_heads(dk), "},
        ),
        Mistake(
            "keys-forgotten",
            "dx and dw_qkv lack the gradient that comes through the keys.",
            {"join_heads(dk), ": "0 * join_heads(dk), "},
        ),
        Mistake(
            "reshaped-heads",
            "the heads are joined by a reshape without a transpose.",
            {"[join_heads(dq), join_heads(dk), join_heads(dv)]": ("[part.reshape(x.shape) for part in (dq, dk, dv)]")},
        ),
        Mistake(
            "out-not-transposed",
            "Wout is not transposed: the forward multiplies by Wout, the backward by Wout^T.",
            {"dout @ w_out.T": "dout @ w_out"},
        ),
        Mistake(
            "dw-out-from-x",
            "dw_out is computed from x: its input is the joined output of the heads.",
            {"joined.T @ dout": "x.T @ dout"},
        ),
    ),
)

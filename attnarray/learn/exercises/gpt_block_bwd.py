"""A whole GPT block.

This is the block that GPT models stack: attention, then a feed-forward layer, each behind a norm and beside a
residual connection. You have written every part of it; the backward of a whole model is this function in a
loop.

    h = x + multi_head(rms_norm(x, norm1), Wqkv, Wout, heads)
    out = h + gelu(rms_norm(h, norm2) W1) W2

The norms here have eps = 1e-5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.gelu_bwd import gelu_bwd
from attnarray.learn.exercises.masked_softmax import masked_softmax
from attnarray.learn.exercises.multi_head_bwd import join_heads, multi_head, multi_head_bwd, split_heads
from attnarray.learn.exercises.pre_norm_bwd import rms_norm, rms_norm_bwd


def gpt_block_bwd(
    dout: np.ndarray,
    x: np.ndarray,
    norm1: np.ndarray,
    w_qkv: np.ndarray,
    w_out: np.ndarray,
    norm2: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    heads: int,
) -> tuple[np.ndarray, ...]:
    """Return the gradients of x and of all weights.

    dout: gradient of the output (T, E)
    x: (T, E)
    norm1, norm2: weights of the norms (E,)
    w_qkv, w_out: (E, 3 E), (E, E)
    w1, w2: (E, F), (F, E)
    heads: the number of heads
    returns: dx, dnorm1, dw_qkv, dw_out, dnorm2, dw1, dw2
    """
    n1 = rms_norm(x, norm1, 1e-5)
    h = x + multi_head(n1, w_qkv, w_out, heads)
    n2 = rms_norm(h, norm2, 1e-5)
    u = n2 @ w1
    dw2 = gelu(u).T @ dout
    du = gelu_bwd(dout @ w2.T, u)
    dw1 = n2.T @ du
    dh, dnorm2 = rms_norm_bwd(du @ w1.T, h, norm2, 1e-5)
    dh = dout + dh
    dn1, dw_qkv, dw_out = multi_head_bwd(dh, n1, w_qkv, w_out, heads)
    dx, dnorm1 = rms_norm_bwd(dn1, x, norm1, 1e-5)
    dx = dh + dx
    return dx, dnorm1, dw_qkv, dw_out, dnorm2, dw1, dw2


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU, approximated by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _forward(
    x: np.ndarray,
    norm1: np.ndarray,
    w_qkv: np.ndarray,
    w_out: np.ndarray,
    norm2: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    heads: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    h = x + multi_head(rms_norm(x, norm1, 1e-5), w_qkv, w_out, heads)
    out = h + gelu(rms_norm(h, norm2, 1e-5) @ w1) @ w2
    return out, {
        "x": x, "norm1": norm1, "w_qkv": w_qkv, "w_out": w_out, "norm2": norm2, "w1": w1, "w2": w2, "heads": heads
    }  # fmt: skip


def _draw(rng: np.random.Generator, regime: int, T: int, H: int, D: int, F: int) -> dict[str, Any]:
    E = H * D
    shapes = {
        "x": (T, E), "norm1": (E,), "w_qkv": (E, 3 * E), "w_out": (E, E), "norm2": (E,), "w1": (E, F), "w2": (F, E)
    }  # fmt: skip
    arrays = {
        name: rng.standard_normal(shape) / np.sqrt(shape[0]) ** (name[0] == "w") for name, shape in shapes.items()
    }
    return {**arrays, "heads": H}


EXERCISE = Exercise(
    gpt_block_bwd,
    "backward",
    "THDF",
    _draw,
    ("x", "norm1", "w_qkv", "w_out", "norm2", "w1", "w2"),
    forward=_forward,
    given=(
        masked_softmax,
        split_heads,
        join_heads,
        multi_head,
        multi_head_bwd,
        rms_norm,
        rms_norm_bwd,
        gelu,
        gelu_bwd,
    ),
    hints=(
        (
            "Compute n1, h, n2 and u again with the given functions. Then go back: w2, gelu, w1, "
            "norm2, the sum, attention, norm1, the sum."
        ),
        (
            "dh has two terms: dout, through the residual connection, and what rms_norm_bwd returns. "
            "So has dx: dh, and what the first norm returns."
        ),
        (
            "dw2 = gelu(u).T @ dout; du = gelu_bwd(dout @ w2.T, u); dw1 = n2.T @ du; dh, dnorm2 = "
            "rms_norm_bwd(du @ w1.T, h, norm2, 1e-5); dh += dout; then multi_head_bwd(dh, n1, ...), "
            "rms_norm_bwd, and dx += dh."
        ),
    ),
    mistakes=(
        Mistake(
            "second-residual-lost",
            "the residual connection around the feed-forward layer has no gradient: dh lacks dout.",
            {"dh = dout + dh": "dh = dh + 0"},
        ),
        Mistake(
            "first-residual-lost",
            "the residual connection around attention has no gradient: dx lacks dh.",
            {"dx = dh + dx": "dx = dx + 0"},
        ),
        Mistake(
            "residual-from-dout",
            ("dx gets dout around attention: it must be dh, which has the gradient of the feed-forward layer, too."),
            {"dx = dh + dx": "dx = dout + dx"},
        ),
        Mistake(
            "attention-from-dout",
            ("attention gets dout: it must get dh, which has the gradient of the feed-forward layer, too."),
            {"multi_head_bwd(dh,": "multi_head_bwd(dout,"},
        ),
        Mistake(
            "norm-of-x",
            "the second norm is that of h: x is given to its backward.",
            {"du @ w1.T, h, norm2": "du @ w1.T, x, norm2"},
        ),
        Mistake("no-slope", "the slope of GELU is missing.", {"gelu_bwd(dout @ w2.T, u)": "dout @ w2.T"}),
        Mistake("down-not-activated", "dw2 is computed from u: its input is gelu(u).", {"gelu(u).T": "u.T"}),
        Mistake("up-from-h", "dw1 is computed from h: its input is the normalized n2.", {"n2.T @ du": "h.T @ du"}),
        Mistake(
            "attention-of-x",
            "attention gets x: its input is the normalized n1.",
            {"multi_head_bwd(dh, n1,": "multi_head_bwd(dh, x,"},
        ),
        Mistake("residual-twice", "dh gets dout twice.", {"dh = dout + dh": "dh = 2 * dout + dh"}),
    ),
)

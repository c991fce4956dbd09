"""Find the bugs: a parallel block.

GPT-J and PaLM compute attention and feed-forward side by side from one norm, which is faster and trains as
well. This backward was written in a hurry, and two gradients were lost or mixed up.

    n = rms_norm(x, norm)
    out = x + multi_head(n, Wqkv, Wout, heads) + gelu(n W1) W2
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.gelu_bwd import gelu_bwd
from attnarray.learn.exercises.masked_softmax import masked_softmax
from attnarray.learn.exercises.multi_head_bwd import join_heads, multi_head, multi_head_bwd, split_heads
from attnarray.learn.exercises.pre_norm_bwd import rms_norm, rms_norm_bwd


def repair_gpt_block_bwd(
    dout: np.ndarray,
    x: np.ndarray,
    norm: np.ndarray,
    w_qkv: np.ndarray,
    w_out: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    heads: int,
) -> tuple[np.ndarray, ...]:
    """Return the gradients of x and of all weights.

    dout: gradient of the output (T, E)
    x: (T, E)
    norm: weight of the norm (E,)
    w_qkv, w_out: (E, 3 E), (E, E)
    w1, w2: (E, F), (F, E)
    heads: the number of heads
    returns: dx, dnorm, dw_qkv, dw_out, dw1, dw2
    """
    n = rms_norm(x, norm, 1e-5)
    u = n @ w1
    du = gelu_bwd(dout @ w2.T, u)
    dattention, dw_qkv, dw_out = multi_head_bwd(dout, n, w_qkv, w_out, heads)
    dn = dattention + du @ w1.T
    dx, dnorm = rms_norm_bwd(dn, x, norm, 1e-5)
    return dout + dx, dnorm, dw_qkv, dw_out, n.T @ du, gelu(u).T @ dout


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU, approximated by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _forward(
    x: np.ndarray,
    norm: np.ndarray,
    w_qkv: np.ndarray,
    w_out: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    heads: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    n = rms_norm(x, norm, 1e-5)
    out = x + multi_head(n, w_qkv, w_out, heads) + gelu(n @ w1) @ w2
    return out, {
        "x": x, "norm": norm, "w_qkv": w_qkv, "w_out": w_out, "w1": w1, "w2": w2, "heads": heads
    }  # fmt: skip


def _draw(rng: np.random.Generator, regime: int, T: int, H: int, D: int, F: int) -> dict[str, Any]:
    E = H * D
    shapes = {"x": (T, E), "norm": (E,), "w_qkv": (E, 3 * E), "w_out": (E, E), "w1": (E, F), "w2": (F, E)}
    arrays = {
        name: rng.standard_normal(shape) / np.sqrt(shape[0]) ** (name[0] == "w") for name, shape in shapes.items()
    }
    return {**arrays, "heads": H}


EXERCISE = Exercise(
    repair_gpt_block_bwd,
    "bug",
    "THDF",
    _draw,
    ("x", "norm", "w_qkv", "w_out", "w1", "w2"),
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
    planted=("attention-path-lost", "down-not-activated"),
    hints=(
        (
            "The grader names the gradients that are wrong: what do dx and dnorm have in common, and "
            "what has dw2 of its own?"
        ),
        "n is used twice, so dn has two terms. The weight w2 multiplies gelu(u), not u.",
        "dn = dattention + du @ w1.T, and the last gradient is gelu(u).T @ dout.",
    ),
    mistakes=(
        Mistake(
            "attention-path-lost",
            "what comes through attention is missing in dn.",
            {"dn = dattention + du @ w1.T": "dn = du @ w1.T"},
        ),
        Mistake(
            "down-not-activated", "dw2 is computed from u: its input is gelu(u).", {"gelu(u).T @ dout": "u.T @ dout"}
        ),
        Mistake(
            "feed-forward-path-lost",
            "what comes through the feed-forward layer is missing in dn.",
            {" + du @ w1.T": ""},
        ),
        Mistake("residual-lost", "the residual connection has no gradient.", {"dout + dx": "dx"}),
        Mistake("no-slope", "the slope of GELU is missing.", {"gelu_bwd(dout @ w2.T, u)": "dout @ w2.T"}),
        Mistake("up-from-x", "dw1 is computed from x: its input is the normalized n.", {"n.T @ du": "x.T @ du"}),
    ),
)

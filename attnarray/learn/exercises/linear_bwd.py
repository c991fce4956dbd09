"""The gradient of a linear layer.

Queries, keys, values and all else in a transformer come from matrix products, so this backward runs more often
than any other. The rule to remember: each gradient has the shape of its array, and what was broadcast or shared
is summed.

    out = x W^T + b
    dx = dout W
    dW = sum over batch and positions of dout^T x
    db = sum over batch and positions of dout
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def linear_bwd(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x, weight and bias.

    dout: gradient of the output (B, T, O)
    x: (B, T, I)
    weight: (O, I), as in PyTorch
    returns: dx (B, T, I), dweight (O, I), dbias (O,)
    """
    dx = dout @ weight
    rows = dout.reshape(-1, dout.shape[-1])  # (B T, O)
    dweight = rows.T @ x.reshape(-1, x.shape[-1])
    dbias = np.sum(rows, axis=0)
    return dx, dweight, dbias


def _forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return x @ weight.T + bias, {"x": x, "weight": weight}


def _draw(rng: np.random.Generator, regime: int, B: int, T: int, I: int, O: int) -> dict[str, Any]:  # noqa: E741
    return {
        "x": rng.standard_normal((B, T, I)),
        "weight": rng.standard_normal((O, I)),
        "bias": rng.standard_normal(O),
    }


EXERCISE = Exercise(
    linear_bwd,
    "backward",
    "BTIO",
    _draw,
    ("x", "weight", "bias"),
    forward=_forward,
    hints=(
        ("Look at the shapes first: which product of dout (B, T, O) and weight (O, I) has the shape of x?"),
        ("For weight and bias, all B T rows count alike: reshape dout to (B T, O) and x to (B T, I)."),
        (
            "rows = dout.reshape(-1, O); dweight = rows.T @ x.reshape(-1, I); dbias = "
            "rows.sum(axis=0); dx = dout @ weight."
        ),
    ),
    mistakes=(
        Mistake(
            "weight-transposed",
            "the weight is transposed where it must not be: the forward has W^T, the backward W.",
            {"dout @ weight": "dout @ weight.T"},
        ),
        Mistake(
            "dweight-transposed",
            "dweight is transposed: it is dout^T x, of shape (O, I), and not x^T dout.",
            {"rows.T @ x.reshape(-1, x.shape[-1])": "x.reshape(-1, x.shape[-1]).T @ rows"},
        ),
        Mistake(
            "dweight-last-batch",
            ("dweight is that of one batch entry alone: the weight is shared by the whole batch, so all are summed."),
            {"rows.T @ x.reshape(-1, x.shape[-1])": "dout[-1].T @ x[-1]"},
        ),
        Mistake(
            "dweight-mean",
            (
                "dweight is the mean over batch and positions: it must be the sum. A mean belongs to the "
                "loss, and dout has it already."
            ),
            {"x.reshape(-1, x.shape[-1])": "x.reshape(-1, x.shape[-1]) / len(rows)"},
        ),
        Mistake(
            "dweight-batch-mean",
            (
                "dweight is divided by the batch size: it must be the sum. A mean belongs to the loss, "
                "and dout has it already."
            ),
            {"x.reshape(-1, x.shape[-1])": "x.reshape(-1, x.shape[-1]) / len(x)"},
        ),
        Mistake(
            "dbias-mean",
            "dbias is the mean over batch and positions instead of the sum.",
            {"np.sum(rows": "np.mean(rows"},
        ),
        Mistake(
            "dbias-batch-only",
            "dbias is summed over the batch alone: the bias is shared by all positions, too.",
            {"np.sum(rows, axis=0)": "np.sum(dout, axis=0)"},
        ),
        Mistake(
            "dbias-one-row",
            "dbias is dout of one row: the bias is added to all rows, so all are summed.",
            {"np.sum(rows, axis=0)": "rows[0]"},
        ),
    ),
)

"""The gradient of what is broadcast.

Positions, padding and preferences enter attention as a bias, which is added to the scores; often it is smaller
than they are, and NumPy broadcasts it. Whatever is used for many scores gets the sum of all their gradients.

    out = scores + bias
    dbias = sum of dout over each axis that the bias lacks, or has with size 1
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def bias_bwd(dout: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the gradient of the bias.

    dout: gradient of the sum (H, T, S)
    bias: any shape that broadcasts to (H, T, S), such as (S,), (T, 1) or (H, 1, S)
    returns: dbias, of the shape of the bias
    """
    missing = dout.ndim - bias.ndim
    dbias = np.sum(dout, axis=tuple(range(missing)))
    ones = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
    return np.sum(dbias, axis=ones, keepdims=True)


def _forward(scores: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return scores + bias, {"bias": bias}


def _draw(rng: np.random.Generator, regime: int, H: int, T: int, S: int) -> dict[str, Any]:
    shape = (
        ((T, 1), (1, S), (1, 1)),
        ((S,), (H, 1, S), (H, T, 1)),
        ((T, S), (1, T, S), (H, T, S)),
    )[regime][rng.integers(3)]
    return {"scores": rng.standard_normal((H, T, S)), "bias": rng.standard_normal(shape)}


EXERCISE = Exercise(
    bias_bwd,
    "backward",
    "HTS",
    _draw,
    ("bias",),
    forward=_forward,
    hints=(
        (
            "There are two kinds of axes: those that the bias lacks (on the left), and those of size "
            "1. Treat one kind after the other."
        ),
        "np.sum takes a tuple of axes. Axes of size 1 must stay: keepdims=True.",
        (
            "Sum over tuple(range(dout.ndim - bias.ndim)) first; then over all axes where bias.shape "
            "is 1, with keepdims=True."
        ),
    ),
    mistakes=(
        Mistake(
            "mean",
            "it is a mean over the axes that were broadcast instead of a sum.",
            {"np.sum(dout": "np.mean(dout", "np.sum(dbias": "np.mean(dbias"},
        ),
        Mistake(
            "first-entries",
            "it is the first row of dout instead of the sum over all.",
            {
                "np.sum(dout, axis=tuple(range(missing)))": "dout[(0,) * missing]",
                "np.sum(dbias, axis=ones, keepdims=True)": (
                    "dbias[tuple(slice(0, 1) if axis in ones else slice(None) for axis in range(bias.ndim))]"
                ),
            },
        ),
        Mistake(
            "ones-not-summed",
            "axes of size 1 are not summed: the bias was broadcast along them, too.",
            {"return np.sum(dbias, axis=ones, keepdims=True)": "return dbias"},
        ),
        Mistake(
            "missing-not-summed",
            "the axes that the bias lacks are not summed.",
            {
                "np.sum(dout, axis=tuple(range(missing)))": "dout",
                "enumerate(bias.shape)": "enumerate((2,) * missing + bias.shape)",
            },
        ),
        Mistake("no-keepdims", "axes of size 1 are lost: keepdims=True keeps them.", {", keepdims=True": ""}),
        Mistake(
            "not-summed",
            "it is dout itself: it must be summed over the axes that were broadcast.",
            {"return np.sum(dbias, axis=ones, keepdims=True)": "return dout.copy()"},
        ),
    ),
)

"""Find the bugs: layer norm.

Someone kept the mean and the reciprocal deviation of the forward, to save time, and made two mistakes on the
way. Both vanish for special inputs, which is why the tests passed: one for weights of 1, one for a single
token.

    n = rstd (x - mean),   out = n weight + bias
    dx = rstd (dn - mean(dn) - n mean(dn n)),        dn = dout weight
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def repair_layer_norm_bwd(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, rstd: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of x, weight and bias.

    dout: gradient of the output (T, E)
    x: (T, E)
    mean, rstd: mean and 1 / sqrt(variance + eps) of each token (T, 1)
    weight: (E,)
    returns: dx (T, E), dweight (E,), dbias (E,)
    """
    n = (x - mean) * rstd
    dn = dout * weight
    c1 = np.mean(dn * n, axis=-1, keepdims=True)
    c2 = np.mean(dn, axis=-1, keepdims=True)
    dx = (dn - n * c1 - c2) * rstd
    return dx, np.sum(dout * n, axis=0), np.sum(dout, axis=0)


def _forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    mean = np.mean(x, axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-3)
    return (x - mean) * rstd * weight + bias, {"x": x, "mean": mean, "rstd": rstd, "weight": weight}


def _draw(rng: np.random.Generator, regime: int, T: int, E: int) -> dict[str, Any]:
    x = rng.standard_normal((T, E + 1)) * (1, 0.5, 2)[regime]
    return {"x": x, "weight": rng.standard_normal(E + 1) + 1, "bias": rng.standard_normal(E + 1)}


EXERCISE = Exercise(
    repair_layer_norm_bwd,
    "bug",
    "TE",
    _draw,
    ("x", "weight", "bias"),
    forward=_forward,
    planted=("weight-in-one-term", "dweight-mean"),
    hints=(
        (
            "One bug vanishes when all weights are 1: look for dout where dn should be. The other "
            "vanishes for one token: look for sums over the tokens."
        ),
        ("c1 and c2 are both made from dn. The gradients of the parameters are both sums over the tokens."),
        "c1 must be the mean of dn * n, and dweight must be np.sum(dout * n, axis=0).",
    ),
    mistakes=(
        Mistake(
            "weight-in-one-term",
            "the weight is forgotten in c1: both means are of dn.",
            {"np.mean(dn * n": "np.mean(dout * n"},
        ),
        Mistake(
            "dweight-mean",
            "dweight is a mean over the tokens instead of a sum.",
            {"np.sum(dout * n": "np.mean(dout * n"},
        ),
        Mistake("weight-in-no-term", "the weight is forgotten in dx altogether.", {"dout * weight": "dout"}),
        Mistake("no-c2", "the mean of dn is not subtracted.", {" - c2": ""}),
        Mistake("no-c1", "the term of the variance is not subtracted.", {" - n * c1": ""}),
        Mistake("c1-without-n", "c1 must be multiplied by n.", {"n * c1": "c1"}),
        Mistake("no-rstd", "rstd is missing in dx.", {"(dn - n * c1 - c2) * rstd": "dn - n * c1 - c2"}),
        Mistake(
            "dweight-from-dn",
            "the weight is in dweight once more: it is the sum of dout n.",
            {"np.sum(dout * n": "np.sum(dn * n"},
        ),
    ),
)

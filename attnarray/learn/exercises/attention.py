"""Scaled dot-product attention.

Every query looks at every key, and takes the mean of the values, weighted by how well the keys fit. Without the
scale the scores grow with the number of features, softmax becomes a maximum, and nothing learns.

    scores = q k^T / sqrt(D)
    p = softmax(scores)        over the keys
    out = p v
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake
from attnarray.learn.exercises.softmax import softmax


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the output of one head.

    q: queries (T, D)
    k: keys (S, D)
    v: values (S, E)
    returns: (T, E)
    """
    scores = q @ k.T / np.sqrt(q.shape[-1])  # (T, S)
    return softmax(scores) @ v


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k = rng.standard_normal((T, D)), rng.standard_normal((S, D))
    return {"q": q * (1 + regime), "k": k, "v": rng.standard_normal((S, E))}


EXERCISE = Exercise(
    attention,
    "forward",
    "TSDE",
    _draw,
    ("out",),
    given=(softmax,),
    hints=(
        "Write the shape of each product beside it: (T, D), (S, D) and (S, E) must become (T, E).",
        (
            "The scores are (T, S): a row for each query. softmax works along the last axis, which "
            "are the keys, as it should be."
        ),
        "scores = q @ k.T / np.sqrt(q.shape[-1]); return softmax(scores) @ v.",
    ),
    mistakes=(
        Mistake("no-scale", "the scores are not divided by sqrt(D).", {" / np.sqrt(q.shape[-1])": ""}),
        Mistake(
            "scale-without-root",
            "the scores are divided by D instead of sqrt(D).",
            {"np.sqrt(q.shape[-1])": "q.shape[-1]"},
        ),
        Mistake(
            "scale-inverted", "the scores are multiplied by sqrt(D) instead of divided.", {" / np.sqrt": " * np.sqrt"}
        ),
        Mistake(
            "scale-of-keys",
            "the scale is that of the number of keys: it is sqrt(D), the width of queries and keys.",
            {"np.sqrt(q.shape[-1])": "np.sqrt(k.shape[0])"},
        ),
        Mistake(
            "scale-of-values",
            ("the scale is that of the width of the values: it is sqrt(D), the width of queries and keys."),
            {"np.sqrt(q.shape[-1])": "np.sqrt(v.shape[-1])"},
        ),
        Mistake(
            "softmax-over-queries",
            "softmax goes over the queries: the weights of each query, over all keys, must sum to 1.",
            {"softmax(scores)": "softmax(scores.T).T"},
        ),
        Mistake(
            "scale-after-softmax",
            "the scale comes after softmax: it belongs to the scores.",
            {" / np.sqrt(q.shape[-1])": "", "@ v": "@ v / np.sqrt(q.shape[-1])"},
        ),
        Mistake("no-softmax", "softmax is missing: the scores are used as weights.", {"softmax(scores)": "scores"}),
    ),
)

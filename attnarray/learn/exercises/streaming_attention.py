"""FlashAttention, forward.

Online softmax with one more line: the output is summed along with the weights, and rescaled with them. So
attention over a million keys needs no matrix of scores, and this is how all fast kernels work.

    for each block of keys and values:
        s = q k^T / sqrt(D)
        new_max = max(row_max, largest s),   rescale = exp(row_max - new_max),   w = exp(s - new_max)
        row_sum = row_sum rescale + sum of w
        out     = out rescale + w v
    at the end: out / row_sum,   lse = row_max + log(row_sum)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def streaming_attention(
    q: np.ndarray, blocks: Iterator[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the output, and the log-sum-exp of the scores.

    q: queries (T, D)
    blocks: an iterator of (k, v), of shapes (block, D) and (block, E); it can be read once
    returns: out (T, E), lse (T,)
    """
    row_max = np.full(len(q), -np.inf)
    row_sum = np.zeros(len(q))
    out = 0.0
    for k, v in blocks:
        s = q @ k.T / np.sqrt(q.shape[-1])
        new_max = np.maximum(row_max, np.max(s, axis=-1))
        rescale = np.exp(row_max - new_max)
        w = np.exp(s - new_max[:, None])
        row_sum = row_sum * rescale + np.sum(w, axis=-1)
        out = out * rescale[:, None] + w @ v
        row_max = new_max
    return out / row_sum[:, None], row_max + np.log(row_sum)


def _split(rng: np.random.Generator, size: int) -> list[int]:
    """Where to cut `size` keys into at least two blocks of different sizes."""
    return sorted({0, size, *(int(cut) for cut in rng.integers(1, size, 2))})


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    S += 3
    q, k, v = rng.standard_normal((T, D)), rng.standard_normal((S, D)), rng.standard_normal((S, E))
    cuts = _split(rng, S)
    if regime == 2:
        k[0] = 5 * q[0]  # the first block has the largest score
    return {"q": (1, 3, 3000)[regime] * q, "blocks": [(k[a:b], v[a:b]) for a, b in itertools.pairwise(cuts)]}


EXERCISE = Exercise(
    streaming_attention,
    "kernel",
    "TSDE",
    _draw,
    ("out", "lse"),
    streams=("blocks",),
    hints=(
        (
            "Take online_softmax, and carry a third thing through the loop: the sum of the weighted "
            "values, not yet divided."
        ),
        (
            "With row_max = -inf at the start, exp(row_max - new_max) is 0 in the first block, and "
            "nothing is special about it."
        ),
        (
            "out = out * rescale[:, None] + w @ v inside of the loop; return out / row_sum[:, None] "
            "and row_max + np.log(row_sum) after it."
        ),
    ),
    mistakes=(
        Mistake(
            "out-not-rescaled", "the output is not rescaled when the maximum grows.", {"out * rescale[:, None]": "out"}
        ),
        Mistake(
            "sum-not-rescaled", "the sum is not rescaled when the maximum grows.", {"row_sum * rescale": "row_sum"}
        ),
        Mistake(
            "nothing-rescaled",
            "neither the output nor the sum is rescaled when the maximum grows.",
            {"out * rescale[:, None]": "out", "row_sum * rescale": "row_sum"},
        ),
        Mistake(
            "no-division",
            "the output is not divided by the sum of the weights.",
            {"return out / row_sum[:, None]": "return out"},
        ),
        Mistake("last-block", "the output is that of the last block alone.", {"out * rescale[:, None] + ": ""}),
        Mistake("no-scale", "the scores are not divided by sqrt(D).", {" / np.sqrt(q.shape[-1])": ""}),
        Mistake(
            "lse-without-max",
            "the lse lacks the maximum: row_max + log(row_sum).",
            {"row_max + np.log(row_sum)": "np.log(row_sum)"},
        ),
        Mistake(
            "lse-without-log",
            "the lse lacks the logarithm of the sum.",
            {"row_max + np.log(row_sum)": "row_max + row_sum"},
        ),
        Mistake(
            "no-shift",
            "the maximum is not subtracted before exp, which overflows.",
            {
                "s - new_max[:, None]": "s",
                "row_sum * rescale": "row_sum",
                "out * rescale[:, None]": "out",
                "row_max + np.log": "np.log",
            },
        ),
    ),
)

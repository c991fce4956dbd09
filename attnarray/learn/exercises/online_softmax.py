"""Online softmax.

The scores of a long row do not fit into fast memory, so they come in blocks, and each block is seen once.
Milakov and Gimelshein found in 2018 how one pass gives the largest score and the sum: when a larger score turns
up, what was summed so far is rescaled.

    new_max = max(row_max, largest score of the block)
    row_sum = row_sum exp(row_max - new_max) + sum over the block of exp(score - new_max)
    row_max = new_max
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def online_softmax(blocks: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest score of each row, and the sum of exp(score - largest).

    blocks: an iterator of scores (T, block), all with the same T; it can be read once
    returns: row_max (T,), row_sum (T,)
    """
    first = next(blocks)
    row_max = np.max(first, axis=-1)
    row_sum = np.sum(np.exp(first - row_max[:, None]), axis=-1)
    for block in blocks:
        new_max = np.maximum(row_max, np.max(block, axis=-1))
        rescale = np.exp(row_max - new_max)
        row_sum = row_sum * rescale + np.sum(np.exp(block - new_max[:, None]), axis=-1)
        row_max = new_max
    return row_max, row_sum


def _split(rng: np.random.Generator, size: int) -> list[int]:
    """Where to cut `size` keys into at least two blocks of different sizes."""
    return sorted({0, size, *(int(cut) for cut in rng.integers(1, size, 2))})


def _draw(rng: np.random.Generator, regime: int, T: int, S: int) -> dict[str, Any]:
    S += 3
    scores = rng.standard_normal((T, S)) * 2 - (0, 4, 1000)[regime] + np.linspace(0, (6, -6, 6)[regime], S)
    cuts = _split(rng, S)
    return {"blocks": [scores[:, a:b] for a, b in itertools.pairwise(cuts)]}


EXERCISE = Exercise(
    online_softmax,
    "kernel",
    "TS",
    _draw,
    ("row_max", "row_sum"),
    streams=("blocks",),
    hints=(
        (
            "The first block gives a first row_max and row_sum. What is wrong with row_sum when the "
            "next block has a larger score?"
        ),
        ("It was computed with the old maximum: multiply it by exp(row_max - new_max), which is at most 1."),
        (
            "new_max = np.maximum(row_max, block.max(axis=-1)); row_sum = row_sum * np.exp(row_max - "
            "new_max) + np.exp(block - new_max[:, None]).sum(axis=-1); row_max = new_max."
        ),
    ),
    mistakes=(
        Mistake("not-rescaled", "the sum is not rescaled when the maximum grows.", {"row_sum * rescale": "row_sum"}),
        Mistake(
            "rescale-inverted",
            ("the sum is rescaled by exp(new_max - row_max): the sign is wrong, the factor must be at most 1."),
            {"np.exp(row_max - new_max)": "np.exp(new_max - row_max)"},
        ),
        Mistake(
            "last-max",
            "the maximum is that of the last block, not of all so far.",
            {"np.maximum(row_max, np.max(block, axis=-1))": "np.max(block, axis=-1)"},
        ),
        Mistake(
            "old-max",
            "the new block is summed with the old maximum.",
            {"block - new_max[:, None]": "block - row_max[:, None]"},
        ),
        Mistake(
            "block-max",
            "the new block is summed with its own maximum instead of the largest so far.",
            {"block - new_max[:, None]": "block - np.max(block, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "starts-at-zero",
            (
                "the maximum starts at 0: where all scores are negative it stays there. Start at -inf, "
                "or with the first block."
            ),
            {"row_max = np.max(first, axis=-1)": "row_max = np.maximum(0.0, np.max(first, axis=-1))"},
        ),
        Mistake(
            "no-shift",
            "the maximum is not subtracted before exp.",
            {"first - row_max[:, None]": "first", "block - new_max[:, None]": "block", "row_sum * rescale": "row_sum"},
        ),
        Mistake(
            "first-block-lost",
            "the first block is not in the sum.",
            {"row_sum = np.sum(np.exp(first - row_max[:, None]), axis=-1)": ("row_sum = np.zeros(len(first))")},
        ),
        Mistake("sum-overwritten", "the sum is that of the last block alone.", {"row_sum * rescale + ": ""}),
    ),
)

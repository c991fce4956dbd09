"""A sliding window.

Long texts are read through a window: each query attends to some keys on its left and some on its right, and the
cost no longer grows with the length. Off-by-one mistakes here are invisible in the loss, so count by hand once.

    mask_ij = i - left <= j <= i + right        both ends are included
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def window_mask(T: int, S: int, left: int, right: int) -> np.ndarray:
    """Return the mask of T queries and S keys.

    T, S: the numbers of queries and keys
    left, right: how many keys a query sees on either side, beside the one at its own position
    returns: booleans (T, S), True where query i may attend to key j
    """
    i = np.arange(T)[:, None]
    j = np.arange(S)[None, :]
    return (i - left <= j) & (j <= i + right)


def _draw(rng: np.random.Generator, regime: int, T: int, S: int) -> dict[str, Any]:
    left, right = ((1, 0), (0, 2), (2, 1))[regime]
    return {"T": T + 4, "S": S + 3, "left": left, "right": right}


EXERCISE = Exercise(
    window_mask,
    "mask",
    "TS",
    _draw,
    ("mask",),
    hints=(
        "Two comparisons, both must hold: arrays are combined by & and need parentheses.",
        ("i = np.arange(T)[:, None] and j = np.arange(S)[None, :]. Try left = 1, right = 0 on paper."),
        "return (i - left <= j) & (j <= i + right).",
    ),
    mistakes=(
        Mistake(
            "left-exclusive",
            "the left end is one off: the key at i - left is included.",
            {"i - left <= j": "i - left < j"},
        ),
        Mistake(
            "right-exclusive",
            "the right end is one off: the key at i + right is included.",
            {"j <= i + right": "j < i + right"},
        ),
        Mistake(
            "ends-exclusive",
            "both ends are one off: the keys at i - left and i + right are included.",
            {"i - left <= j": "i - left < j", "j <= i + right": "j < i + right"},
        ),
        Mistake(
            "sides-swapped",
            "left and right are swapped, or queries and keys.",
            {"i - left": "i - right", "i + right": "i + left"},
        ),
        Mistake("left-only", "the right end is not applied.", {" & (j <= i + right)": ""}),
        Mistake("right-only", "the left end is not applied.", {"(i - left <= j) & ": ""}),
        Mistake("either", "both comparisons must hold: they are combined by `|`, expected `&`.", {") & (": ") | ("}),
        Mistake(
            "inverted",
            "it is inverted: True means that the query may attend to the key.",
            {"(i - left <= j) & (j <= i + right)": "~((i - left <= j) & (j <= i + right))"},
        ),
    ),
)

"""The causal mask.

A language model must not see the tokens that it shall predict, so a query attends to keys at its own position
and before. When tokens are generated one by one, the queries are the last of many positions, and the mask needs
to know where they start.

    query i is at position i + offset, key j at position j
    mask_ij = True where the query may attend to the key: j <= i + offset
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def causal_mask(T: int, S: int, offset: int) -> np.ndarray:
    """Return the mask of T queries and S keys.

    T, S: the numbers of queries and keys
    offset: the position of the first query
    returns: booleans (T, S), True where query i may attend to key j
    """
    i = np.arange(T)[:, None] + offset
    j = np.arange(S)[None, :]
    return j <= i


def _draw(rng: np.random.Generator, regime: int, T: int, S: int) -> dict[str, Any]:
    return {"T": T, "S": S, "offset": (0, S - T, int(rng.integers(1, 4)))[regime]}


EXERCISE = Exercise(
    causal_mask,
    "mask",
    "TS",
    _draw,
    ("mask",),
    hints=(
        "A comparison of two arrays gives booleans. Which two arrays broadcast to (T, S)?",
        ("np.arange(T)[:, None] are the queries, np.arange(S)[None, :] the keys; the queries move by the offset."),
        "i = np.arange(T)[:, None] + offset; j = np.arange(S)[None, :]; return j <= i.",
    ),
    mistakes=(
        Mistake(
            "own-position-hidden",
            "it is one off: a query may attend to its own position, j <= i + offset.",
            {"j <= i": "j < i"},
        ),
        Mistake(
            "next-position-seen",
            "it is one off: a query may not attend to the position after its own.",
            {"j <= i": "j <= i + 1"},
        ),
        Mistake("no-offset", "the offset is ignored.", {" + offset": ""}),
        Mistake(
            "offset-subtracted",
            ("the offset is subtracted, or added to the keys: the first query stands at position `offset`."),
            {" + offset": " - offset"},
        ),
        Mistake("inverted", "it is inverted: True means that the query may attend to the key.", {"j <= i": "j > i"}),
        Mistake(
            "future",
            "it looks ahead: keys at later positions are allowed instead of earlier ones.",
            {"j <= i": "j >= i"},
        ),
        Mistake(
            "bottom-right",
            "it is aligned to the last key, whatever the offset is.",
            {"np.arange(T)[:, None] + offset": "np.arange(T)[:, None] + S - T"},
        ),
    ),
)

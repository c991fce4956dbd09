"""Embedding.

A token is looked up in a table, and its row goes into the model; frequent tokens are looked up many times in
one batch. Each of these times gives a gradient to the same row, and an assignment keeps one of them.

    out[b, t] = table[tokens[b, t]]
    dtable[w] = sum of dout[b, t] over all b, t with tokens[b, t] = w
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def embedding_bwd(dout: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the gradient of the table.

    dout: gradient of the output (B, T, E)
    tokens: integers (B, T)
    vocab_size: the number of rows of the table
    returns: dtable (vocab_size, E)
    """
    dtable = np.zeros((vocab_size, dout.shape[-1]))
    np.add.at(dtable, tokens, dout)
    return dtable


def _forward(table: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    return table[tokens], {"tokens": tokens, "vocab_size": len(table)}


def _draw(rng: np.random.Generator, regime: int, B: int, T: int, V: int, E: int) -> dict[str, Any]:
    tokens = rng.integers(0, V, (B, T))
    tokens[0, 0] = tokens[-1, -1] = tokens[0, 1]
    return {"table": rng.standard_normal((V + 1, E)), "tokens": tokens}


EXERCISE = Exercise(
    embedding_bwd,
    "backward",
    "BTVE",
    _draw,
    ("table",),
    forward=_forward,
    hints=(
        (
            "Write two nested loops over batch and positions first: dtable[tokens[b, t]] += dout[b, "
            "t]. That is right already."
        ),
        (
            "dtable[tokens] += dout looks alike, but adds once for each row, however often a token "
            "stands there. np.add.at does not."
        ),
        "dtable = np.zeros((vocab_size, E)); np.add.at(dtable, tokens, dout).",
    ),
    mistakes=(
        Mistake(
            "last-one-wins",
            (
                "a token that stands there twice gets one of its gradients: `dtable[tokens] = ...` "
                "and `+=` write each row once. Use np.add.at, or a loop with +=."
            ),
            {"np.add.at(dtable, tokens, dout)": "dtable[tokens] += dout"},
        ),
        Mistake(
            "mean",
            "it is the mean over the times that a token is looked up instead of the sum.",
            {
                "np.add.at(dtable, tokens, dout)": (
                    "np.add.at(dtable, tokens, dout)\n"
                    "    dtable /= np.maximum(np.bincount(tokens.ravel(), minlength=vocab_size), "
                    "1)[:, None]"
                )
            },
        ),
        Mistake(
            "batch-mean",
            "it is divided by the batch size: it must be the sum.",
            {"tokens, dout)": "tokens, dout / len(dout))"},
        ),
        Mistake("first-batch", "only the first batch entry counts.", {"tokens, dout)": "tokens[0], dout[0])"}),
        Mistake(
            "next-row",
            "it is one row off: token w belongs to row w.",
            {"tokens, dout)": "(tokens + 1) % vocab_size, dout)"},
        ),
    ),
)

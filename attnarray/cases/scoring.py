"""Cases of the mechanisms that score queries and keys by other functions than a dot product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

ADDITIVE = {"query": (2, 3, 5), "key": (2, 4, 5), "value": (2, 4, 6), "score_vector": (5,)}  # B 2, T 3, S 4, A 5, Dv 6


def _spread(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Arrays]:
    """A score vector three times as large, so that the weights are far from uniform."""
    make = normal(**shapes)
    return lambda rng: {name: array * (3.0 if name == "score_vector" else 1.0) for name, array in make(rng).items()}


def _additive(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = ADDITIVE,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("additive_attention", label, also(_spread(**shapes), **(drawn or {})), options)


SCORING_CASES: tuple[Case, ...] = (
    _additive("plain"),
    _additive("two axes", {name: shape[-2:] for name, shape in ADDITIVE.items()}, is_causal=True, q_offset=1),
    _additive(
        "two batch axes, lengths",
        {"query": (2, 3, 4, 5), "key": (2, 3, 7, 5), "value": (2, 3, 7, 6), "score_vector": (5,)},
        {"kv_lengths": lambda rng: np.array([[3, 7, 0], [5, 2, 6]])},
        scale=1.5,
    ),
    _additive("mask, window", ADDITIVE, {"attn_mask": bits(2, 3, 4)}, window=(1, 1)),
    _additive("bias, softcap", {**ADDITIVE, "bias": (4,)}, softcap=2.0),
    _additive("bias over batches", {**ADDITIVE, "bias": (2, 1, 4)}),
    _additive("everything", {**ADDITIVE, "bias": (3, 4)}, {"kv_lengths": lambda rng: np.array([4, 3])}, is_causal=True,
              q_offset=1, dropout_p=0.3, rng=4, scale=0.7),
)  # fmt: skip

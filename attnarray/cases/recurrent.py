"""Cases of attention with recurrent scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# B 2, T 3, S 5, Dq 4, Dk 6; H 2, A 7.
LSTM = {"weight_ih": (8, 10), "weight_hh": (8, 2), "output_weight": (7, 2), "score_vector": (7,)}
RECURRENT = {"query": (2, 3, 4), "key": (2, 5, 6), **LSTM}
STARTS = {"gate_bias": (8,), "h0": (2, 3, 2), "c0": (3, 1)}


def _spread(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[np.random.Generator], Arrays]:
    """A score vector three times as large, so that the weights are far from uniform."""
    make = normal(**shapes)
    return lambda rng: {name: array * (3.0 if name == "score_vector" else 1.0) for name, array in make(rng).items()}


def _recurrent(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = RECURRENT,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("recurrent_attention", label, also(_spread(shapes), **(drawn or {})), options)


RECURRENT_CASES: tuple[Case, ...] = (
    _recurrent("plain"),
    _recurrent("two axes", {**RECURRENT, "query": (3, 4), "key": (5, 6), "h0": (2,)}, is_causal=True, q_offset=1),
    _recurrent(
        "two batch axes, lengths", {**RECURRENT, "query": (2, 1, 3, 4), "key": (2, 1, 5, 6), "value": (2, 1, 5, 7)},
        {"kv_lengths": lambda rng: np.array([[3], [0]])}, scale=1.5,
    ),
    _recurrent("mask, window", {**RECURRENT, **STARTS}, {"attn_mask": bits(2, 3, 5)}, window=(1, 1)),
    _recurrent("bias, softcap", {**RECURRENT, "bias": (5,), "gate_bias": (8,)}, softcap=2.0),
    _recurrent(
        "everything", {**RECURRENT, **STARTS, "value": (2, 5, 7), "bias": (3, 5)},
        {"kv_lengths": lambda rng: np.array([5, 3])}, is_causal=True, q_offset=1, dropout_p=0.3, rng=4, scale=0.7,
    ),
)  # fmt: skip

"""Cases of attention by the activation unit of deep interest networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# B 2, T 3, S 7, D 4, Dv 6, A 5.
ARRAYS = {
    "query": (2, 3, 4), "key": (2, 7, 4), "value": (2, 7, 6), "weight": (5, 12), "unit_bias": (5,),
    "score_vector": (5,),
}  # fmt: skip
ONE_CANDIDATE = {**ARRAYS, "query": (1, 4), "key": (7, 4), "value": (7, 6)}
TWO_BATCH_AXES = {**ARRAYS, "query": (2, 3, 8, 4), "key": (2, 3, 7, 4), "value": (2, 3, 7, 6)}


def _moderate(shapes: dict[str, tuple[int, ...]]) -> Callable[[np.random.Generator], Arrays]:
    """Weights of half the size, so that scores are near 1: large ones amplify the rounding of 16-bit floats."""
    make = normal(**shapes)
    return lambda rng: {name: array * (0.5 if name == "weight" else 1.0) for name, array in make(rng).items()}


def _din(
    label: str,
    shapes: dict[str, tuple[int, ...]] = ARRAYS,
    drawn: dict[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("din_attention", label, also(_moderate(shapes), **(drawn or {})), options)


DIN_CASES: tuple[Case, ...] = (
    _din("plain"),
    _din("one candidate, no batch", ONE_CANDIDATE),
    _din("normalized", normalize=True),
    _din("two batch axes, lengths", TWO_BATCH_AXES,
         {"kv_lengths": lambda rng: np.array([[3, 7, 0], [5, 1, 6]])}, scale=0.7),
    _din("mask, softcap", ARRAYS, {"attn_mask": bits(2, 3, 7)}, softcap=2.0),
    _din("bias, dropout", {**ARRAYS, "bias": (2, 1, 7)}, dropout_p=0.3, rng=4, window=(3, None), q_offset=2),
    _din("normalized, everything", {**ARRAYS, "bias": (3, 7)}, {"kv_lengths": lambda rng: np.array([7, 5])},
         normalize=True, is_causal=True, q_offset=3, softcap=3.0, dropout_p=0.2, rng=5, scale=1.3),
)  # fmt: skip

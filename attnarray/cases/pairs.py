"""Cases of the mechanisms that score pairs of positions of one sequence, or by the weights of the previous step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# B 2, T 5, D 3, A 4.
PAIRS = {"x": (2, 5, 3), "input_weight": (4, 6), "score_vector": (4,)}
TWO_BATCH_AXES = {"x": (2, 3, 7, 5), "input_weight": (4, 10), "score_vector": (4,)}
STATE = {"hidden": (2, 5, 6), "hidden_weight": (4, 6), "input_bias": (4,)}
MEMORY = {"memory": (2, 7, 3), "value": (2, 7, 8)}

# B 2, T 7, D 3, A 4; widths 5 and 3.
WINDOWS = {"x": (2, 7, 3), "query_weight": (4, 3, 5), "key_weight": (4, 3, 3)}
EVEN = {"query_weight": (4, 3, 2), "key_weight": (4, 3, 2)}

# B 2, T 3, S 7, A 5, Dv 6; 4 filters of width 3.
LOCATION = {
    "query": (2, 3, 5), "key": (2, 7, 5), "value": (2, 7, 6), "score_vector": (5,), "location_filter": (4, 3),
    "location_weight": (5, 4),
}  # fmt: skip

ONE_STEP = {**LOCATION, "query": (1, 5), "key": (7, 5), "value": (7, 6), "previous": (7,)}


def _spread(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[np.random.Generator], Arrays]:
    """A score vector twice as large, so that the weights are far from uniform."""
    make = normal(**shapes)
    return lambda rng: {name: array * (2.0 if name == "score_vector" else 1.0) for name, array in make(rng).items()}


def _pairwise(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = PAIRS,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("pairwise_attention", label, also(_spread(shapes), **(drawn or {})), options)


def _convolutional(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = WINDOWS,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("convolutional_attention", label, also(_spread(shapes), **(drawn or {})), options)


def _location(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = LOCATION,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("location_attention", label, also(_spread(shapes), **(drawn or {})), options)


def _lengths(*numbers: Any) -> Mapping[str, Callable[[np.random.Generator], Any]]:
    return {"kv_lengths": lambda rng: np.array(numbers)}


PAIR_CASES: tuple[Case, ...] = (
    _pairwise("plain"),
    _pairwise("two axes, causal", {**PAIRS, "x": (5, 3), "input_bias": (4,)}, is_causal=True),
    _pairwise("hidden", {**PAIRS, **STATE}),
    _pairwise("two batch axes, lengths", TWO_BATCH_AXES, _lengths([3, 7, 0], [5, 1, 6]), scale=0.7),
    _pairwise("hidden, lengths", {**PAIRS, **STATE}, _lengths(3, 4), is_causal=True),
    _pairwise("memory, value, mask, window", {**PAIRS, **STATE, **MEMORY}, {"attn_mask": bits(5, 7)}, window=(3, 2)),
    _pairwise("memory, lengths", {**PAIRS, "memory": (2, 7, 3)}, _lengths(7, 4), is_causal=True, q_offset=2),
    _pairwise("bias, softcap", {**PAIRS, "bias": (2, 1, 5)}, softcap=2.0),
    _pairwise("everything", {**PAIRS, **STATE, "value": (2, 5, 8), "bias": (5, 5)}, _lengths(5, 4), is_causal=True,
              window=(3, None), dropout_p=0.3, rng=4, scale=1.3),
    _convolutional("dots", {**WINDOWS, "query_bias": (4,)}),
    _convolutional("pairs", {**WINDOWS, "score_vector": (4,), "query_bias": (4,)}),
    _convolutional("pairs, two axes, causal", {**WINDOWS, **EVEN, "x": (7, 3), "score_vector": (4,)}, is_causal=True,
                   padding="causal"),
    _convolutional("dots, two batch axes, lengths", {"x": (2, 3, 7, 5), "query_weight": (4, 5, 3),
                   "key_weight": (4, 5, 1)}, _lengths([3, 7, 0], [5, 1, 6]), scale=0.7),
    _convolutional("dots, causal, lengths", {**WINDOWS, **EVEN, "value": (2, 7, 6)}, _lengths(7, 4), is_causal=True,
                   padding="causal"),
    _convolutional("pairs, value, mask, window", {**WINDOWS, "score_vector": (4,), "value": (2, 7, 6)},
                   {"attn_mask": bits(7, 7)}, window=(3, 2)),
    _convolutional("dots, bias, softcap, dropout", {**WINDOWS, "bias": (2, 1, 7)}, softcap=2.0, dropout_p=0.3, rng=5),
    _convolutional("pairs, everything", {**WINDOWS, "score_vector": (4,), "query_bias": (4,), "bias": (7, 7)},
                   _lengths(7, 5), is_causal=True, window=(4, None), q_offset=1, dropout_p=0.3, rng=6, scale=1.3),
    _location("run"),
    _location("one step, no batch", ONE_STEP),
    _location("cumulative, wide filters", {**LOCATION, "location_filter": (4, 9)}, cumulative=True),
    _location("two batch axes, lengths",
              {**LOCATION, "query": (2, 3, 4, 5), "key": (2, 3, 7, 5), "value": (2, 3, 7, 6)},
              _lengths([3, 7, 0], [5, 1, 6]), scale=1.5),
    _location("previous, mask, softcap", {**LOCATION, "previous": (2, 7)}, {"attn_mask": bits(2, 3, 7)}, softcap=2.0),
    _location("bias over steps", {**LOCATION, "bias": (2, 1, 7)}, window=(2, 5), q_offset=1),
    _location("everything", {**LOCATION, "previous": (2, 7), "bias": (3, 7)}, _lengths(7, 5), cumulative=True,
              scale=0.7, window=(3, None), is_causal=True, q_offset=3, dropout_p=0.3, rng=4),
)  # fmt: skip

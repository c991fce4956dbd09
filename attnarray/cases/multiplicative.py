"""Cases of Luong's attention, of scaled attention, and of the combination of a context with a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, bits, normal

Draws = Mapping[str, Callable[[np.random.Generator], Any]]
Shapes = Mapping[str, tuple[int, ...]]

# B 2, T 3, S 4, D 5, Dv 6; Dk 7 where keys may be wider; A 8.
DOT = {"query": (2, 3, 5), "key": (2, 4, 5), "value": (2, 4, 6)}
GENERAL = {**DOT, "key": (2, 4, 7), "weight": (5, 7)}
CONCAT = {**DOT, "key": (2, 4, 7), "weight": (8, 12), "score_vector": (8,)}
TWO_BATCH_AXES = {"query": (2, 3, 4, 5), "key": (2, 3, 7, 5), "value": (2, 3, 7, 6)}
COMBINED = {"context": (2, 3, 5), "hidden": (2, 3, 4), "context_weight": (6, 5), "hidden_weight": (6, 4)}


def _multiplicative(score: str, label: str, shapes: Shapes, drawn: Draws | None = None, **options: Any) -> Case:
    made = also(normal(**shapes), **(drawn or {}))
    return Case("multiplicative_attention", f"{score}: {label}", made, {"score": score, **options})


def _scaled(label: str, shapes: Shapes = DOT, drawn: Draws | None = None, **options: Any) -> Case:
    return Case("scaled_attention", label, also(normal(**shapes), **(drawn or {})), options)


def _lengths(*numbers: Any) -> Draws:
    return {"kv_lengths": lambda rng: np.array(numbers)}


def _number(value: float) -> Callable[[np.random.Generator], Any]:
    """A number whose gradient has no cancellation, which would magnify the rounding of kernels."""
    return lambda rng: np.array(value)


MULTIPLICATIVE_CASES: tuple[Case, ...] = (
    _multiplicative("dot", "plain", DOT),
    _multiplicative("dot", "two axes, causal", {name: shape[1:] for name, shape in DOT.items()}, is_causal=True),
    _multiplicative("dot", "two batch axes", TWO_BATCH_AXES, _lengths([3, 7, 0], [5, 2, 6]), scale=0.6),
    _multiplicative("general", "mask, window", GENERAL, {"attn_mask": bits(2, 3, 4)}, window=(1, 1)),
    _multiplicative("general", "bias, softcap", {**GENERAL, "bias": (2, 1, 4)}, softcap=2.0),
    _multiplicative("general", "dropout, lengths", GENERAL, _lengths(4, 3), dropout_p=0.3, rng=4, q_offset=1),
    _multiplicative("concat", "everything", {**CONCAT, "bias": (3, 4)}, _lengths(4, 3), is_causal=True, q_offset=1,
                    dropout_p=0.3, rng=4, scale=0.7),
    _multiplicative("concat", "plain", CONCAT),
    _multiplicative(
        "concat",
        "two batch axes",
        {**TWO_BATCH_AXES, "weight": (8, 10), "score_vector": (8,)},
        _lengths([3, 7, 0], [5, 2, 6]),
    ),
)  # fmt: skip

SCALED_CASES: tuple[Case, ...] = (
    _scaled("everything", {**DOT, "gate": (2, 3), "score_scale": (2, 3), "bias": (2, 1, 4)},
            {**_lengths(4, 3), "inverse_temperature": _number(0.4)}, is_causal=True, q_offset=1, softcap=3.0,
            dropout_p=0.3, rng=4),
    _scaled("numbers", gate=0.5, score_scale=0.7, inverse_temperature=-1.5),
    _scaled("one score scale and gate", DOT, {"score_scale": _number(0.4), "gate": _number(0.6)}),
    _scaled("the score scale of each query", {**DOT, "score_scale": (2, 3)}, is_causal=True, q_offset=1),
    _scaled("two axes", {name: shape[1:] for name, shape in {**DOT, "gate": (2, 3)}.items()}, window=(1, 1)),
    _scaled(
        "two batch axes",
        {**TWO_BATCH_AXES, "gate": (2, 3, 4), "inverse_temperature": (2, 3, 4)},
        _lengths([3, 7, 0], [5, 2, 6]),
    ),
    _scaled("softcap, inverse temperature a number", {**DOT, "gate": (2, 3)}, softcap=2.0, inverse_temperature=1.3),
    _scaled(
        "softcap, inverse temperature of each query, bias",
        {**DOT, "score_scale": (2, 3), "inverse_temperature": (2, 3), "bias": (3, 4)},
        {"attn_mask": bits(2, 3, 4)},
        softcap=2.0,
    ),
)  # fmt: skip

COMBINE_CASES: tuple[Case, ...] = (
    Case("attentional_hidden_state", "sum", normal(**COMBINED)),
    Case(
        "attentional_hidden_state",
        "one vector, bias",
        normal(**{**COMBINED, "context": (5,), "hidden": (4,), "bias": (6,)}),
    ),
    Case("attentional_hidden_state", "tanh, bias", normal(**COMBINED, bias=(6,)), {"activation": "tanh"}),
)

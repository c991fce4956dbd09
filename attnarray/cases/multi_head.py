"""Cases of multi-head attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal
from attnarray.ops.rotary import Rotary

# The (inputs, outputs) of each projection. B 2, T 5, S 4; Eq 7, Ek 8, Ev 9; H 3, Dk 6, Dv 1; E 10.
SIZES = {"query": (7, 18), "key": (8, 18), "value": (9, 3), "out": (3, 10)}
CROSS = {"query": (2, 5, 7), "key": (2, 4, 8), "value": (2, 4, 9)}
SELF = {"query": (7, 18), "key": (7, 18), "value": (7, 3), "out": (3, 10)}
GROUPED = {"query": (7, 24), "key": (8, 12), "value": (8, 6), "out": (12, 10)}  # H 4, Hkv 2, Dk 6, Dv 3, S 9


def _params(sizes: Mapping[str, tuple[int, int]], *biases: str) -> Callable[[np.random.Generator], Arrays]:
    """Parameters of these sizes, with the named biases.

    That of the keys has a gradient only if the softmax includes more than the projected keys, or with a softcap.
    """

    def draw(rng: np.random.Generator) -> Arrays:
        made: Arrays = {}
        for name, (inputs, outputs) in sizes.items():
            made[name] = {"weight": 1.5 / np.sqrt(inputs) * rng.standard_normal((outputs, inputs))}
            if name in biases:
                made[name]["bias"] = rng.standard_normal(outputs)
        return made

    return draw


def _with(
    params: Callable[[np.random.Generator], Arrays], **shapes: tuple[int, ...]
) -> Callable[[np.random.Generator], Arrays]:
    """`params` and the optional parts of these shapes."""

    def draw(rng: np.random.Generator) -> Arrays:
        extra: Arrays = {name: {"weight": 0.5 + rng.standard_normal(shape)} for name, shape in shapes.items()}
        return {**params(rng), **extra}

    return draw


def _case(
    label: str,
    shapes: Mapping[str, tuple[int, ...]],
    params: Callable[[np.random.Generator], Arrays],
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    num_heads: int = 3,
    **options: Any,
) -> Case:
    made = also(normal(**shapes), params=params, **(drawn or {}))
    return Case("multi_head_attention", label, made, {"num_heads": num_heads, **options})


MULTI_HEAD_CASES: tuple[Case, ...] = (
    _case(
        "everything",
        {**CROSS, "bias": (3, 1, 4), "sinks": (3,)},
        _params(SIZES, "query", "key", "value", "out"),
        {"kv_lengths": lambda rng: np.array([4, 3]), "dropout_mask": bits(2, 3, 5, 4)},
        is_causal=True,
        q_offset=1,
        softcap=2.0,
        dropout_p=0.3,
    ),
    _case("other keys and values", CROSS, _params(SIZES, "query", "value", "out")),
    _case("self, causal", {"query": (2, 5, 7)}, _params(SELF), is_causal=True),
    _case("one sequence", {"query": (5, 7)}, _params(SELF, "query", "out"), is_causal=True, window=(2, 0)),
    _case(
        "keys that are the values, grouped heads, lengths",
        {"query": (2, 5, 7), "key": (2, 9, 8)},
        _params(GROUPED, "out"),
        {"kv_lengths": lambda rng: np.array([9, 4])},
        num_heads=4,
        num_kv_heads=2,
    ),
    _case(
        "two batch axes, one key head",
        {"query": (2, 3, 5, 7), "key": (2, 3, 4, 8)},
        _params({**GROUPED, "key": (8, 6), "value": (8, 1), "out": (4, 10)}),
        {"kv_lengths": lambda rng: np.array([[4, 2, 0], [3, 4, 1]])},
        num_heads=4,
        num_kv_heads=1,
        scale=0.9,
    ),
    _case("mask", CROSS, _params(SIZES, "value"), {"attn_mask": bits(5, 4)}),
    _case(
        "norms of each head, rotation, a gate of each number",
        {"query": (2, 5, 7), "key": (2, 9, 8)},
        _with(_params(GROUPED, "query", "key"), query_norm=(6,), key_norm=(6,), gate=(12, 7)),
        num_heads=4,
        num_kv_heads=2,
        rotary=Rotary(dims=4),
        norm_eps=0.1,
    ),
    _case(
        "norms of all heads, a gate of each head",
        CROSS,
        _with(_params(SIZES, "query", "key"), query_norm=(18,), key_norm=(18,), gate=(3, 7)),
        {"kv_lengths": lambda rng: np.array([4, 3]), "dropout_mask": bits(2, 3, 5, 4)},
        dropout_p=0.3,
    ),
    _case(
        "cosines",
        {"query": (2, 5, 7), "key": (2, 9, 8)},
        _with(_params(GROUPED, "query", "key"), logit_scale=(4,)),
        {"kv_lengths": lambda rng: np.array([9, 4])},
        num_heads=4,
        num_kv_heads=2,
    ),
)

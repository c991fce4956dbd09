"""Cases of rotary positions and of attention with relative positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, bits, normal
from attnarray.ops.rotary_scaling import DynamicNTK, Llama3RoPE, LongRoPE, YaRN

Draws = Mapping[str, Callable[[np.random.Generator], Any]]

# B 2, H 6 over Hkv 3, T 4, S 7 with 3 keys of memory, D 5, Dv 8.
HEADS = {"query": (2, 3, 4, 5), "key": (2, 3, 7, 5), "value": (2, 3, 7, 8), "content_bias": (3, 5),
         "position_bias": (3, 5)}  # fmt: skip
GROUPED = {**HEADS, "query": (2, 6, 4, 5), "content_bias": (6, 5), "position_bias": (6, 5)}
ONE = {"query": (4, 5), "key": (7, 5), "value": (7, 8), "content_bias": (5,), "position_bias": (5,)}


def _rotary(label: str, shape: tuple[int, ...], drawn: Draws | None = None, **options: Any) -> Case:
    return Case("rotary", label, also(normal(x=shape), **(drawn or {})), options)


def _relative(label: str, shapes: Mapping[str, tuple[int, ...]], drawn: Draws | None = None, **options: Any) -> Case:
    return Case("relative_attention", label, also(normal(**shapes), **(drawn or {})), options)


def _array(*numbers: Any) -> Callable[[np.random.Generator], Any]:
    return lambda rng: np.array(numbers)


ROTARY_CASES: tuple[Case, ...] = (
    _rotary("halves", (2, 3, 5, 8)),
    _rotary("pairs, offset", (2, 3, 5, 8), interleaved=True, offset=11),
    _rotary("some features, base", (3, 7), dims=4, base=100.0),
    _rotary("pairs of some features", (2, 5, 7), interleaved=True, dims=4),
    _rotary("positions of each batch", (2, 3, 5, 4), {"positions": lambda rng: rng.integers(-9, 99, (2, 1, 5))}),
    _rotary("behind the heads", (2, 5, 3, 8), {"positions": lambda rng: rng.integers(0, 99, (2, 5))}, layout="BTHD"),
    _rotary("linear scaling", (5, 6), scaling="linear", factor=4.0, offset=40),
    _rotary("ntk scaling, positions", (5, 6), {"positions": _array(5, 0, -3, 7, 2)}, scaling="ntk", factor=8.0,
            interleaved=True),
    _rotary("dynamic scaling", (5, 6), scaling=DynamicNTK(3.0, 4), offset=2),
    _rotary("YaRN", (2, 5, 12), scaling=YaRN(4.0, 64), base=100.0, offset=40),
    _rotary("LLaMA 3's scaling", (5, 12), scaling=Llama3RoPE(4.0, 64), base=100.0, interleaved=True, offset=90),
    _rotary("LongRoPE, short", (5, 4), scaling=LongRoPE((1.0, 1.5), (2.0, 3.0), 64), offset=59),
    _rotary("LongRoPE, long", (5, 4), scaling=LongRoPE((1.0, 1.5), (2.0, 3.0), 64, 8.0), offset=60),
    _rotary("sections", (2, 3, 5, 12), {"positions": lambda rng: rng.integers(0, 99, (2, 1, 5, 3))},
            sections=(1, 3, 2)),
    _rotary("sections of a text", (3, 5, 6), sections=(1, 2), offset=3),
    _rotary("rows and columns", (2, 5, 3, 9), {"positions": lambda rng: rng.integers(0, 99, (5, 2))}, sections=(2, 2),
            axial=True, dims=8, layout="BTHD", interleaved=True),
)  # fmt: skip

RELATIVE_CASES: tuple[Case, ...] = (
    _relative("memory, causal", {**HEADS, "position_key": (3, 7, 5)}, is_causal=True, q_offset=3),
    _relative("all distances, grouped heads, bias", {**GROUPED, "position_key": (3, 10, 5), "bias": (6, 1, 7)},
              scale=0.6),
    _relative("mask, sinks, lengths", {**GROUPED, "position_key": (3, 10, 5), "sinks": (6,)},
              {"attn_mask": bits(2, 1, 4, 7), "kv_lengths": _array(7, 4)}, q_offset=2),
    _relative("window, dropout, bias of all", {**HEADS, "position_key": (3, 10, 5), "bias": (2, 3, 4, 7)},
              window=(3, 1), dropout_p=0.3, rng=4, q_offset=3),
    _relative("no heads, causal", {**ONE, "position_key": (4, 5)}, is_causal=True),
    _relative(
        "layout",
        {**HEADS, "query": (2, 4, 3, 5), "key": (2, 7, 3, 5), "value": (2, 7, 3, 8), "position_key": (3, 10, 5)},
        layout="BTHD",
    ),
    _relative("two batch axes, one query",
              {**HEADS, "query": (2, 4, 3, 1, 5), "key": (2, 4, 3, 7, 5), "value": (2, 4, 3, 7, 8),
               "position_key": (3, 7, 5)}, q_offset=6),
)  # fmt: skip

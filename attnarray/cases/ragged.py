"""Cases of attention of packed sequences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attnarray.cases.case import Case, also, bits, normal
from attnarray.masks import Global, Window

# Sequences of 3, 0, 4 and 1 queries, and of 5, 2, 0 and 4 keys: 8 queries, 11 keys, H 4, D 3, Dv 6.
QUERIES, KEYS = np.array([0, 3, 3, 7, 8]), np.array([0, 5, 7, 7, 11])
QKV = {"query": (8, 4, 3), "key": (11, 2, 3), "value": (11, 2, 6)}
SELF = {"query": (8, 6, 4), "key": (8, 3, 4), "value": (8, 3, 2)}


def _ragged(label: str, shapes: Mapping[str, tuple[int, ...]], keys: bool = True, **options: object) -> Case:
    bounds = {"cu_seqlens_q": lambda rng: QUERIES, **({"cu_seqlens_k": lambda rng: KEYS} if keys else {})}
    drawn = {name: make for name, make in options.items() if callable(make)}
    others = {name: value for name, value in options.items() if not callable(value)}
    return Case("ragged_attention", label, also(normal(**shapes), **bounds, **drawn), others)


RAGGED_CASES: tuple[Case, ...] = (
    _ragged("plain", QKV),
    _ragged("of themselves, causal", SELF, keys=False, is_causal=True),
    _ragged("causal, end", QKV, is_causal=True, softcap=2.0, scale=0.7),
    _ragged("causal, start", QKV, is_causal=True, align="start", window=(2, None)),
    _ragged("bias, sinks", {**QKV, "bias": (4, 8, 5), "sinks": (4,)}),
    _ragged("bias of all heads", {**QKV, "bias": (1, 8, 6)}, is_causal=True),
    _ragged("mask", SELF, keys=False, attn_mask=Window(1, 0) | Global(1)),
    _ragged("dropout mask", QKV, dropout_p=0.3, dropout_mask=bits(4, 8, 5)),
)

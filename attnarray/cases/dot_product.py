"""Cases of dot-product attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.attention.dot_product.partial import Partial
from attnarray.cases.case import Arrays, Case, also, bits, normal
from attnarray.masks import Blocks, Causal, Global, Predicate, Prefix, Strided, Tree, Window

QKV = {"query": (2, 4, 5, 3), "key": (2, 4, 7, 3), "value": (2, 4, 7, 6)}  # B 2, H 4, T 5, S 7, D 3, Dv 6
GROUPED = {"query": (2, 6, 5, 4), "key": (2, 3, 7, 4), "value": (2, 3, 7, 1)}


def _spread(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Arrays]:
    """Queries twice as large, so that the scores are spread out and the weights far from uniform."""
    make = normal(**shapes)
    return lambda rng: {name: array * (2.0 if name == "query" else 1.0) for name, array in make(rng).items()}


def _integers(*values: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.array(values)


def _sdpa(
    label: str,
    shapes: Mapping[str, tuple[int, ...]] = QKV,
    drawn: Mapping[str, Callable[[np.random.Generator], Any]] | None = None,
    **options: Any,
) -> Case:
    return Case("scaled_dot_product_attention", label, also(_spread(**shapes), **(drawn or {})), options)


def _some_rows_masked(rng: np.random.Generator) -> np.ndarray:
    mask = rng.random((2, 1, 5, 7)) < 0.5
    mask[:, :, 1, :] = False
    return mask


def _parts(rng: np.random.Generator) -> tuple[Partial, ...]:
    return tuple(Partial(rng.standard_normal((2, 3, 4, 5)), 2 * rng.standard_normal((2, 3, 4))) for _ in range(3))


DOT_PRODUCT_CASES: tuple[Case, ...] = (
    _sdpa("plain"),
    _sdpa("two axes", {"query": (5, 3), "key": (7, 3), "value": (7, 2)}, is_causal=True, q_offset=2),
    _sdpa("three axes", {"query": (2, 5, 3), "key": (2, 7, 3), "value": (2, 7, 4)}, {"kv_lengths": _integers(4, 7)}),
    _sdpa(
        "five axes", {"query": (2, 3, 4, 5, 6), "key": (2, 3, 2, 7, 6), "value": (2, 3, 2, 7, 1), "bias": (3, 1, 5, 7)}
    ),
    _sdpa("causal, scale", is_causal=True, scale=0.3),
    _sdpa("causal, bottom right", is_causal=True, q_offset=2),
    _sdpa("offset per batch", {**QKV}, {"q_offset": _integers(0, 3)}, is_causal=True),
    _sdpa("window", window=(2, 1)),
    _sdpa("window, one side", window=(None, 0), q_offset=1),
    _sdpa("lengths", QKV, {"kv_lengths": _integers(3, 6)}),
    _sdpa(
        "all constraints",
        QKV,
        {"attn_mask": bits(4, 5, 7), "kv_lengths": _integers(6, 5)},
        is_causal=True,
        q_offset=2,
        window=(4, None),
    ),
    _sdpa("window or global", attn_mask=Window(1, 1) | Global(1)),
    _sdpa("prefix or causal", QKV, {"attn_mask": lambda rng: Causal() | Prefix(np.array([3, 0]))}, q_offset=1),
    _sdpa("not, blocks", GROUPED, {"attn_mask": lambda rng: ~Strided(3) & Blocks(rng.random((6, 3, 3)) < 0.7, (2, 3))}),
    _sdpa("tree", attn_mask=Tree(np.array([-1, 0, 0, 2, 1]), 2), q_offset=2),
    _sdpa("predicate", attn_mask=Predicate(lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + h) % 3 != 0)),
    _sdpa("fully masked rows", QKV, {"attn_mask": _some_rows_masked}),
    _sdpa("grouped heads", GROUPED, is_causal=True),
    _sdpa("one key head", {**GROUPED, "key": (2, 1, 7, 4), "value": (2, 1, 7, 3)}),
    _sdpa(
        "layout BTHD",
        {"query": (2, 5, 6, 4), "key": (2, 7, 3, 4), "value": (2, 7, 3, 1)},
        {"attn_mask": bits(5, 7)},
        layout="BTHD",
    ),
    _sdpa("bias", {**QKV, "bias": (2, 4, 5, 7)}),
    _sdpa("bias over heads", {**QKV, "bias": (4, 1, 7)}, is_causal=True),
    _sdpa("bias over batches", {**QKV, "bias": (2, 1, 1, 7)}),
    _sdpa("softcap", {**QKV, "bias": (5, 7)}, softcap=1.5),
    _sdpa("sinks", {**QKV, "sinks": (4,)}, window=(0, 1)),
    _sdpa("dropout", GROUPED, {}, dropout_p=0.4, rng=11, is_causal=True),
    _sdpa("dropout mask", QKV, {"dropout_mask": bits(2, 4, 5, 7)}, dropout_p=0.25),
    _sdpa(
        "everything",
        {**GROUPED, "bias": (6, 5, 7), "sinks": (6,)},
        {"attn_mask": bits(2, 1, 5, 7, keep=0.8), "kv_lengths": _integers(7, 5)},
        is_causal=True,
        q_offset=3,
        window=(5, 2),
        softcap=2.0,
        dropout_p=0.2,
        rng=5,
    ),
    Case("attention_partial", "first part", _spread(**QKV), {"is_causal": True, "q_offset": 3}),
    Case(
        "attention_partial",
        "later part, some rows empty",
        also(_spread(**GROUPED), kv_lengths=_integers(9, 12)),
        {"is_causal": True, "q_offset": 7, "kv_offset": 8},
    ),
    Case(
        "attention_partial", "sinks, dropout", _spread(**QKV, sinks=(4,)), {"dropout_p": 0.3, "rng": 3, "kv_offset": 5}
    ),
    Case("attention_partial", "bias", _spread(**QKV, bias=(4, 1, 7)), {"is_causal": True, "q_offset": 3}),
    Case("merge_partials", "three parts", lambda rng: {"partials": _parts(rng)}),
)

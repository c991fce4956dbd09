"""Cases of sparse and hard attention. Supports and choices are such that small changes of inputs do not change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, bits, normal

Draws = Mapping[str, Callable[[np.random.Generator], Any]]
Shapes = Mapping[str, tuple[int, ...]]

HEADS = {"query": (2, 6, 5, 4), "key": (2, 3, 7, 4), "value": (2, 3, 7, 8)}  # B 2, H 6 over 3, T 5, S 7, D 4, Dv 8
BATCH = {"query": (2, 3, 5), "key": (2, 4, 5), "value": (2, 4, 6)}  # B 2, T 3, S 4, D 5, Dv 6
PLAIN = {name: shape[1:] for name, shape in BATCH.items()}


def _sparse(function: str, label: str, shapes: Shapes, drawn: Draws | None = None, **options: Any) -> Case:
    return Case(function, label, also(normal(**shapes), **(drawn or {})), options)


def _lengths(*numbers: Any) -> Draws:
    return {"kv_lengths": lambda rng: np.array(numbers)}


SPARSE_CASES: tuple[Case, ...] = (
    Case("sparsemax", "last axis", normal(x=(2, 3, 5))),
    Case("sparsemax", "axis 1", normal(x=(2, 3, 5)), {"axis": 1}),
    Case("sparsemax", "mask", also(normal(x=(2, 3, 5)), mask=bits(3, 5, keep=0.4))),
    Case("entmax", "alpha 1.5", normal(x=(2, 3, 5))),
    Case("entmax", "alpha 1.5, axis 0, mask", also(normal(x=(4, 3)), mask=bits(4, 3)), {"axis": 0}),
    Case("entmax", "alpha 2", normal(x=(3, 5)), {"alpha": 2.0}),
    Case("entmax", "alpha 1.2, axis 1", normal(x=(2, 3, 5)), {"alpha": 1.2, "axis": 1}),
    Case("entmax", "alpha 3, mask", also(normal(x=(2, 3, 5)), mask=bits(3, 5)), {"alpha": 3.0}),
    _sparse("sparsemax_attention", "plain", HEADS),
    _sparse("sparsemax_attention", "two axes, causal", PLAIN, is_causal=True, q_offset=1),
    _sparse("sparsemax_attention", "mask, window", HEADS, {"attn_mask": bits(2, 1, 5, 7)}, window=(3, 1), scale=1.5),
    _sparse("sparsemax_attention", "bias, softcap", {**HEADS, "bias": (6, 1, 7)}, softcap=2.0, scale=1.0),
    _sparse("sparsemax_attention", "everything", {**HEADS, "bias": (2, 6, 5, 7)}, _lengths(7, 4), is_causal=True,
            q_offset=2, window=(6, 0), dropout_p=0.3, rng=4, scale=1.1, softcap=4.0),
    _sparse("sigmoid_attention", "shift, bias", {**HEADS, "shift": (6,), "bias": (6, 1, 7)}, is_causal=True,
            q_offset=2),
    _sparse("sigmoid_attention", "mask, dropout, lengths", HEADS,
            {"attn_mask": bits(2, 1, 5, 7), "dropout_mask": bits(2, 6, 5, 7), **_lengths(7, 4)},
            dropout_p=0.3, softcap=2.0),
    _sparse("sigmoid_attention", "two axes", PLAIN, scale=0.4),
    _sparse("entmax_attention", "plain", HEADS, scale=1.5),
    _sparse("entmax_attention", "layout, lengths", {"query": (2, 5, 6, 4), "key": (2, 7, 3, 4), "value": (2, 7, 3, 8)},
            _lengths(7, 3), layout="BTHD", scale=1.5),
    _sparse("entmax_attention", "batch, bias", {**BATCH, "bias": (3, 4)}, alpha=1.3),
    _sparse("entmax_attention", "everything", {**BATCH, "bias": (2, 1, 4)}, _lengths(4, 3), is_causal=True, q_offset=1,
            softcap=3.0, dropout_p=0.3, rng=5),
)  # fmt: skip


def _noise(*shape: int) -> Draws:
    """Gumbel noise."""
    return {"noise": lambda rng: -np.log(-np.log(rng.uniform(0.001, 0.999, shape)))}


def _hard(estimator: str, label: str, shapes: Shapes, drawn: Draws | None = None, **options: Any) -> Case:
    made = also(normal(**shapes), **(drawn or {}))
    return Case("hard_attention", f"{estimator}: {label}", made, {"estimator": estimator, **options})


# The gradient of "straight_through" is by design not that of its forward: it has its own tests.
HARD_CASES: tuple[Case, ...] = (
    _hard("reinforce", "plain", HEADS, _noise(2, 6, 5, 7)),
    _hard("reinforce", "batch, mask", BATCH, {**_noise(2, 3, 4), "attn_mask": bits(2, 3, 4)}, scale=1.5),
    _hard("gumbel", "plain", HEADS, _noise(2, 6, 5, 7)),
    _hard("gumbel", "everything", {**HEADS, "bias": (6, 1, 7)}, {**_noise(5, 7), **_lengths(7, 4)}, temperature=0.6,
          is_causal=True, q_offset=2, softcap=2.0),
    _hard("argmax", "two axes", PLAIN, window=(1, 1)),
    _hard("argmax", "layout, bias", {"query": (2, 5, 6, 4), "key": (2, 7, 3, 4), "value": (2, 7, 3, 8),
          "bias": (2, 6, 1, 7)}, _lengths(7, 3), layout="BTHD"),
    _hard("top_k", "three of seven", HEADS, k=3),
    _hard("top_k", "everything", {**HEADS, "bias": (2, 1, 5, 7)}, _lengths(7, 4), k=2, is_causal=True, q_offset=1,
          window=(3, None), softcap=3.0, scale=0.8),
)  # fmt: skip

BLOCKS = {"query": (2, 4, 11, 3), "key": (2, 2, 11, 3), "value": (2, 2, 11, 6)}  # B 2, H 4 over 2, T = S 11, D 3, Dv 6
GATED = {**BLOCKS, "gates": (2, 4, 11, 3)}


def _blocks(label: str, shapes: Shapes, **options: Any) -> Case:
    return Case("block_topk_attention", label, normal(**shapes), {"top_k": 2, "block_size": 3, **options})


BLOCK_TOPK_CASES: tuple[Case, ...] = (
    _blocks("plain", {**BLOCKS, "query": (2, 4, 5, 3)}, scale=0.7),
    _blocks("causal", BLOCKS, is_causal=True),
    _blocks("causal, blocks of queries", BLOCKS, is_causal=True, by_block=True),
    _blocks("gates", GATED, window=2),
    _blocks("gates, causal", GATED, is_causal=True, window=2),
    _blocks("gates, causal, blocks of queries", GATED, is_causal=True, window=1, by_block=True),
)

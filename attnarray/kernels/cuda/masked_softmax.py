"""From dot products to attention weights and back. Reference: attention/normalizers.py; source: masked_softmax.cu."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels import UNBOUNDED
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import plan_rows
from attnarray.kernels.cuda.loader import Kernel, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

RULES = "rr" + "piiii" * 2 + "iiipp" + "iii"
FORWARD = Kernel("masked_softmax.cu", "masked_softmax", "pppi" + RULES)
BACKWARD = Kernel("masked_softmax.cu", "masked_softmax_backward", "pppppi" + RULES)


def masked_softmax(scores: Any, modifiers: Any) -> tuple[Any, Any]:
    """See the reference. Overwrites `scores` with the weights where its layout allows."""
    how, rows = ga.stored(scores, wide_only=True), ga.contiguous(scores)
    count, lse = math.prod(scores.shape[:3]), empty(scores.shape[:3], scores.dtype)
    sinks = None if modifiers.sinks is None else ga.contiguous_like(modifiers.sinks, scores)
    grid = plan_rows(count, scores.shape[3], how.itemsize)
    launch(FORWARD, how.name, grid, rows, lse, sinks, count, *_rules(scores, modifiers))
    return rows, lse


def masked_softmax_backward(scores: Any, dweights: Any, lse: Any, delta: Any, modifiers: Any) -> tuple[Any, Any, Any]:
    """See the reference. Overwrites `scores` with the weights and `dweights` with the gradient of the scores."""
    how, rows, drows = ga.stored(scores, wide_only=True), ga.contiguous(scores), ga.contiguous_like(dweights, scores)
    count, dmodified = (
        math.prod(scores.shape[:3]),
        None if modifiers.bias is None else empty(scores.shape, scores.dtype),
    )
    per_row = ga.contiguous_like(lse, scores), ga.contiguous_like(delta, scores)
    grid = plan_rows(count, scores.shape[3], how.itemsize)
    launch(BACKWARD, how.name, grid, rows, drows, *per_row, dmodified, count, *_rules(scores, modifiers))
    return rows, drows, dmodified


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    if dtype in ("float32", "float64"):
        load((FORWARD, BACKWARD), dtype)


def _rules(dots: Any, modifiers: Any) -> tuple[Any, ...]:
    """The modifiers as arguments of the kernels."""
    _, heads, queries, keys = dots.shape
    bias = (
        modifiers.bias
        if modifiers.bias is None or modifiers.bias.dtype == dots.dtype
        else modifiers.bias.astype(dots.dtype)
    )
    same = isinstance(modifiers.q_offset, int)
    return (
        modifiers.scale,
        modifiers.softcap or 0.0,
        *table(bias),
        *table(modifiers.mask),
        UNBOUNDED if modifiers.left is None else modifiers.left,
        UNBOUNDED if modifiers.right is None else modifiers.right,
        modifiers.q_offset if same else 0,
        None if same else long(modifiers.q_offset),
        None if modifiers.kv_lengths is None else long(modifiers.kv_lengths),
        heads,
        queries,
        keys,
    )


def table(array: Any) -> tuple[Any, ...]:
    """An array over the scores, and its strides in numbers: 0 along axes where it is the same. Never a copy."""
    if array is None:
        return None, 0, 0, 0, 0
    pairs = zip(array.shape, array.strides, strict=True)
    return array, *(0 if size == 1 else stride // array.itemsize for size, stride in pairs)


def long(array: Any) -> Any:
    return ga.contiguous(array.astype(np.int64, copy=False))

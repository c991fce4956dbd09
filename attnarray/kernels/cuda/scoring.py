"""From dot products to attention weights and back. Reference: attention/scoring.py; source: scoring.cu."""

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
FORWARD = Kernel("scoring.cu", "weights_from_dots", "pppi" + RULES)
BACKWARD = Kernel("scoring.cu", "gradients_of_dots", "pppppi" + RULES)


def weights_from_dots(dots: Any, scoring: Any) -> tuple[Any, Any]:
    """See the reference. Overwrites `dots` with the weights where its layout allows."""
    how, rows = ga.stored(dots, wide_only=True), ga.contiguous(dots)
    count, lse = math.prod(dots.shape[:3]), empty(dots.shape[:3], dots.dtype)
    sinks = None if scoring.sinks is None else ga.beside(scoring.sinks, dots)
    grid = plan_rows(count, dots.shape[3], how.itemsize)
    launch(FORWARD, how.name, grid, rows, lse, sinks, count, *_rules(dots, scoring))
    return rows, lse


def gradients_of_dots(dots: Any, dweights: Any, lse: Any, delta: Any, scoring: Any) -> tuple[Any, Any, Any]:
    """See the reference. Overwrites `dots` with the weights and `dweights` with the gradient of the dot products."""
    how, rows, drows = ga.stored(dots, wide_only=True), ga.contiguous(dots), ga.beside(dweights, dots)
    count, dscores = math.prod(dots.shape[:3]), None if scoring.bias is None else empty(dots.shape, dots.dtype)
    per_row = ga.beside(lse, dots), ga.beside(delta, dots)
    grid = plan_rows(count, dots.shape[3], how.itemsize)
    launch(BACKWARD, how.name, grid, rows, drows, *per_row, dscores, count, *_rules(dots, scoring))
    return rows, drows, dscores


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    if dtype in ("float32", "float64"):
        load((FORWARD, BACKWARD), dtype)


def _rules(dots: Any, scoring: Any) -> tuple[Any, ...]:
    """The scoring as the kernels take it."""
    _, heads, queries, keys = dots.shape
    bias = scoring.bias if scoring.bias is None or scoring.bias.dtype == dots.dtype else scoring.bias.astype(dots.dtype)
    same = isinstance(scoring.q_offset, int)
    return (
        scoring.scale,
        scoring.softcap or 0.0,
        *table(bias),
        *table(scoring.mask),
        UNBOUNDED if scoring.left is None else scoring.left,
        UNBOUNDED if scoring.right is None else scoring.right,
        scoring.q_offset if same else 0,
        None if same else long(scoring.q_offset),
        None if scoring.kv_lengths is None else long(scoring.kv_lengths),
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

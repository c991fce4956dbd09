"""Dropout of elements, by the bits of a seed or by a mask. Reference: ops/dropout.py; source: dropout.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import plan_numbers
from attnarray.kernels.cuda.loader import Kernel, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

BY_SEED = Kernel("dropout.cu", "drop_by_seed", "ppiwwir")
BY_MASK = Kernel("dropout.cu", "drop_by_mask", "pppir")
WORD = 0xFFFFFFFF


def drop(x: Any, p: float, seed: Any, mask: Any) -> Any:
    """See the reference."""
    how, given, out = ga.stored(x), ga.contiguous(x), empty(x.shape, x.dtype)
    factor = 1.0 / (1.0 - p) if p < 1 else 0.0
    grid = plan_numbers(x.size, how.stored_itemsize)
    if mask is not None:
        launch(BY_MASK, how.name, grid, given, ga.flags(mask, x.shape), out, x.size, factor)
    else:
        limit = round(p * 2**32)
        launch(BY_SEED, how.name, grid, given, out, x.size, seed & WORD, seed >> 32, limit, factor)
    return out


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    load((BY_SEED, BY_MASK), dtype)

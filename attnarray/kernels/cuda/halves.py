"""Arrays of float32 as two float16 for each number, for wgmma products. Source: halves.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.cuda.grid import BLOCK, WARP, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, empty, launch

MAXIMA = Kernel("halves.cu", "head_maxima", "p" + "iii" + "p" + "iiii")
SPLIT = Kernel("halves.cu", "split_heads", "p" + "iii" + "pi" + "p" + "pi" + "iiiii")
MOST_PARTS = 64
CHUNKS = 8 * BLOCK  # of four numbers, at least, for each block
NONE = (None,) * 5


def plan(pairs: int, rows: int, width: int, group: int) -> Grid:
    """A block for each part of the rows of each of the `pairs` of a batch and a head of keys."""
    parts = min(max(ceil_div(group * rows * width // 4, CHUNKS), 1), MOST_PARTS)
    return Grid((pairs, parts, 1), (BLOCK, 1, 1), 4 * BLOCK // WARP)


def split_halves(
    arrays: tuple[Any, ...], strides: tuple[int, ...], dims: tuple[int, int], kv_heads: int
) -> tuple[Any, ...]:
    """The halves of q, k, v and, if it is not None, dout, rows padded to `dims`; and the divisors of heads."""
    pairs = arrays[0].shape[0] * kv_heads
    units = empty((len(arrays), pairs), np.float32)
    halves = []
    for number, (x, filled) in enumerate(zip(arrays, (dims[0], dims[0], dims[1], dims[1]), strict=True)):
        halves.append(
            None if x is None else _split(x, strides[3 * number : 3 * number + 3], filled, kv_heads, number, units)
        )
    return (*halves, units)


def _split(x: Any, strides: tuple[int, ...], filled: int, kv_heads: int, number: int, units: Any) -> Any:
    batch, heads, rows, width = x.shape
    pairs, group = batch * kv_heads, heads // kv_heads
    halves = empty((batch, heads, rows, filled), np.float32)  # as many bytes
    grid = plan(pairs, rows, width, group)
    maxima = empty(grid.blocks[:2], np.float32)
    launch(MAXIMA, "float32", grid, x, *strides, maxima, kv_heads, group, rows, width)
    parts = grid.blocks[1]
    launch(
        SPLIT, "float32", grid._replace(shared=0), x, *strides, maxima, parts, halves, units, number * pairs,
        kv_heads, group, rows, width, filled,
    )  # fmt: skip
    return halves

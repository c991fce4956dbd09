"""Additive scores and their gradients. Reference: attention/alignment/additive_core.py; source: additive.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import BLOCK, MOST_BLOCKS_ALONG_Y, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

SCORES = Kernel("additive.cu", "additive_scores", "ppppiiii")
SLOPES = Kernel("additive.cu", "additive_slopes", "ppppppiiiiii")

# As in additive.cu: a tile of pairs and its features at a time; the rows and features of a block of gradients.
TILE, DEPTH = 32, 32
ROWS, THREADS, STEP = 8, 128, 32


def additive_scores(q: Any, k: Any, w: Any) -> Any:
    """See the reference."""
    how = ga.stored(q, wide_only=True)
    batch, _, queries, features = q.shape
    keys, out = k.shape[2], empty((*q.shape[:3], k.shape[2]), q.dtype)
    grid, given = plan_scores(batch, queries, keys, how.itemsize), [ga.beside(array, q) for array in (q, k, w)]
    launch(SCORES, how.name, grid, *given, out, queries, keys, features, ceil_div(queries, TILE))
    return out


def additive_scores_backward(dscores: Any, q: Any, k: Any, w: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    dscores, q, k, w = (ga.beside(array, q) for array in (dscores, q, k, w))
    queries, keys = q.shape[2], k.shape[2]
    blocks = plan_slopes(q.shape[0], queries, q.shape[3], 1).blocks[0]
    partial = empty((blocks, w.shape[0]), q.dtype)
    dq = _slopes(dscores, q, k, w, partial, (keys, 1))
    return dq, _slopes(dscores, k, q, w, None, (1, keys)), ga.column_sums(partial, q)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    if dtype in ("float32", "float64"):
        load((SCORES, SLOPES, ga.COLUMN_SUMS), dtype)


def plan_scores(batch: int, queries: int, keys: int, itemsize: int) -> Grid:
    """A block for each tile of pairs, with its features in shared memory."""
    shared = (2 * TILE * (DEPTH + 1) + DEPTH) * itemsize
    return _checked(Grid((batch * ceil_div(queries, TILE), ceil_div(keys, TILE), 1), (BLOCK, 1, 1), shared))


def plan_slopes(batch: int, rows: int, features: int, itemsize: int) -> Grid:
    """A block for some rows and features; it goes over all the others."""
    blocks = batch * ceil_div(rows, ROWS), ceil_div(features, THREADS), 1
    return _checked(Grid(blocks, (THREADS, 1, 1), ROWS * STEP * itemsize))


def _checked(grid: Grid) -> Grid:
    if grid.blocks[1] > MOST_BLOCKS_ALONG_Y:
        raise Declined(f"{grid.blocks[1]} tiles along one axis, at most {MOST_BLOCKS_ALONG_Y}")
    return grid


def _slopes(dscores: Any, x: Any, z: Any, w: Any, partial: Any, strides: tuple[int, int]) -> Any:
    """The gradient of the rows x, summed over the others z; `strides` of rows and others in `dscores`."""
    how, dx = ga.stored(x, wide_only=True), empty(x.shape, x.dtype)
    batch, _, rows, features = x.shape
    sizes = rows, z.shape[2], features, *strides, ceil_div(rows, ROWS)
    launch(SLOPES, how.name, plan_slopes(batch, rows, features, how.itemsize), dscores, x, z, w, dx, partial, *sizes)
    return dx

"""Additive scores and their gradients. Reference: attention/alignment/additive.py; source: additive.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import BLOCK, MOST_BLOCKS_ALONG_Y, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, empty, launch, multiprocessors
from attnarray.kernels.cuda.loader import warmup as load

SCORES = Kernel("additive.cu", "additive_scores", "ppppiiii")
SLOPES = Kernel("additive.cu", "additive_slopes", "pppppp" + "i" * 7)
GRADIENTS = Kernel("additive.cu", "additive_gradients", "pppiii")

# As in additive.cu: a tile of pairs and its features at a time.
TILE, DEPTH, APART = 64, 32, 36
# The warps of a block of gradients, its features, others at a time, and the rows of a warp by the bytes of a number.
WARPS, WIDTH, STEP, ROWS = 4, 64, 32, {4: 16, 8: 8}
MULTIPROCESSOR_BLOCKS = 8  # enough to keep all of them busy until the end


def additive_scores(q: Any, k: Any, w: Any) -> Any:
    """See the reference."""
    how = ga.stored(q, wide_only=True)
    batch, _, queries, features = q.shape
    keys, out = k.shape[2], empty((*q.shape[:3], k.shape[2]), q.dtype)
    grid, given = plan_scores(batch, queries, keys, how.itemsize), [ga.contiguous_like(array, q) for array in (q, k, w)]
    launch(SCORES, how.name, grid, *given, out, queries, keys, features, ceil_div(queries, TILE))
    return out


def additive_scores_backward(dscores: Any, q: Any, k: Any, w: Any) -> tuple[Any, Any, Any]:
    """See the reference. One pass over all pairs; the sums of its blocks are added in a fixed order."""
    how = ga.stored(q, wide_only=True)
    dscores, q, k, w = (ga.contiguous_like(array, q) for array in (dscores, q, k, w))
    (batch, _, queries, features), keys = q.shape, k.shape[2]
    swapped = keys > queries  # blocks have many rows each, so these are the longer ones
    (x, rows), (z, others) = ((k, keys), (q, queries)) if swapped else ((q, queries), (k, keys))
    grid, each = plan_slopes(batch, rows, others, features, how.itemsize, multiprocessors(int(q.data.device_id)))
    row_blocks = ceil_div(rows, WARPS * ROWS[how.itemsize])
    dx = empty((grid.blocks[2], batch * rows, features), q.dtype)
    dz = empty((row_blocks, batch * others, features), q.dtype)
    dw = empty((grid.blocks[2] * grid.blocks[0] * WARPS, features), q.dtype)
    apart = (1, keys) if swapped else (keys, 1)
    sizes = rows, others, features, *apart, max(row_blocks, 1), each
    launch(SLOPES, how.name, grid, dscores, x, z, dx, dz, dw, *sizes)
    sums = _added(dx, w, x), _added(dz, w, z)
    dq, dk = sums[::-1] if swapped else sums
    return dq, dk, ga.column_sums(dw, q)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    if dtype in ("float32", "float64"):
        load((SCORES, SLOPES, GRADIENTS, ga.COLUMN_SUMS), dtype)


def plan_scores(batch: int, queries: int, keys: int, itemsize: int) -> Grid:
    """A block for each tile of pairs, with its features in shared memory."""
    shared = (2 * TILE * APART + DEPTH) * itemsize
    return _checked(Grid((batch * ceil_div(queries, TILE), ceil_div(keys, TILE), 1), (BLOCK, 1, 1), shared))


def plan_slopes(batch: int, rows: int, others: int, features: int, itemsize: int, processors: int) -> tuple[Grid, int]:
    """A block for some rows and features and a range of others; also how many others a range has."""
    tiles, across = batch * ceil_div(rows, WARPS * ROWS[itemsize]), ceil_div(features, WIDTH)
    steps = max(ceil_div(others, STEP), 1)
    ranges = min(max(MULTIPROCESSOR_BLOCKS * processors // max(tiles * across, 1), 1), steps)
    each = ceil_div(steps, ranges)
    shared = (STEP * WIDTH * (1 + WARPS) + WARPS * ROWS[itemsize] * STEP) * itemsize
    return _checked(Grid((tiles, across, ceil_div(steps, each)), (32 * WARPS, 1, 1), shared)), each * STEP


def _checked(grid: Grid) -> Grid:
    if max(grid.blocks[1:]) > MOST_BLOCKS_ALONG_Y:
        raise Declined(f"{max(grid.blocks[1:])} tiles along one axis, at most {MOST_BLOCKS_ALONG_Y}")
    return grid


def _added(partial: Any, w: Any, like: Any) -> Any:
    """The gradient of an array from its parts (P, B R, A)."""
    (parts, rows, features), out = partial.shape, empty(like.shape, like.dtype)
    grid = Grid((ceil_div(rows, 4), 1, 1), (64, 4, 1))
    launch(GRADIENTS, ga.stored(like).name, grid, partial, w, out, parts, rows, features)
    return out

"""Softmax over segments, their sums, and the gradient of an embedding, which is one. Source: segments.cu.

References: ops/segments.py and ops/embedding.py. CuPy sorts the entries, so each sum has one block: the same bits each
time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import BLOCK, MOST_BLOCKS, MOST_BLOCKS_ALONG_Y, WARP, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, cupy, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

FORWARD = Kernel("segments.cu", "segment_softmax_forward", "pppppiiii")
BACKWARD = Kernel("segments.cu", "segment_softmax_backward", "pppppiiii")
SUMS = Kernel("segments.cu", "sum_segments", "ppppiiii")
STRIPS = BLOCK // WARP


def segment_softmax_forward(x: Any, segments: Any, count: int, mask: Any) -> Any:
    """See the reference."""
    how, (batches, entries, columns) = ga.stored(x), _sizes(x)
    order, starts = sorted_by(segments, count)
    out, hidden = empty(x.shape, x.dtype), None if mask is None else ga.flags(mask, x.shape)
    grid = plan_softmax(batches, count, columns)
    launch(FORWARD, how.name, grid, ga.contiguous(x), hidden, order, starts, out, batches, count, entries, columns)
    return out


def segment_softmax_backward(dout: Any, out: Any, segments: Any, count: int) -> Any:
    """See the reference."""
    how, (batches, entries, columns) = ga.stored(out), _sizes(out)
    order, starts = sorted_by(segments, count)
    dx, given = empty(out.shape, out.dtype), (ga.contiguous_like(dout, out), ga.contiguous(out))
    grid = plan_softmax(batches, count, columns)
    launch(BACKWARD, how.name, grid, *given, order, starts, dx, batches, count, entries, columns)
    return dx


def sum_segments(x: Any, segments: Any, count: int) -> Any:
    """See the reference."""
    return _sums(x, segments, count, (*x.shape[:-2], count, x.shape[-1]))


def embedding_backward(dout: Any, indices: Any, size: int) -> Any:
    """See the reference."""
    rows = ga.contiguous(dout).reshape(math.prod(indices.shape), dout.shape[-1])
    return _sums(rows, indices.reshape(-1), size, (size, dout.shape[-1]))


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    load((FORWARD, BACKWARD, SUMS), dtype)


def plan_softmax(batches: int, count: int, columns: int) -> Grid:
    """A warp for each segment of each column and batch."""
    blocks = min(ceil_div(count, STRIPS), MOST_BLOCKS)
    return Grid((blocks, min(columns, MOST_BLOCKS_ALONG_Y), min(batches, MOST_BLOCKS_ALONG_Y)), (WARP, STRIPS, 1))


def plan_sums(batches: int, count: int, columns: int, itemsize: int) -> Grid:
    """A block for 32 columns of each segment and batch."""
    blocks = min(count, MOST_BLOCKS), ceil_div(columns, WARP), min(batches, MOST_BLOCKS_ALONG_Y)
    return Grid(blocks, (WARP, STRIPS, 1), WARP * STRIPS * itemsize)


def sorted_by(segments: Any, count: int) -> tuple[Any, Any]:
    """The entries in the order of their segments, and where each of these begins: (E,) and (count + 1,)."""
    library = cupy()
    wide = segments.astype(np.int64, copy=False)
    order = library.argsort(wide).astype(np.int64, copy=False)
    starts = library.searchsorted(wide[order], library.arange(count + 1, dtype=np.int64), side="left")
    return order, starts.astype(np.int64, copy=False)


def _sums(x: Any, segments: Any, count: int, shape: tuple[int, ...]) -> Any:
    how, (batches, entries, columns) = ga.stored(x), _sizes(x)
    order, starts = sorted_by(segments, count)
    out, grid = empty(shape, x.dtype), plan_sums(batches, count, columns, how.itemsize)
    launch(SUMS, how.name, grid, ga.contiguous(x), order, starts, out, batches, count, entries, columns)
    return out


def _sizes(x: Any) -> tuple[int, int, int]:
    """Batches, entries, columns."""
    return math.prod(x.shape[:-2]), x.shape[-2], x.shape[-1]

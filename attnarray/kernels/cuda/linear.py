"""The state of linear attention from chunk to chunk. Reference: attention/linear/chunks.py; source: linear.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import MOST_BLOCKS, MOST_BLOCKS_ALONG_Y, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, empty, launch, shared_bytes
from attnarray.kernels.cuda.loader import warmup as load

SCAN = Kernel("linear.cu", "scan_chunks", "ppppppppp" + "iiiiiii")
COLUMNS, ROWS = 16, 16  # the threads of a block, as in linear.cu


def scan_chunks(S: Any, whole: Any, x: Any, p: Any, q: Any, r: Any, reverse: bool = False) -> tuple[Any, Any, Any]:
    """See the reference."""
    how = ga.stored(x, wide_only=True)
    B, heads, _, count, C, Dv = x.shape
    Dk = S.shape[3]
    grid = plan_scan(B * heads, C, Dk, Dv, how.itemsize)
    if grid.shared > shared_bytes(int(x.data.device_id)):
        raise Declined(f"a state of {Dk} rows and chunks of {C} steps: they need {grid.shared} bytes of shared memory")
    last, states = empty(S.shape, x.dtype), empty((B, heads, 1, count, Dk, Dv), x.dtype)
    updates = x if p is None else empty(x.shape, x.dtype)
    given = (None if array is None else ga.contiguous_like(array, x) for array in (S, whole, x, p, q, r))
    decays = 0 if whole is None else whole.shape[-1]
    results = last, states, None if p is None else updates
    launch(SCAN, how.name, grid, *given, *results, B * heads, count, C, Dk, Dv, decays, int(reverse))
    return last, states, updates


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    if dtype in ("float32", "float64"):
        load((SCAN,), dtype)


def plan_scan(heads: int, size: int, depth: int, width: int, itemsize: int) -> Grid:
    """A block for 16 value columns of each key head, which goes through all chunks."""
    blocks = min(heads, MOST_BLOCKS), min(ceil_div(width, COLUMNS), MOST_BLOCKS_ALONG_Y), 1
    return Grid(blocks, (COLUMNS, ROWS, 1), (depth + size) * COLUMNS * itemsize)

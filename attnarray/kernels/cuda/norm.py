"""Layer norm and RMS norm along rows. References: ops/norm.py; source: norm.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import CHUNK_BYTES, HELD_BYTES, Grid, ceil_div, plan_rows
from attnarray.kernels.cuda.loader import Kernel, empty, launch, multiprocessors
from attnarray.kernels.cuda.loader import warmup as load_kernels
from attnarray.kernels.cuda.rows import (
    LONG,
    ONE,
    SUMS,
    RowKernel,
    are_held,
    held_grid,
    launch_rows,
    load,
    row_kernel,
    wide_grid,
    with_copies,
)

LAYER_NORM = row_kernel("norm.cu", "layer_norm_forward", "ppprpppii", ONE, 1024)
RMS_NORM = row_kernel("norm.cu", "rms_norm_forward", "pprppii", ONE, 1024)
LAYER_NORM_BACKWARD = row_kernel("norm.cu", "layer_norm_backward", "ppppppppiii", SUMS)
RMS_NORM_BACKWARD = row_kernel("norm.cu", "rms_norm_backward", "ppppppiii", SUMS)
KERNELS = (LAYER_NORM, RMS_NORM, LAYER_NORM_BACKWARD, RMS_NORM_BACKWARD)
WIDE_FORWARD = Kernel("norm_wide.cu", "norm_forward_wide", "ppprpppii")
WIDE_BACKWARD = Kernel("norm_wide.cu", "norm_backward_wide", "ppppppppiiiii")
PARAMETER_SUMS = Kernel("norm.cu", "parameter_sums", "ppppppiii")

MULTIPROCESSOR_THREADS = 512  # that run at once, as each takes up to 128 registers
WAVE_BYTES = 2**24  # of dout and x together that stay in the L2 cache
PANEL_BYTES = 64 * CHUNK_BYTES  # of a row that a block sums: PANEL in norm_wide.cu
COLUMNS, STRIP = 256, 8  # of parameter_sums: the columns of a block, and the least rows of a strip


def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    how, rows = ga.stored(x), ga.contiguous(x)
    count, width = ga.row_count(x.shape), x.shape[-1]
    out, mean, inverse = empty(x.shape, x.dtype), *(empty((*x.shape[:-1], 1), how.real) for _ in range(2))
    scale, shift = (None if array is None else ga.contiguous_like(array, x) for array in (weight, bias))
    if not _normalized_wide(how, count, width, rows, scale, shift, eps, out, mean, inverse):
        launch_rows(LAYER_NORM, how, count, width, rows, scale, shift, eps, out, mean, inverse)
    return out, mean, inverse


def layer_norm_backward(
    dout: Any, x: Any, mean: Any, inverse_deviation: Any, weight: Any, has_bias: bool
) -> tuple[Any, Any, Any]:
    """See the reference."""
    return _differentiated(LAYER_NORM_BACKWARD, dout, x, (mean, inverse_deviation), weight, has_bias)


def rms_norm_forward(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """See the reference."""
    how, rows = ga.stored(x), ga.contiguous(x)
    count, width = ga.row_count(x.shape), x.shape[-1]
    out, inverse = empty(x.shape, x.dtype), empty((*x.shape[:-1], 1), how.real)
    scale = None if weight is None else ga.contiguous_like(weight, x)
    if not _normalized_wide(how, count, width, rows, scale, None, eps, out, None, inverse):
        launch_rows(RMS_NORM, how, count, width, rows, scale, eps, out, inverse)
    return out, inverse


def rms_norm_backward(dout: Any, x: Any, inverse_rms: Any, weight: Any) -> tuple[Any, Any]:
    """See the reference."""
    return _differentiated(RMS_NORM_BACKWARD, dout, x, (inverse_rms,), weight, None)[:2]


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    load(KERNELS, dtype)
    load_kernels((WIDE_FORWARD, WIDE_BACKWARD, PARAMETER_SUMS, ga.COLUMN_SUMS), dtype)


def plan_backward(grid: Grid, width: int, itemsize: int, processors: int) -> Grid:
    """As many blocks as run at once, each of which sums the gradients of weight and bias over its rows."""
    across, together, _ = grid.threads
    at_once = processors * max(MULTIPROCESSOR_THREADS // (across * together), 1)
    shared = together * width * itemsize if together > 1 else 0
    return Grid((min(grid.blocks[0], at_once), 1, 1), grid.threads, max(grid.shared, shared))


def plan_wide(grid: Grid, count: int, row_bytes: int, with_sums: bool) -> tuple[Grid, int, int]:
    """Waves of rows, each followed by blocks that sum its columns in panels; also how many of each."""
    wave = max(min(WAVE_BYTES // (2 * row_bytes), count), 1)
    panels = ceil_div(row_bytes, PANEL_BYTES) if with_sums else 0
    return grid._replace(blocks=(ceil_div(count, wave) * (wave + panels), 1, 1)), wave, panels


def plan_parameter_sums(rows: int, width: int, processors: int) -> Grid:
    """Blocks of columns, and as many strips of rows as keep the multiprocessors busy."""
    across = ceil_div(width, COLUMNS)
    strips = max(min(8 * processors // max(across, 1), ceil_div(rows, STRIP)), 1)
    return Grid((across, strips, 1), (COLUMNS, 1, 1))


def _normalized_wide(
    how: ga.Stored, count: int, width: int, x: Any, weight: Any, bias: Any, eps: float, out: Any, *kept: Any
) -> bool:
    """Run the kernel of wide rows if they are wide and of 16 bits; with wider numbers, memory is the limit."""
    grid = wide_grid(how, width, (x, weight, bias, out), 3) if how.stored_itemsize == 2 and width > LONG else None
    if grid is None:
        return False
    blocks = min(count, multiprocessors(int(x.data.device_id)))
    grid = grid._replace(blocks=(blocks, 1, 1))
    launch(WIDE_FORWARD, how.name, grid, x, weight, bias, eps, out, *kept, count, width)
    return True


def _differentiated(
    kernel: RowKernel, dout: Any, x: Any, kept: tuple[Any, ...], weight: Any, has_bias: bool | None
) -> tuple[Any, Any, Any]:
    """dx, dweight and dbias; `has_bias` is None for a kernel without bias."""
    how, count, width = ga.stored(x), ga.row_count(x.shape), x.shape[-1]
    dx, scale = empty(x.shape, x.dtype), None if weight is None else ga.contiguous_like(weight, x)
    given = (ga.contiguous_like(dout, x), ga.contiguous(x), *(ga.contiguous(array) for array in kept))
    wanted, processors = (weight is not None, bool(has_bias)), multiprocessors(int(x.data.device_id))
    moments = (None, *given[2:]) if has_bias is None else given[2:]
    held = are_held(kernel, how, width, (*given, scale, dx))
    grid = plan_rows(count, width, how.itemsize)
    # Threads that hold their rows own columns and sum them in the same kernel; else another kernel sums columns.
    along = held or width * how.itemsize <= grid.threads[0] * HELD_BYTES
    wide = None if along else wide_grid(how, width, (*given[:2], scale, dx), 1)
    if wide:
        return dx, *_differentiated_wide(how, wide, (*given[:2], *moments, scale, dx), wanted)
    if held:
        grid = held_grid(kernel, how, count, width)
        grid = with_copies(grid, how.itemsize, 3 * kernel.chunks[how.stored_itemsize])
    apart = plan_parameter_sums(count, width, processors)
    if along and any(wanted):
        grid = plan_backward(grid, width, how.itemsize, processors)
    sums = Sums(grid.blocks[0] if along else apart.blocks[1], wanted, width, how.real)
    taken = (sums.weight_sums, sums.bias_sums) if along else (None, None)
    one = kernel.held if held else kernel.any
    launch(one, how.name, grid, *given, scale, dx, *taken[: 1 if has_bias is None else 2], sums.apart, count, width)
    if any(wanted) and not along:
        taken = (sums.weight_sums, sums.bias_sums)
        launch(PARAMETER_SUMS, how.name, apart, *given[:2], *moments, *taken, sums.apart, count, width)
    return dx, *sums.added(x)


def _differentiated_wide(
    how: ga.Stored, grid: Grid, arrays: tuple[Any, ...], wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """dweight and dbias; dx is the last of the arrays."""
    dx = arrays[-1]
    count, width = ga.row_count(dx.shape), dx.shape[-1]
    grid, wave, panels = plan_wide(grid, count, width * how.stored_itemsize, any(wanted))
    sums = Sums(ceil_div(count, wave), wanted, width, how.real)
    taken = (sums.weight_sums, sums.bias_sums, sums.apart)
    launch(WIDE_BACKWARD, how.name, grid, *arrays, *taken, wave, panels, count, width)
    return sums.added(dx)


class Sums:
    """The partial sums of weight and bias of each block, in one array (P, 0 to 2, E)."""

    def __init__(self, blocks: int, wanted: tuple[bool, bool], width: int, dtype: Any) -> None:
        self.wanted, self.width, self.apart = wanted, width, sum(wanted) * width
        self.partial: Any = None
        if any(wanted):
            self.partial = empty((blocks, self.apart), dtype)
        self.weight_sums: Any = self.partial if wanted[0] else None
        self.bias_sums: Any = self.partial[:, self.apart - width :] if wanted[1] else None

    def added(self, like: Any) -> tuple[Any, Any]:
        """dweight and dbias, or None for one that is not wanted."""
        if self.partial is None:
            return None, None
        sums = ga.column_sums(self.partial, like)
        return sums[: self.width] if self.wanted[0] else None, sums[-self.width :] if self.wanted[1] else None

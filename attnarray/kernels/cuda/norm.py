"""Layer norm and RMS norm along rows. References: ops/norm.py; source: norm.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import WARP, Grid, ceil_div, plan_rows
from attnarray.kernels.cuda.loader import Kernel, empty, launch, multiprocessors
from attnarray.kernels.cuda.loader import warmup as load

LAYER_NORM = Kernel("norm.cu", "layer_norm_forward", "ppprpppii")
RMS_NORM = Kernel("norm.cu", "rms_norm_forward", "pprppii")
LAYER_NORM_BACKWARD = Kernel("norm.cu", "layer_norm_backward", "ppppppppiii")
RMS_NORM_BACKWARD = Kernel("norm.cu", "rms_norm_backward", "ppppppiii")
KERNELS = (LAYER_NORM, RMS_NORM, LAYER_NORM_BACKWARD, RMS_NORM_BACKWARD)

MOST_SUMS = 96 * 1024  # bytes of shared memory that a block has on every architecture
SHARED_OF_MULTIPROCESSOR = 160 * 1024
THREADS_OF_MULTIPROCESSOR = 2048


def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    how, rows = ga.stored(x), ga.contiguous(x)
    count, width = ga.row_count(x.shape), x.shape[-1]
    out, mean, inverse = empty(x.shape, x.dtype), *(empty((*x.shape[:-1], 1), how.real) for _ in range(2))
    parameters = (None if array is None else ga.beside(array, x) for array in (weight, bias))
    grid = plan_rows(count, width, how.itemsize)
    launch(LAYER_NORM, how.name, grid, rows, *parameters, eps, out, mean, inverse, count, width)
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
    scale = None if weight is None else ga.beside(weight, x)
    launch(RMS_NORM, how.name, plan_rows(count, width, how.itemsize), rows, scale, eps, out, inverse, count, width)
    return out, inverse


def rms_norm_backward(dout: Any, x: Any, inverse_rms: Any, weight: Any) -> tuple[Any, Any]:
    """See the reference."""
    return _differentiated(RMS_NORM_BACKWARD, dout, x, (inverse_rms,), weight, None)[:2]


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    load((*KERNELS, ga.COLUMN_SUMS), dtype)


def plan_backward(rows: int, width: int, itemsize: int, parameters: int, processors: int) -> Grid:
    """As many blocks as run at once, each with the sums of its rows for `parameters` vectors in shared memory."""
    grid = plan_rows(rows, width, itemsize)
    across, together, _ = grid.threads
    shared = WARP * itemsize + parameters * together * width * itemsize
    if shared > MOST_SUMS:
        raise Declined(f"rows of {width} numbers: their gradients of weight and bias do not fit into shared memory")
    at_once = min(THREADS_OF_MULTIPROCESSOR // (across * together), SHARED_OF_MULTIPROCESSOR // shared)
    blocks = min(ceil_div(rows, together), processors * max(at_once, 1)) if parameters else grid.blocks[0]
    return Grid((blocks, 1, 1), grid.threads, shared)


def _differentiated(
    kernel: Kernel, dout: Any, x: Any, kept: tuple[Any, ...], weight: Any, has_bias: bool | None
) -> tuple[Any, Any, Any]:
    """dx, dweight and dbias; `has_bias` is None for a kernel that knows none."""
    how = ga.stored(x)
    count, width = ga.row_count(x.shape), x.shape[-1]
    wanted = [weight is not None, *([] if has_bias is None else [has_bias])]
    processors = multiprocessors(int(x.data.device_id))
    grid = plan_backward(count, width, how.itemsize, sum(wanted), processors)
    partial = [empty((grid.blocks[0], width), how.real) if there else None for there in wanted]
    dx, scale = empty(x.shape, x.dtype), None if weight is None else ga.beside(weight, x)
    launch(
        kernel, how.name, grid, ga.beside(dout, x), ga.contiguous(x), *(ga.contiguous(array) for array in kept),
        scale, dx, *partial, count, width, WARP * how.itemsize,
    )  # fmt: skip
    sums = [None if rows is None else ga.column_sums(rows, x) for rows in partial]
    return dx, sums[0], sums[1] if len(sums) > 1 else None

"""One step of an LSTM after its matrix products. Reference: ops/lstm_cell.py; source: lstm_cell.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import BLOCK, MOST_BLOCKS, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, cupy, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

FORWARD = Kernel("lstm_cell.cu", "lstm_cell", "ppppppii")
BACKWARD = Kernel("lstm_cell.cu", "lstm_cell_backward", "pppppppii")


def lstm_cell(products: Any, inputs: Any, c: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    how = ga.stored(products, wide_only=True)
    gates, h, cell = empty(products.shape, products.dtype), empty(c.shape, c.dtype), empty(c.shape, c.dtype)
    given = [_filled(array, like) for array, like in ((products, products), (inputs, products), (c, c))]
    launch(FORWARD, how.name, plan_cells(c.size), *given, gates, h, cell, c.size, c.shape[-1])
    return gates, h, cell


def lstm_cell_backward(dh: Any, dc: Any, gates: Any, c_before: Any, c: Any) -> tuple[Any, Any]:
    """See the reference."""
    how = ga.stored(gates, wide_only=True)
    dsums, dc_before = empty(gates.shape, gates.dtype), empty(c.shape, c.dtype)
    given = [_filled(array, like) for array, like in ((dh, c), (dc, c), (gates, gates), (c_before, c), (c, c))]
    launch(BACKWARD, how.name, plan_cells(c.size), *given, dsums, dc_before, c.size, c.shape[-1])
    return dsums, dc_before


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    if dtype in ("float32", "float64"):
        load((FORWARD, BACKWARD), dtype)


def plan_cells(count: int) -> Grid:
    """A thread for each cell."""
    return Grid((min(ceil_div(count, BLOCK), MOST_BLOCKS), 1, 1), (BLOCK, 1, 1))


def _filled(array: Any, like: Any) -> Any:
    whole = array if array.shape == like.shape else cupy().broadcast_to(array, like.shape)
    return ga.contiguous_like(whole, like)

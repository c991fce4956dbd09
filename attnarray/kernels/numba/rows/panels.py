"""Weights packed in panels of W columns, the B of matrix products. Parallel over the panels. Scratch: W addresses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import copy
from attnarray.kernels.numba.vector.lanes import lanes, tile_size
from attnarray.kernels.numba.vector.memory import address_of, ahead, keep, pointer
from attnarray.kernels.numba.vector.transpose import load_transposed, whole_squares

EACH = 0.5  # nanoseconds for each number


class Packing(NamedTuple):
    """A call; the numbers of a row of the matrix are contiguous, or those of a column."""

    rows: int
    columns: int
    row_step: int
    column_step: int
    matrix: Numbers
    panels: Numbers  # (columns / W, rows, W)


def pack_panels(matrix: Any, real: Any, panels: Any = None) -> Any:
    """A matrix (R, columns) as (panels, R, W): the B of products over its rows. The last panel is padded with 0."""
    width, matrix = tile_size(real.itemsize * 8)[0], ra.aligned(matrix, real)
    if real.itemsize not in matrix.strides or min(matrix.strides) < 0:
        matrix = np.ascontiguousarray(matrix)
    (rows, columns), count = matrix.shape, -(-matrix.shape[1] // width)
    panels = np.empty((count, rows, width), real) if panels is None else panels
    row_step, column_step = (stride // real.itemsize for stride in matrix.strides)
    call = Packing(rows, columns, row_step, column_step, matrix, panels)
    split_rows(pack_some, count, ra.nanoseconds(matrix.size, EACH, real), *pack(call, real))
    return panels


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    pack_some(0, 0, *pack(empty_call(Packing), np.dtype(dtype)))


def pack_some(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The panels [first, past)."""
    c = unpack(Packing, integers, numbers)
    width = lanes(c.panels)
    array = np.empty(width, np.int64)
    addresses, squares = pointer(array), whole_squares(0, c.rows, c.panels)
    for p in range(first, past):
        filled, panel = min(width, c.columns - p * width), ahead(c.panels, p * width * c.rows)
        source, done = ahead(c.matrix, p * width * c.column_step), 0
        if c.row_step == 1 and filled == width:
            for w in range(width):
                addresses[w] = address_of(ahead(source, w * c.column_step))
            load_transposed(0, squares, addresses, panel)
            done = squares
        for n in range(done, c.rows):
            row, packed = ahead(source, n * c.row_step), ahead(panel, n * width)
            if c.column_step == 1 and filled == width:
                copy(width, row, packed)
            else:
                for w in range(width):
                    packed[w] = row[w * c.column_step] if w < filled else 0
    keep(array)


pack_some = jit(pack_some)

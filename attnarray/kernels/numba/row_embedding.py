"""The gradient of the embedding: rows are added, in their order, to the rows that their indices name.

Reference: ops/embedding.py. Parallel over the columns, so that no two threads add to one number and the sums do not
depend on how many threads there are. Scratch: none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba import row_arrays as ra
from attnarray.kernels.numba.jit import EXACT, jit
from attnarray.kernels.numba.lanes import Lanes
from attnarray.kernels.numba.memory import ahead
from attnarray.kernels.numba.rows import Row, place, row_pass
from attnarray.kernels.numba.threads import split_rows

COLUMNS = 16  # that go to one thread together: a cache line in float32
EACH = 0.3  # nanoseconds for each number


def embedding_backward(dout: Any, indices: Any, size: int) -> Any:
    """See the reference."""
    real = ra.computed_in(dout)
    rows, places = ra.rows_along(dout, dout.ndim - 1, real), ra.flat(indices, np.dtype(np.int64))
    if places.size and not 0 <= places.min() <= places.max() < size:  # they may have changed since they were checked
        raise Declined(f"an index is not from 0 to {size - 1}")
    width = dout.shape[-1]
    sums = np.zeros((size, width), real)
    split_rows(
        add_rows, -(-width // COLUMNS), ra.nanoseconds(dout.size, EACH, real), width, places.size, places.ctypes.data,
        rows.address, rows.apart, sums.ctypes.data, real.type(0),
    )  # fmt: skip
    return sums.astype(dout.dtype, copy=False)


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    add_rows(0, 0, 0, 0, 0, 0, 0, 0, np.dtype(dtype).type(0))


@row_pass(vectors=2)
def add(x: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + x}


def add_rows(
    first: int, past: int, width: int, count: int, places: int, rows: int, apart: int, sums: int, like: Any
) -> None:  # fmt: skip
    """`first` and `past` count groups of columns."""
    start = first * COLUMNS
    columns = min(past * COLUMNS, width) - start
    for n in range(count):
        row = ahead(place(like, rows + n * apart), start)
        add(columns, row, ahead(place(like, sums), place(count, places)[n] * width + start))


add_rows = jit(add_rows, fastmath=EXACT)

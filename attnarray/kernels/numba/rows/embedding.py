"""The gradient of the embedding: rows are added, in their order, to the rows that their indices name.

Reference: ops/embedding.py. Parallel over the columns, so that no two threads add to one number and the sums do not
depend on how many threads there are. Scratch: where an index is frequent, what rows/sums.py says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.rows import sums as row_sums
from attnarray.kernels.numba.rows.sums import addresses, beside, move_marked, past_mark, together
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, place, row_pass

COLUMNS = 16  # that go to one thread together: a cache line in float32
EACH = 0.3  # nanoseconds for each number


def embedding_backward(dout: Any, indices: Any, size: int) -> Any:
    """See the reference."""
    real = ra.computed_in(dout)
    rows, places = ra.rows_along(dout, dout.ndim - 1, real), ra.flat(indices, np.dtype(np.int64))
    width = dout.shape[-1]
    sums = np.zeros((size, width), real)
    long = beside(places, size, sums, "an index")
    split_rows(
        add_rows, -(-width // COLUMNS), ra.nanoseconds(dout.size, EACH, real), width, places.size, places.ctypes.data,
        rows.address, rows.apart, sums.ctypes.data, *addresses(long), real.type(0),
    )  # fmt: skip
    return together(sums, long).astype(dout.dtype, copy=False)


def warmup(dtype: str) -> None:
    """Compile the kernels for one dtype."""
    row_sums.warmup()
    add_rows(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, np.dtype(dtype).type(0))


@row_pass(vectors=2)
def add(x: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + x}


def add_rows(
    first: int, past: int, width: int, count: int, places: int, rows: int, apart: int, sums: int, marks: int,
    beside: int, like: Any,
) -> None:  # fmt: skip
    """`first` and `past` count groups of columns."""
    start = first * COLUMNS
    columns = min(past * COLUMNS, width) - start
    begin = 0
    while begin < count:
        end, at = past_mark(begin, count, marks), start
        for n in range(begin, end):
            at = place(count, places)[n] * width + start
            add(columns, ahead(place(like, rows + n * apart), start), ahead(place(like, sums), at))
        move_marked(end - 1, columns, place(like, sums), at, marks, beside)
        begin = end


add_rows = jit(add_rows, fastmath=EXACT)

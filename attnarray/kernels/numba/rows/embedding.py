"""The gradient of the embedding: rows are added, in their order, to the rows that their indices name.

Reference: ops/embedding.py. Parallel over the columns, so that no two threads add to one number and the sums do not
depend on how many threads there are. Scratch: where an index is frequent, that of rows/sums.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.rows import sums as row_sums
from attnarray.kernels.numba.rows.sums import addresses, combined, long_sums, move_marked, past_mark
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Bytes, Doubles, Integers, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, row_pass

COLUMNS = 16  # that go to one thread together: a cache line in float32
EACH = 0.3  # nanoseconds for each number


def embedding_backward(dout: Any, indices: Any, size: int) -> Any:
    """See the reference."""
    real = ra.compute_dtype(dout)
    rows, indices = ra.rows_along(dout, dout.ndim - 1, real), ra.flat(indices, np.dtype(np.int64))
    width = dout.shape[-1]
    sums = np.empty((size, width), real)
    long = long_sums(indices, size, sums, "an index")
    call = Embedding(width, indices.size, size, indices, rows.address, rows.step, sums, *addresses(long))
    work = ra.nanoseconds(dout.size + sums.size, EACH, real)
    split_rows(add_rows, -(-width // COLUMNS), work, *pack(call, real))
    return combined(sums, long).astype(dout.dtype, copy=False)


def warmup(dtype: str) -> None:
    """Compile the kernels for one dtype."""
    row_sums.warmup()
    add_rows(0, 0, *pack(empty_call(Embedding), dtype))


class Embedding(NamedTuple):
    """A call of `add_rows`; marks and rows in float64 are those of `sums.py`."""

    width: int
    size: int
    height: int  # of the rows of `sums`, which need not be cleared before
    indices: Integers
    rows: Numbers
    step: int
    sums: Numbers
    marks: Bytes
    doubles: Doubles


@row_pass(vectors=2)
def add(x: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + x}


def add_rows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """`first` and `past` count groups of columns."""
    c = unpack(Embedding, integers, numbers)
    start = first * COLUMNS
    columns = min(past * COLUMNS, c.width) - start
    for row in range(c.height):
        fill(columns, ahead(c.sums, row * c.width + start), 0.0)
    begin = 0
    while begin < c.size:
        end, at = past_mark(begin, c.size, c.marks), start
        for n in range(begin, end):
            at = c.indices[n] * c.width + start
            add(columns, ahead(c.rows, n * c.step + start), ahead(c.sums, at))
        move_marked(end - 1, columns, c.sums, at, c.marks, c.doubles)
        begin = end


add_rows = jit(add_rows, fastmath=EXACT)

"""The embedding, and its gradient: rows are added, in their order, to the rows that their indices name.

Reference: ops/embedding.py. The gradient is parallel over the columns, so that no two threads add to one number and the
sums do not depend on how many threads there are. Scratch: where an index is frequent, that of rows/sums.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.rows import sums as row_sums
from attnarray.kernels.numba.rows.sums import addresses, combined, long_sums, move_marked, past_mark
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Bytes, Doubles, Integers, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import copy, fill
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, row_pass

COLUMNS = 16  # that go to one thread together: a cache line in float32
EACH = 0.3  # nanoseconds for each number
SMALL = 2**16  # numbers that NumPy copies in less time than a call takes


def embedding_forward(weight: Any, indices: Any) -> Any:
    """See the reference. Few rows, and rows that are not contiguous, are left to NumPy."""
    real, (size, width) = ra.compute_dtype(weight), weight.shape
    if weight.dtype != real:
        raise Declined(f"dtype {weight.dtype}: float32 and float64 only")
    indices = ra.flat(indices, np.dtype(np.int64))
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise Declined(f"an index is not from 0 to {size - 1}")
    if indices.size * width < SMALL or weight.strides[1] != real.itemsize or not weight.flags.aligned:
        return np.take(weight, indices, axis=0)
    rows, out = ra.matrix(weight), np.empty((indices.size, width), real)
    call = Embedding(width, indices.size, size, indices, rows.address, rows.step, out, 0, 0)
    split_rows(copy_rows, indices.size, ra.nanoseconds(out.size, EACH, real), *pack(call, real))
    return out


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
    copy_rows(0, 0, *pack(empty_call(Embedding), dtype))


class Embedding(NamedTuple):
    """A call; marks and rows in float64 are those of `sums.py`."""

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


def copy_rows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The rows of the indices [first, past)."""
    c = unpack(Embedding, integers, numbers)
    for n in range(first, past):
        copy(c.width, ahead(c.rows, c.indices[n] * c.step), ahead(c.sums, n * c.width))


add_rows, copy_rows = jit(add_rows, copy_rows, fastmath=EXACT)

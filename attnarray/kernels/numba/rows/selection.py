"""The k largest numbers of each row, without sorting.

Reference: attention/selection/top_k.py. Parallel over the rows. Scratch: none.

The k-th largest number is found by bisection over the bits of floating numbers, which are in the order of the numbers
once those of negative ones are flipped: at most 32 (64) passes that count, over a row that is in the cache, and
fewer where some bound has just k numbers above it. Then the chosen are collected from the parts that hold any.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, maximum, where
from attnarray.kernels.numba.vector.memory import ahead, pointer_at
from attnarray.kernels.numba.vector.rows import Max, Row, Scalar, Sum, row_pass
from attnarray.numpy_arrays import PLAIN

EACH = 1.0  # nanoseconds for each number
PART = 128  # numbers that are searched together for chosen ones
MOST = 2**24  # numbers of a row: counts are exact in float32


def top_k_indices(x: Any, k: int) -> Any:
    """See the reference."""
    real, count = ra.compute_dtype(x), x.shape[-1]
    if count > MOST:
        raise Declined(f"{count} numbers in a row: at most {MOST}")
    rows, chosen = ra.rows_along(x, x.ndim - 1, real), np.empty((*x.shape[:-1], k), np.int64)
    work = ra.nanoseconds(x.size, EACH, real)
    split_rows(choose, len(rows.array), work, count, rows.address, rows.stride, k, address(chosen), real.type(0))
    return chosen


def index_mask(indices: Any, keys: int) -> Any:
    """See the reference."""
    if type(indices) not in PLAIN:
        raise Declined(f"{type(indices).__name__}: plain NumPy arrays only")
    mask = np.zeros((*indices.shape[:-1], keys), np.bool_)
    rows = np.ascontiguousarray(indices, np.int64).reshape(-1, indices.shape[-1])
    mark(*rows.shape, keys, address(rows), address(mask))
    return mask


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    choose(0, 0, 0, 0, 0, 0, 0, np.dtype(dtype).type(0))
    mark(0, 0, 0, 0, 0)


@intrinsic
def sortable_bits(_context: Any, number: Any) -> Any:
    """An integer for each floating number, in the order of the numbers."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        integer = ir.IntType(number.bitwidth)
        return builder.sext(_flipped(builder, builder.bitcast(values[0], integer)), ir.IntType(64))

    return types.int64(number), emit


@intrinsic
def number_at(_context: Any, order: Any, like: Any) -> Any:
    """The number of the type of `like` that `sortable_bits` gives this integer."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        integer = ir.IntType(like.bitwidth)
        bits = values[0] if like.bitwidth == 64 else builder.trunc(values[0], integer)
        return builder.bitcast(_flipped(builder, bits), context.get_value_type(like))

    return like(types.int64, like), emit


def _flipped(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """All bits but the sign flipped where the sign is set; its own inverse."""
    width = bits.type.width
    sign = builder.ashr(bits, bits.type(width - 1))
    return builder.xor(bits, builder.and_(sign, bits.type(2 ** (width - 1) - 1)))


@row_pass(vectors=2)
def find_ends(x: Row, row_max: Max, negated_min: Max) -> dict[str, Lanes]:
    """The maximum and minus the minimum."""
    return {"row_max": maximum(x, row_max), "negated_min": maximum(x * -1.0, negated_min)}


@row_pass(vectors=2)
def count_from(x: Row, bound: Scalar, count: Sum) -> dict[str, Lanes]:
    return {"count": count + where(x >= bound, x.constant(1.0), 0.0)}


@row_pass(vectors=2)
def count_above(x: Row, bound: Scalar, count: Sum) -> dict[str, Lanes]:
    return {"count": count + where(x > bound, x.constant(1.0), 0.0)}


def kth_largest(row: Any, count: int, k: int, like: Any) -> Any:
    """Bisection: at least k numbers are >= low, fewer are >= high."""
    row_max, negated_min = find_ends(count, row)
    if k == 1:
        return row_max
    low, high = sortable_bits(-negated_min), sortable_bits(row_max) + 1
    while True:
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, where their sum may overflow
        if middle <= low:  # or high < low, in a row with NaN
            return number_at(low, like)
        number = count_from(count, row, number_at(middle, like))
        if number == k:
            return number_at(middle, like)
        if number > k:
            low = middle
        else:
            high = middle


def choose(first: int, past: int, count: int, x: int, stride: int, k: int, chosen: int, like: Any) -> None:
    for n in range(first, past):
        row, indices = pointer_at(like, x + n * stride), ahead(pointer_at(count, chosen), n * k)
        bound = kth_largest(row, count, k, like)
        ties, found = k - int(count_above(count, row, bound)), 0
        for start in range(0, count, PART):
            past_part = min(start + PART, count)
            if count_from(past_part - start, ahead(row, start), bound) == 0:
                continue
            for j in range(start, past_part):
                if row[j] > bound or (row[j] == bound and ties > 0):
                    ties -= row[j] == bound
                    indices[found] = j
                    found += 1
        for rest in range(found, k):  # of a row with NaN
            indices[rest] = -1


def mark(rows: int, count: int, keys: int, indices: int, mask: int) -> None:
    """Write 1 where an index of a row is that of a key; other indices are skipped."""
    for n in range(rows):
        row, marks = ahead(pointer_at(rows, indices), n * count), ahead(pointer_at(np.uint8(0), mask), n * keys)
        for m in range(count):
            if 0 <= row[m] < keys:
                marks[row[m]] = 1


kth_largest, choose = jit(kth_largest, choose, fastmath=EXACT)
mark = jit(mark)

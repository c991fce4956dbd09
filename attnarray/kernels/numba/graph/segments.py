"""Softmax of segments, forward and backward, and sums of segments, of entries in any order.

Reference: ops/segments.py. The entries are cut into parts, each with a maximum and a sum of its own for every segment,
which are then merged: parallel over the parts, and over entries where nothing is reduced. How many parts there are
depends on the sizes alone, so that the bits do not depend on the number of threads. Scratch: a maximum and a sum per
part and segment.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.graph.segment_passes import (
    Segments,
    add_products,
    differentiate,
    exponentiate,
    find_max,
    merge_maxima,
    merge_sums,
    scale,
)
from attnarray.kernels.numba.rows.embedding import embedding_backward
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address, empty_call, pack
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.conversion import converted

LIGHT, HEAVY, MERGE = 1.0, 2.0, 0.4  # nanoseconds for each number of a pass
SINGLE = 2**14  # for fewer numbers a second part does not pay off
MOST_PARTS = 8


def segment_softmax_forward(x: Any, segments: Any, count: int, mask: Any) -> Any:
    """See the reference."""
    real = ra.compute_dtype(x)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    numbers = ra.aligned(x, real) if mask is None else np.where(mask, ra.aligned(x, real), real.type(-math.inf))
    numbers = np.ascontiguousarray(numbers)
    sizes, indices = _sizes(x, count), ra.flat(segments, np.dtype(np.int64))
    out, maxima, sums = np.empty(x.shape, real), _empty_parts(sizes, real), _empty_parts(sizes, np.float64)
    batch, parts, entries, _, size = sizes
    light, heavy = (ra.nanoseconds(x.size, each, real) for each in (LIGHT, HEAVY))
    outside = np.zeros(batch * parts, np.int64)
    call = Segments(*sizes, indices, outside, sums, out, x=numbers, maxima=maxima)
    given = pack(call, real)
    split_rows(find_max, batch * parts, light, *given)
    _check(outside, count)
    split_rows(merge_maxima, size, ra.nanoseconds(maxima.size, MERGE, real), *given)
    split_rows(exponentiate, batch * parts, heavy, *given)
    factors = _merged(sums, sizes, real, True)
    split_rows(scale, entries, light, *pack(call._replace(merged=factors), real))
    return converted(out, x.dtype)


def segment_softmax_backward(dout: Any, out: Any, segments: Any, count: int) -> Any:
    """See the reference."""
    real = ra.compute_dtype(out)
    if not out.size:
        return np.empty(out.shape, out.dtype)
    sizes, indices = _sizes(out, count), ra.flat(segments, np.dtype(np.int64))
    batch, parts, entries, *_ = sizes
    dx, sums = np.empty(out.shape, real), _empty_parts(sizes, np.float64)
    arrays = [np.ascontiguousarray(ra.aligned(x, real)) for x in (dout, out)]
    light, outside = ra.nanoseconds(out.size, LIGHT, real), np.zeros(batch * parts, np.int64)
    call = Segments(*sizes, indices, outside, sums, dx, dout=arrays[0], y=arrays[1])
    split_rows(add_products, batch * parts, light, *pack(call, real))
    _check(outside, count)
    totals = _merged(sums, sizes, real, False)
    split_rows(differentiate, entries, light, *pack(call._replace(merged=totals), real))
    return converted(dx, out.dtype)


def sum_segments(x: Any, segments: Any, count: int) -> Any:
    """See the reference."""
    batch, width = x.shape[:-2], x.shape[-1]
    rows = np.moveaxis(np.reshape(x, (math.prod(batch), *x.shape[-2:])), 0, 1)  # (E, B, N)
    sums = embedding_backward(np.reshape(rows, (len(segments), rows.shape[1] * width)), segments, count)
    by_batch = np.moveaxis(sums.reshape(count, rows.shape[1], width), 1, 0)
    return by_batch.reshape(*batch, count, width)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    for kernel in (find_max, merge_maxima, exponentiate, scale, add_products, differentiate):
        kernel(0, 0, *pack(empty_call(Segments), dtype))
    merge_sums(0, 0, 0, 0, 0, 0, 0, False, np.dtype(dtype).type(0))


def _sizes(x: Any, count: int) -> tuple[int, int, int, int, int]:
    """Batches, parts, entries, columns, and numbers per part: one for each segment and column."""
    *batch, entries, columns = x.shape
    parts = 1
    if entries * columns > SINGLE:  # at least two; more while merging them costs little against adding the entries
        parts = max(2, min(MOST_PARTS, entries // (4 * max(count, 1))))
    return math.prod(batch), parts, entries, columns, count * columns


def _check(outside: Any, count: int) -> None:
    """Whether a part has found a segment that does not exist: they may have changed since they were checked."""
    if outside.any():
        raise Declined(f"a segment is not from 0 to {count - 1}")


def _empty_parts(sizes: tuple[int, ...], dtype: Any) -> Any:
    """Memory for the numbers of all parts."""
    batch, parts, _, _, size = sizes
    return np.empty((batch * parts, size), dtype)


def _merged(sums: Any, sizes: tuple[int, ...], real: Any, inverse: bool) -> Any:
    """The sums of all parts together, or their reciprocals: (batch, size)."""
    batch, parts, _, _, size = sizes
    out = np.empty((batch, size), real)
    work = ra.nanoseconds(sums.size, MERGE, sums.dtype)
    split_rows(merge_sums, size, work, batch, parts, size, address(sums), address(out), inverse, real.type(0))
    return out

"""Neighborhood attention, forward and backward: each query reads the keys and values of its own window.

Reference: attention/spatial/neighborhood.py. Parallel over the positions of all heads; so are the gradients of keys and
values, which sum over the queries that see them, and that of the bias over the heads: each number is written by one
thread, so that results do not depend on how many there are. Scratch: one window per call, and for the backward the
weights and the gradients of the scores of all windows. Rows that do not fill whole registers are copied and padded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import empty_call, pack
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.spatial.neighborhood_passes import (
    SPAN,
    Windows,
    backward,
    backward_of_bias,
    backward_of_keys,
    forward,
)
from attnarray.kernels.numba.vector.row_products import row_lanes

AT_ONCE = 8  # dot products, see vector/row_products.py
FORWARD, BACKWARD, KEYS, BIAS = 0.08, 0.15, 0.15, 1.0  # nanoseconds for each pair of query and key, and each feature


def attend_to_neighbors(q: Any, k: Any, v: Any, bias: Any, neighborhood: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = _real(q)
    q_rows, k_rows, v_rows = (_padded(x, real) for x in (q, k, v))
    call = _call(q_rows, k_rows, v_rows, bias, neighborhood)
    out, lse = np.zeros(v_rows.shape, real), np.empty(q.shape[:-1], real)
    split_rows(
        forward, lse.size, _work(call, lse.size, FORWARD, real), *pack(call._replace(out=out, lse=lse), real), each=4
    )
    return _cut(out, v), lse


def attend_to_neighbors_backward(
    dout: Any, delta: Any, q: Any, k: Any, v: Any, bias: Any, lse: Any, neighborhood: Any
) -> tuple[Any, Any, Any, Any]:
    """See the reference."""
    real = _real(q)
    q_rows, k_rows, v_rows, drows = (_padded(x, real) for x in (q, k, v, dout))
    call = _call(q_rows, k_rows, v_rows, bias, neighborhood)
    dq, dk, dv = (np.zeros(x.shape, real) for x in (q_rows, k_rows, v_rows))
    dscores, weights = (np.empty((*q.shape[:-1], call.slots), real) for _ in range(2))
    dbias = None if bias is None else np.zeros(bias.shape)
    flat_lse, flat_delta = ra.flat(lse, real), ra.flat(delta, real)
    call = call._replace(
        lse=flat_lse, dout=drows, delta=flat_delta, dq=dq, dk=dk, dv=dv, dscores=dscores, weights=weights, dbias=dbias
    )
    packed, count = pack(call, real), flat_lse.size
    split_rows(backward, count, _work(call, count, BACKWARD, real), *packed, each=4)
    split_rows(backward_of_keys, count, _work(call, count, KEYS, real), *packed, each=4)
    if dbias is not None:
        split_rows(backward_of_bias, call.heads, ra.nanoseconds(count * call.slots, BIAS, real), *packed)
        dbias = dbias.astype(real, copy=False)
    return _cut(dq, q), _cut(dk, k), _cut(dv, v), dbias


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    for kernel in (forward, backward, backward_of_keys, backward_of_bias):
        kernel(0, 0, *pack(empty_call(Windows), dtype))


def _real(q: Any) -> Any:
    """The dtype to compute in, if the kernel serves this call."""
    real = ra.compute_dtype(q)
    if q.dtype != real:
        raise Declined(f"dtype {q.dtype.name}: float32 and float64 only")
    return real


def _padded(x: Any, real: Any) -> Any:
    """Contiguous rows of whole registers."""
    lanes = row_lanes(np.empty(0, real))
    length = -(-x.shape[-1] // lanes) * lanes
    if length == x.shape[-1]:
        return np.require(x, real, ["C", "A"])
    whole = np.zeros((*x.shape[:-1], length), real)
    whole[..., : x.shape[-1]] = x
    return whole


def _cut(rows: Any, like: Any) -> Any:
    """Padded rows in the shape of the array without padding."""
    return rows if rows.shape == like.shape else np.ascontiguousarray(rows[..., : like.shape[-1]])


def _call(q: Any, k: Any, v: Any, bias: Any, neighborhood: Any) -> Windows:
    size, widths, dilation, causal, scale = neighborhood
    lacking = (1,) * (3 - len(size))
    size, widths, dilation = lacking + size, lacking + widths, lacking + dilation
    axes = zip(size, widths, dilation, (False,) * len(lacking) + causal, strict=True)
    spans = np.concatenate([_spans(*axis) for axis in axes])
    slots = math.prod(widths[:2]) * widths[2] + AT_ONCE
    extents = [2 * width - 1 for width in widths]
    held = None if bias is None else ra.flat(bias, q.dtype)
    sizes = (q.shape[0], *size, q.shape[2], q.shape[3], v.shape[3], *dilation, *extents[1:])
    given: Any = (*sizes, spans, slots, q, k, v, held, math.prod(extents), scale)
    return Windows(*given)


def _spans(size: int, width: int, step: int, causal: bool) -> Any:
    """For each position of an axis: the first key, how many, its relative position, the first query and how many."""
    own = np.arange(size)
    index, grid = own // step, own % step  # position `index` of one of `step` grids
    last = (size - grid + step - 1) // step - width
    begin = index - width + 1 if causal else np.minimum(np.maximum(index - width // 2, 0), last)
    first = np.maximum(begin, 0)
    spans = np.empty((size, SPAN), np.int64)
    spans[:, :3] = np.stack([first * step + grid, width - (first - begin), first - index + width - 1], axis=1)
    # Queries in rising order have rising windows, so those that see a key follow each other.
    spans[:, 3], spans[:, 4] = size, 0
    for slot in range(width):
        queries = own[slot < spans[:, 1]]
        keys = spans[queries, 0] + slot * step
        np.minimum.at(spans[:, 3], keys, queries)
        np.add.at(spans[:, 4], keys, 1)
    return spans


def _work(call: Windows, rows: int, each: float, real: Any) -> int:
    return ra.nanoseconds(rows * call.slots * (call.depth + call.width), each, real)

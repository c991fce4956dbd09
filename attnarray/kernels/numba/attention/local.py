"""Attention around centers, forward and backward: each query reads the keys and values of its own window alone.

Reference: attention/positional/local.py, `attend_around` and `attend_around_backward`. Parallel over the queries;
gradients of keys and values, to which many queries add, over features: each number is written by one thread, which adds
the queries in their order, so that results do not depend on how many threads there are. Scratch: three windows per
call, and for the backward two windows for each query, and in float32 the gradients of keys and values in float64 and
those of `TOGETHER` queries. Rows that do not fill whole registers are copied and padded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.attention.local_windows import (
    TOGETHER,
    WORD,
    Sums,
    Windows,
    add_long_windows,
    add_windows,
    backward_windows,
    forward_windows,
)  # fmt: skip
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import empty_call, pack
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.row_products import row_lanes

AT_ONCE = 8  # dot products, see vector/row_products.py
FORWARD, BACKWARD, ADDING = 0.05, 0.12, 0.06  # nanoseconds for each pair of a query and a key, and each feature
EXPONENTIALS = 16  # features that take as long as the exponentials of a pair


class Rows(NamedTuple):
    """Rows of whole registers: an array, its address, and in elements its stride and length."""

    array: Any
    address: int
    stride: int
    length: int


def attend_around(q: Any, k: Any, v: Any, around: Any, modifiers: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = _real(q, modifiers)
    rows = [_rows(x, real) for x in (q, k, v)]
    call = _call(q, k, rows, around, modifiers)
    queries = q.shape[0] * q.shape[2]
    out, lse = np.zeros((queries, call.width), real), np.empty(queries, real)
    work = ra.nanoseconds(queries * len(call.ramp) * (call.depth + call.width + EXPONENTIALS), FORWARD, real)
    split_rows(forward_windows, queries, work, *pack(call._replace(out=out, lse=lse), real))
    return _cut(out, (*q.shape[:3], v.shape[3])), lse.reshape(q.shape[:3])


def attend_around_backward(
    dout: Any, delta: Any, dweights: Any, q: Any, k: Any, v: Any, around: Any, lse: Any, modifiers: Any
) -> tuple[Any, Any, Any, Any, None]:
    """See the reference."""
    real = _real(q, modifiers)
    if dweights is not None:
        raise Declined("dweights: no cotangent of the weights is served")
    rows, drows = [_rows(x, real) for x in (q, k, v)], _rows(dout, real)
    call = _call(q, k, rows, around, modifiers)
    queries, span = q.shape[0] * q.shape[2], len(call.ramp)
    deltas, lses = ra.flat(delta, real), ra.flat(lse, real)
    dq, dcenters = np.zeros((queries, call.depth), real), np.zeros(queries, real)
    dscores, weights = np.empty((queries, call.scratch), real), np.empty((queries, call.scratch), real)
    call = call._replace(
        lse=lses, dout=drows.address, dout_step=drows.stride, delta=deltas, dq=dq, dcenters=dcenters, dscores=dscores,
        weights=weights,
    )  # fmt: skip
    work = ra.nanoseconds(queries * span * (call.depth + call.width + EXPONENTIALS), BACKWARD, real)
    split_rows(backward_windows, queries, work, *pack(call, real))
    sums = []
    for x, source_rows, factors in ((k, rows[0], dscores), (v, drows, weights)):
        is_long = real == np.float32 and q.shape[2] > TOGETHER
        total = np.zeros((x.shape[0] * x.shape[2], source_rows.length), np.float64 if is_long else real)
        units = x.shape[0] * (source_rows.length // row_lanes(dq))
        work = ra.nanoseconds(queries * span * source_rows.length, ADDING, real)
        given = source_rows.address, source_rows.stride, source_rows.length, factors, None if is_long else total, total
        adding = Sums(call.queries, call.keys, call.bounds, call.scratch, *given)
        split_rows(add_long_windows if is_long else add_windows, units, work, *pack(adding, real))
        sums.append(_cut(total.astype(real, copy=False), x.shape))
    return _cut(dq, q.shape), *sums, dcenters.reshape(around.centers.shape), None


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    for kernel in (forward_windows, backward_windows):
        kernel(0, 0, *pack(empty_call(Windows), dtype))
    for kernel in (add_windows, add_long_windows):
        kernel(0, 0, *pack(empty_call(Sums), dtype))


def _real(q: Any, modifiers: Any) -> Any:
    """The dtype to compute in, if the kernel serves this call."""
    real = ra.compute_dtype(q)
    if q.dtype != real:
        raise Declined(f"dtype {q.dtype.name}: float32 and float64 only")
    for name in ("mask", "bias"):
        if getattr(modifiers, name) is not None:
            raise Declined(f"{name}: windows are read as a whole, hidden by lengths and positions alone")
    if modifiers.dropout is not None and modifiers.dropout.keep is not None:
        raise Declined("dropout_mask: dropout is drawn from the seed alone")
    return real


def _rows(x: Any, real: Any) -> Rows:
    """The rows of (B, 1, N, E); copied where their length or strides require it."""
    lanes = row_lanes(np.empty(0, real))
    length = -(-x.shape[3] // lanes) * lanes
    if length != x.shape[3]:
        whole = np.zeros((*x.shape[:3], length), real)
        whole[..., : x.shape[3]] = x
        x = whole
    rows = ra.rows_along(x, 3, real)
    return Rows(rows.array, rows.address, rows.stride // real.itemsize, length)


def _call(q: Any, k: Any, rows: Any, around: Any, modifiers: Any) -> Windows:
    real, (centers, window, sigma) = ra.compute_dtype(q), around
    span = min(2 * window + 1, k.shape[2])
    bounds, looked = _bounds(centers, k.shape[2], window, modifiers), ra.flat(centers, real)
    ramp, offsets = np.arange(span, dtype=real), np.empty(len(bounds), np.int64)
    offsets[:] = modifiers.q_offset
    p, seed = (0.0, 0) if modifiers.dropout is None else modifiers.dropout[:2]
    limit = -1 if modifiers.dropout is None else round(p * 2**32)
    later: Any = (None,) * (len(Windows._fields) - 22)
    (_, q_at, q_step, depth), (_, k_at, k_step, _), (_, v_at, v_step, width) = rows
    return Windows(
        q.shape[2], k.shape[2], q_at, q_step, k_at, k_step, v_at, v_step, depth, width, bounds, looked, ramp,
        -(-span // AT_ONCE) * AT_ONCE, offsets, seed & WORD, seed >> 32, limit, modifiers.scale,
        modifiers.softcap or 0.0, 1.0 / sigma, 1.0 / (1.0 - p) if p < 1 else 0.0, *later,
    )  # fmt: skip


def _bounds(centers: Any, keys: int, window: int, modifiers: Any) -> Any:
    """The first visible key of each query, and their number: (B, T, 2)."""
    centers = centers[:, 0, :]
    known = np.where((centers >= 0) & (centers <= keys), centers, 0.0)
    begin, end = np.ceil(known).astype(np.int64) - window, np.floor(known).astype(np.int64) + window + 1
    position = np.arange(centers.shape[1]) + np.reshape(modifiers.q_offset, (-1, 1))  # (B|1, T)
    if modifiers.left is not None:
        begin = np.maximum(begin, position - modifiers.left)
    if modifiers.right is not None:
        end = np.minimum(end, position + modifiers.right + 1)
    if modifiers.kv_lengths is not None:
        end = np.minimum(end, modifiers.kv_lengths[:, None])
    begin, end = np.maximum(begin, 0), np.minimum(end, keys)
    return np.stack([begin, np.maximum(end - begin, 0)], axis=-1)


def _cut(rows: Any, shape: tuple[int, ...]) -> Any:
    """Padded rows in the shape of the array without padding."""
    whole = rows.shape[1] == shape[-1]
    return (rows if whole else np.ascontiguousarray(rows[:, : shape[-1]])).reshape(shape)

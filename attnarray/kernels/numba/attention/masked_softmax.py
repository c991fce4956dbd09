"""Masked softmax over the scores with scale, softcap, bias, masks and sinks, forward and backward.

Reference: attention/normalizers.py, `masked_softmax` and `masked_softmax_backward`.
Parallel over the B * H * T rows. A row visits only the keys visible by causal mask, window and lengths.
Scratch: one row of slopes per thread when there is a softcap; results overwrite `dots` and `dweights`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import UNBOUNDED, Declined
from attnarray.kernels.numba.attention.row_scores import add_bias, cap, hide, visible
from attnarray.kernels.numba.rows.softmax import find_max
from attnarray.kernels.numba.runtime.call import Bytes, Integers, Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import copy, fill, scale
from attnarray.kernels.numba.vector.lanes import Lanes, exp, multiply_add, where
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass


def masked_softmax(scores: Any, modifiers: Any) -> tuple[Any, Any]:
    """See the reference. Overwrites `scores` with the weights."""
    rows = _writable_rows(scores)
    lse = np.empty(rows.shape[0], scores.dtype)
    call = _call(scores, modifiers, rows=rows, lse=lse)
    split_rows(softmax, rows.shape[0], rows.size, *pack(call, rows.dtype))
    return rows.reshape(scores.shape), lse.reshape(scores.shape[:3])


def masked_softmax_backward(scores: Any, dweights: Any, lse: Any, delta: Any, modifiers: Any) -> tuple[Any, Any, Any]:
    """See the reference. Overwrites `scores` with the weights and `dweights` with the gradient of the dot products."""
    rows, drows = _writable_rows(scores), _writable_rows(dweights)
    dscores = None if modifiers.bias is None else np.empty(scores.shape, scores.dtype)
    lses, deltas = np.ascontiguousarray(lse), np.ascontiguousarray(delta)
    call = _call(scores, modifiers, rows=rows, lse=lses, drows=drows, dscores=dscores, delta=deltas)
    split_rows(softmax_backward, rows.shape[0], rows.size, *pack(call, rows.dtype))
    return rows.reshape(scores.shape), drows.reshape(scores.shape), dscores


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    for kernel in (softmax, softmax_backward):
        kernel(0, 0, *pack(empty_call(Softmax), dtype))


class Softmax(NamedTuple):
    """A call. Bias and mask have rows of all keys; their strides between batches, heads and queries are in elements."""

    heads: int
    queries: int
    keys: int
    bias: Numbers
    bias_batch: int
    bias_head: int
    bias_query: int
    mask: Bytes
    mask_batch: int
    mask_head: int
    mask_query: int
    left: int
    right: int
    offsets: Integers  # (B,) the position of the first query
    lengths: Integers  # (B,)
    sinks: Numbers  # (H,)
    scale: Number
    softcap: Number  # 0 for none
    rows: Numbers  # (B H T, S), as all below
    lse: Numbers
    drows: Numbers
    dscores: Numbers
    delta: Numbers


def _writable_rows(array: Any) -> Any:
    if array.dtype.name not in ("float32", "float64"):
        raise Declined(f"dtype {array.dtype.name}: float32 and float64 only")
    rows = np.require(array, requirements=["C", "W"])
    return rows.reshape(math.prod(array.shape[:3]), array.shape[3])


def _call(dots: Any, modifiers: Any, **arrays: Any) -> Softmax:
    batch, heads, queries, keys = dots.shape
    offsets, lengths = np.empty(batch, np.int64), np.empty(batch, np.int64)
    offsets[:], lengths[:] = modifiers.q_offset, keys if modifiers.kv_lengths is None else modifiers.kv_lengths
    left, right = (UNBOUNDED if bound is None else int(bound) for bound in (modifiers.left, modifiers.right))
    sinks = None if modifiers.sinks is None else np.require(modifiers.sinks, dots.dtype, ["C", "A"])
    tables = *_table(modifiers.bias, dots.dtype, keys), *_table(modifiers.mask, np.dtype(np.bool_), keys)
    none = dict.fromkeys(("rows", "lse", "drows", "dscores", "delta"))
    return Softmax(
        heads, queries, keys, *tables, left, right, offsets, lengths, sinks, modifiers.scale, modifiers.softcap or 0.0,
        **{**none, **arrays},
    )  # fmt: skip


def _table(array: Any, dtype: Any, keys: int) -> tuple[Any, int, int, int]:
    """A bias or mask (B|1, H|1, T|1, S|1) with contiguous rows of all keys, and its strides: 0 where the size is 1."""
    if array is None:
        return None, 0, 0, 0
    table = np.require(np.broadcast_to(array, (*array.shape[:3], keys)), dtype, ["C", "A"])
    strides = zip(table.shape[:3], table.strides[:3], strict=True)
    batch, head, query = (stride // dtype.itemsize if size > 1 else 0 for size, stride in strides)
    return table, batch, head, query


@row_pass(vectors=1)
def exponentiate(scores: Row, shift: Scalar, row_sum: Sum) -> dict[str, Lanes]:
    """Masked keys have weight 0 even where the shift is NaN."""
    weights = where(scores.equals(-math.inf), 0.0, exp(scores - shift))
    return {"scores": weights, "row_sum": row_sum + weights}


@row_pass(vectors=2)
def divide(weights: Row, inverse: Scalar, rest: Scalar) -> dict[str, Lanes]:
    """Multiply by inverse + rest: the rounding error of one number would be shared by all weights."""
    return {"weights": multiply_add(weights, inverse, weights * rest)}


@row_pass(vectors=2)
def differentiate(weights: Row, dweights: Row, delta: Scalar) -> dict[str, Lanes]:
    return {"dweights": where(weights.equals(0.0), 0.0, weights * (dweights - delta))}


@row_pass(vectors=2)
def unscale(weights: Row, dscores: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"dscores": where(weights.equals(0.0), 0.0, dscores * factor)}


@row_pass(vectors=2)
def uncap(weights: Row, dscores: Row, slopes: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"dscores": where(weights.equals(0.0), 0.0, dscores * (slopes * factor))}


def score(n: int, c: Any, slopes: Any) -> Any:
    """The scores of row n in place; its head, and its visible keys [start, stop)."""
    b, h, i = n // (c.heads * c.queries), n // c.queries % c.heads, n % c.queries
    start, stop = visible(i + c.offsets[b], c.left, c.right, c.lengths[b], c.keys)
    count, row = stop - start, ahead(c.rows, n * c.keys + start)
    if c.softcap != 0:
        cap(count, row, slopes, c.scale / c.softcap, c.softcap)
    else:
        scale(count, row, c.scale)
    if not is_null(c.bias):
        add_bias(count, row, ahead(c.bias, b * c.bias_batch + h * c.bias_head + i * c.bias_query + start))
    if not is_null(c.mask):
        hide(count, row, ahead(c.mask, b * c.mask_batch + h * c.mask_head + i * c.mask_query + start))
    return h, start, stop


def clear_hidden(row: Any, start: int, stop: int, keys: int) -> None:
    """0 for the keys outside [start, stop)."""
    fill(start, row, 0.0)
    fill(keys - stop, ahead(row, stop), 0.0)


def softmax(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Weights and lse of the rows [first, past)."""
    c = unpack(Softmax, integers, numbers)
    slopes = np.empty(c.keys if c.softcap != 0 else 0, numbers.dtype)
    real, zero = numbers.dtype.type, c.scale - c.scale
    for n in range(first, past):
        h, start, stop = score(n, c, pointer(slopes))
        whole, row = ahead(c.rows, n * c.keys), ahead(c.rows, n * c.keys + start)
        row_max, sink = find_max(stop - start, row), zero - math.inf
        if not is_null(c.sinks):
            sink = c.sinks[h]
        shift = sink if sink > row_max else row_max
        shift = zero if shift == -math.inf else shift
        row_sum = exponentiate(stop - start, row, shift) + real(math.exp(sink - shift))
        wide = 0.0 if row_sum == 0 else 1.0 / float(row_sum)
        inverse = real(wide)
        divide(stop - start, row, inverse, wide - float(inverse))
        clear_hidden(whole, start, stop, c.keys)
        c.lse[n] = shift + math.log(row_sum) if row_sum != 0 else zero - math.inf
    keep(slopes)


def softmax_backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Weights, and gradients of scores and dot products, of the rows [first, past)."""
    c = unpack(Softmax, integers, numbers)
    slopes = np.empty(c.keys if c.softcap != 0 else 0, numbers.dtype)
    zero = c.scale - c.scale
    for n in range(first, past):
        _, start, stop = score(n, c, pointer(slopes))
        whole, dwhole, count = ahead(c.rows, n * c.keys), ahead(c.drows, n * c.keys), stop - start
        row, drow = ahead(whole, start), ahead(dwhole, start)
        exponentiate(count, row, zero if c.lse[n] == -math.inf else c.lse[n])
        differentiate(count, row, drow, c.delta[n])
        clear_hidden(whole, start, stop, c.keys)
        clear_hidden(dwhole, start, stop, c.keys)
        if not is_null(c.dscores):
            copy(c.keys, dwhole, ahead(c.dscores, n * c.keys))
        if c.softcap != 0:
            uncap(count, row, drow, pointer(slopes), c.scale)
        else:
            unscale(count, row, drow, c.scale)
    keep(slopes)


score = jit(score, fastmath=EXACT, inner=True)
clear_hidden = jit(clear_hidden, inner=True)
softmax, softmax_backward = jit(softmax, softmax_backward, fastmath=EXACT)

"""Additive scores and their gradients: the hidden layer exists in registers only.

Reference: attention/alignment/additive.py, `additive_scores` and `additive_scores_backward`. The scores are parallel
over queries, the gradients over batches and features, W features at a time: each gradient is computed by one thread, in
the same order for any number of threads. Scratch: e^{2 x} of queries and keys; gradients with whole vectors per row;
per thread W gradients of a tile of keys.

Gradients are summed over a tile of keys and a block of queries before they are added to the others, those of w in
float64: so rounding does not grow with the number of pairs.

The error of a score is a few roundings of sum_a |w_a|, also where q + k is small: tanh is computed as 1 - 2 r.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention.additive_products import (
    MOST,
    add_slopes,
    add_wide_slopes,
    score_keys,
    score_wide_keys,
)  # fmt: skip
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Doubles, Numbers, address, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import move
from attnarray.kernels.numba.vector.lanes import Lanes, exp, lanes, tile_size
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer, pointer_at
from attnarray.kernels.numba.vector.rows import Row, row_pass

KEYS = 64  # of a tile that stays in the L1 cache for all queries
QUERIES = 64  # of a block, whose gradients are summed before they are added to the others
FORWARD, BACKWARD = 0.3, 0.6  # nanoseconds for each pair and feature


def additive_scores(q: Any, k: Any, w: Any) -> Any:
    """See the reference."""
    real = ra.compute_dtype(q)
    wide, queries, keys, weights = _prepared(q, k, w, real)
    out = np.empty((*q.shape[:3], k.shape[2]), real)
    work = ra.nanoseconds(out.size * weights.size, FORWARD, real)
    call = Additive(q.shape[2], k.shape[2], weights.size, wide, queries, keys, weights, out)
    split_rows(score_rows, len(queries), work, *pack(call, real))
    return out


def additive_scores_backward(dscores: Any, q: Any, k: Any, w: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(q)
    wide, queries, keys, weights = _prepared(q, k, w, real)
    dscores = np.ascontiguousarray(ra.aligned(dscores, real))
    dqueries, dkeys = np.zeros_like(queries), np.zeros_like(keys)
    dweights = np.zeros((q.shape[0], weights.size))
    units = dweights.size // tile_size(real.itemsize * 8)[0]
    work = ra.nanoseconds(dscores.size * weights.size, BACKWARD, real)
    given = q.shape[2], k.shape[2], weights.size, wide, queries, keys
    call = Additive(*given, dscore=dscores, dquery=dqueries, dkey=dkeys, dweight=dweights)
    split_rows(slope_features, units, work, *pack(call, real))
    depth = w.shape[0]
    dq, dk = ((rows[:, :depth] * (4 * w)).reshape(like.shape) for rows, like in ((dqueries, q), (dkeys, k)))
    return dq, dk, (2 * np.sum(dweights, axis=0)[:depth]).astype(real, copy=False)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    zero = np.dtype(dtype).type(0)
    double(0, 0, 0, 0, 0, 0, 0, zero, False)
    score_rows(0, 0, *pack(empty_call(Additive), dtype))
    slope_features(0, 0, *pack(empty_call(Additive), dtype))


class Additive(NamedTuple):
    """A call; rows have `depth` numbers, those of queries and keys as `wide` says."""

    queries: int
    keys: int
    depth: int
    wide: int
    query: Numbers
    key: Numbers
    weight: Numbers = None
    out: Numbers = None
    dscore: Numbers = None
    dquery: Numbers = None
    dkey: Numbers = None
    dweight: Doubles = None


def _prepared(q: Any, k: Any, w: Any, real: Any) -> tuple[bool, Any, Any, Any]:
    """Whether q + k is large, queries and keys as e^{2 x} or else as 2 x, and w; all padded to whole vectors."""
    bound = sum(float(np.max(np.abs(x), initial=0.0)) for x in (q, k))
    wide = not 2 * bound <= MOST[real.itemsize * 8]
    width = tile_size(real.itemsize * 8)[0]
    columns = -(-w.shape[0] // width) * width
    doubled = []
    for x in (q, k):
        rows = ra.rows_along(x, 3, real)
        out = np.zeros((len(rows.array), columns), real)
        split_rows(
            double, len(out), ra.nanoseconds(x.size, 0.5, real), x.shape[3], rows.address, rows.stride,
            address(out), out.strides[0], real.type(2), wide,
        )  # fmt: skip
        doubled.append(out)
    weights = np.zeros(columns, real)
    weights[: w.shape[0]] = w
    return wide, *doubled, weights  # type: ignore[return-value]


@row_pass(vectors=1)
def exponentiate_doubled(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": exp(x * 2.0)}


@row_pass(vectors=2)
def add_itself(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": x + x}


def double(
    first: int, past: int, count: int, x: int, x_stride: int, out: int, out_stride: int, like: Any, wide: bool
) -> None:
    """Rows of 2 x if `wide`, else of e^{2 x}."""
    for n in range(first, past):
        row, result = pointer_at(like, x + n * x_stride), pointer_at(like, out + n * out_stride)
        if wide:
            add_itself(count, row, result)
        else:
            exponentiate_doubled(count, row, result)


def score_rows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The rows [first, past) of the scores, counted over all batches; a tile of keys serves the rows of a batch."""
    c = unpack(Additive, integers, numbers)
    while first < past:
        b = first // c.queries
        stop = min(past, (b + 1) * c.queries)
        for j in range(0, c.keys, KEYS):
            count = min(KEYS, c.keys - j)
            rows = ahead(c.key, (b * c.keys + j) * c.depth)
            for i in range(first, stop):
                row, scores = ahead(c.query, i * c.depth), ahead(c.out, i * c.keys + j)
                if c.wide != 0:
                    score_wide_keys(count, c.depth, row, rows, c.depth, c.weight, scores)
                else:
                    score_keys(count, c.depth, row, rows, c.depth, c.weight, scores)
        first = stop


def slope_features(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The units [first, past) of W features of one batch: sums over all pairs."""
    c = unpack(Additive, integers, numbers)
    width = lanes(c.query)
    blocks = c.depth // width
    scratch = np.zeros((KEYS + 1) * width, numbers.dtype)
    dkeys = pointer(scratch)
    dweights = ahead(dkeys, KEYS * width)
    for unit in range(first, past):
        b, at = unit // blocks, unit % blocks * width
        for j in range(0, c.keys, KEYS):
            count, offset = min(KEYS, c.keys - j), (b * c.keys + j) * c.depth + at
            rows = ahead(c.key, offset)
            for low in range(b * c.queries, (b + 1) * c.queries, QUERIES):
                for i in range(low, min(low + QUERIES, (b + 1) * c.queries)):
                    row, drow = ahead(c.query, i * c.depth + at), ahead(c.dquery, i * c.depth + at)
                    dscores = ahead(c.dscore, i * c.keys + j)
                    if c.wide != 0:
                        add_wide_slopes(count, row, rows, c.depth, dscores, drow, dkeys, width, dweights)
                    else:
                        add_slopes(count, row, rows, c.depth, dscores, drow, dkeys, width, dweights)
                for n in range(count):
                    move(width, ahead(dkeys, n * width), ahead(c.dkey, offset + n * c.depth))
                move(width, dweights, ahead(c.dweight, b * c.depth + at))
    keep(scratch)


double, score_rows, slope_features = jit(double, score_rows, slope_features, fastmath=EXACT)

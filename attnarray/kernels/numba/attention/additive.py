"""Additive scores and their gradients: the hidden layer lives in registers alone.

Reference: attention/alignment/additive_core.py, `additive_scores` and `additive_scores_backward`. The scores are
parallel over queries, the gradients over batches and features, W features at a time: each of them is computed by one
thread, in the same order for any number of threads. Scratch: e^{2 x} of queries and keys; gradients with whole vectors
per row; per thread W gradients of a tile of keys.

Gradients are summed over a tile of keys and a block of queries before they are added to the others, those of w in
float64: so rounding does not grow with the number of pairs.

The error of a score is a few roundings of sum_a |w_a|, also where q + k is small: tanh is taken as 1 - 2 r.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.attention.additive_products import (
    MOST,
    add_slopes,
    add_wide_slopes,
    score_keys,
    score_wide_keys,
)  # fmt: skip
from attnarray.kernels.numba.rows.sums import move as move_to_float64
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import TILES, Lanes, exp, lanes
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, place, row_pass

KEYS = 64  # of a tile that stays in the nearest cache while the queries pass
QUERIES = 64  # of a block, whose gradients are summed by themselves
FORWARD, BACKWARD = 0.3, 0.6  # nanoseconds for each pair and feature


def additive_scores(q: Any, k: Any, w: Any) -> Any:
    """See the reference."""
    real = ra.computed_in(q)
    wide, queries, keys, weights = _prepared(q, k, w, real)
    out = np.empty((*q.shape[:3], k.shape[2]), real)
    work = ra.nanoseconds(out.size * weights.size, FORWARD, real)
    split_rows(
        score_rows, len(queries), work, q.shape[2], k.shape[2], weights.size, queries.ctypes.data, keys.ctypes.data,
        weights.ctypes.data, out.ctypes.data, real.type(0), wide,
    )  # fmt: skip
    return out


def additive_scores_backward(dscores: Any, q: Any, k: Any, w: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.computed_in(q)
    wide, queries, keys, weights = _prepared(q, k, w, real)
    dscores = np.ascontiguousarray(ra.aligned(dscores, real))
    dqueries, dkeys = np.zeros_like(queries), np.zeros_like(keys)
    dweights = np.zeros((q.shape[0], weights.size))
    units = dweights.size // TILES[real.itemsize * 8][0]
    split_rows(
        slope_features, units, ra.nanoseconds(dscores.size * weights.size, BACKWARD, real), q.shape[2], k.shape[2],
        weights.size, queries.ctypes.data, keys.ctypes.data, dscores.ctypes.data, dqueries.ctypes.data,
        dkeys.ctypes.data, dweights.ctypes.data, real.type(0), wide,
    )  # fmt: skip
    depth = w.shape[0]
    dq, dk = ((rows[:, :depth] * (4 * w)).reshape(like.shape) for rows, like in ((dqueries, q), (dkeys, k)))
    return dq, dk, (2 * np.sum(dweights, axis=0)[:depth]).astype(real, copy=False)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    zero = np.dtype(dtype).type(0)
    double(0, 0, 0, 0, 0, 0, 0, zero, False)
    score_rows(0, 0, 0, 0, 0, 0, 0, 0, 0, zero, False)
    slope_features(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, zero, False)


def _prepared(q: Any, k: Any, w: Any, real: Any) -> tuple[bool, Any, Any, Any]:
    """Whether q + k is large, queries and keys as e^{2 x} or else as 2 x, and w; all filled up to whole vectors."""
    largest = sum(float(np.max(np.abs(x), initial=0.0)) for x in (q, k))
    wide = not 2 * largest <= MOST[real.itemsize * 8]
    width = TILES[real.itemsize * 8][0]
    columns = -(-w.shape[0] // width) * width
    doubled = []
    for x in (q, k):
        rows = ra.rows_along(x, 3, real)
        out = np.zeros((len(rows.array), columns), real)
        split_rows(
            double, len(out), ra.nanoseconds(x.size, 0.5, real), x.shape[3], rows.address, rows.apart,
            out.ctypes.data, out.strides[0], real.type(2), wide,
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


@row_pass(vectors=1)
def move(part: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + part, "part": part.constant(0.0)}


def double(
    first: int, past: int, count: int, x: int, x_apart: int, out: int, out_apart: int, like: Any, wide: bool
) -> None:
    """Rows of 2 x if `wide`, else of e^{2 x}."""
    for n in range(first, past):
        row, result = place(like, x + n * x_apart), place(like, out + n * out_apart)
        if wide:
            add_itself(count, row, result)
        else:
            exponentiate_doubled(count, row, result)


def score_rows(
    first: int, past: int, queries: int, keys: int, depth: int, query: int, key: int, weight: int, out: int, like: Any,
    wide: bool,
) -> None:  # fmt: skip
    """The rows [first, past) of the scores, counted over all batches; a tile of keys serves the rows of a batch."""
    while first < past:
        b = first // queries
        stop = min(past, (b + 1) * queries)
        for j in range(0, keys, KEYS):
            count = min(KEYS, keys - j)
            rows = ahead(place(like, key), (b * keys + j) * depth)
            for i in range(first, stop):
                row, scores = ahead(place(like, query), i * depth), ahead(place(like, out), i * keys + j)
                if wide:
                    score_wide_keys(count, depth, row, rows, depth, place(like, weight), scores)
                else:
                    score_keys(count, depth, row, rows, depth, place(like, weight), scores)
        first = stop


def slope_features(
    first: int, past: int, queries: int, keys: int, depth: int, query: int, key: int, dscore: int, dquery: int,
    dkey: int, dweight: int, like: Any, wide: bool,
) -> None:  # fmt: skip
    """The units [first, past) of W features of one batch: sums over all pairs."""
    width = lanes(place(like, query))
    blocks = depth // width
    scratch = np.zeros((KEYS + 1) * width, type(like))
    dkeys = pointer(scratch)
    dweights = ahead(dkeys, KEYS * width)
    for unit in range(first, past):
        b, at = unit // blocks, unit % blocks * width
        for j in range(0, keys, KEYS):
            count, offset = min(KEYS, keys - j), (b * keys + j) * depth + at
            rows = ahead(place(like, key), offset)
            for low in range(b * queries, (b + 1) * queries, QUERIES):
                for i in range(low, min(low + QUERIES, (b + 1) * queries)):
                    row, drow = ahead(place(like, query), i * depth + at), ahead(place(like, dquery), i * depth + at)
                    dscores = ahead(place(like, dscore), i * keys + j)
                    if wide:
                        add_wide_slopes(count, row, rows, depth, dscores, drow, dkeys, width, dweights)
                    else:
                        add_slopes(count, row, rows, depth, dscores, drow, dkeys, width, dweights)
                for n in range(count):
                    move(width, ahead(dkeys, n * width), ahead(place(like, dkey), offset + n * depth))
                move_to_float64(width, dweights, ahead(place(0.0, dweight), b * depth + at))
    keep(scratch)


double, score_rows = jit(double, fastmath=EXACT), jit(score_rows, fastmath=EXACT)
slope_features = jit(slope_features, fastmath=EXACT)

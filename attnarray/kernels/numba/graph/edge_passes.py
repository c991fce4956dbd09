"""The passes along edges that `graph` calls: an edge from source j to target i meets the rows of both.

A node has a row of `heads` x `width` numbers, and so may an edge, rows of edges lying `apart` (0: one row for all).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.rows.sums import move, move_marked, past_mark
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, where
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, place, row_pass

WIDE = 32  # features of a head that are summed as vectors
CHUNK = 64  # edges whose terms are summed by themselves


@row_pass(vectors=1)
def score(q: Row, k: Row, f: Row, w: Row, out: Row, slope: Scalar) -> dict[str, Lanes]:
    hidden = q + k + f
    return {"out": w * where(hidden > 0.0, hidden, hidden * slope)}


@row_pass(vectors=1)
def differentiate(
    q: Row, k: Row, f: Row, w: Row, ds: Row, dq: Row, dk: Row, df: Row, dw: Row, slope: Scalar
) -> dict[str, Lanes]:
    hidden, counts = q + k + f, ds.equals(0.0)
    rising = hidden > 0.0
    dhidden = where(counts, 0.0, ds * w * where(rising, 1.0, slope))
    dweight = where(counts, 0.0, ds * where(rising, hidden, hidden * slope))
    return {"dq": dq + dhidden, "dk": dk + dhidden, "df": dhidden, "dw": dw + dweight}


@row_pass(vectors=1)
def add_weighted(x: Row, p: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + where(p.equals(0.0), 0.0, p * x)}


@row_pass(vectors=1)
def multiply(x: Row, y: Row, out: Row) -> dict[str, Lanes]:
    return {"out": x * y}


@row_pass(vectors=1)
def add_up(x: Row, total: Sum) -> dict[str, Lanes]:
    return {"total": total + x}


def spread(heads: int, width: int, numbers: Any, out: Any) -> None:
    """The number of each head, at each of its features."""
    for h in range(heads):
        for c in range(width):
            out[h * width + c] = numbers[h]


def sum_heads(heads: int, width: int, row: Any, out: Any) -> None:
    """The sum over the features of each head."""
    for h in range(heads):
        if width >= WIDE:
            out[h] = add_up(width, ahead(row, h * width))
        else:
            out[h] = 0
            total = out[h]
            for c in range(width):
                total += row[h * width + c]
            out[h] = total


def score_edges(
    first: int, past: int, batch: int, targets: int, sources: int, edges: int, heads: int, width: int, source: int,
    target: int, q: int, k: int, w: int, f: int, apart: int, slope: Any, scores: int,
) -> None:  # fmt: skip
    """The edges [first, past) of each batch."""
    row = heads * width
    room = np.empty(row, type(slope))
    for b in range(batch):
        for e in range(first, past):
            i, j = b * targets + place(edges, target)[e], b * sources + place(edges, source)[e]
            of_edge = ahead(place(slope, f), (b * edges + e) * apart)
            query, key = ahead(place(slope, q), i * row), ahead(place(slope, k), j * row)
            score(row, query, key, of_edge, place(slope, w), pointer(room), slope)
            sum_heads(heads, width, pointer(room), ahead(place(slope, scores), (b * edges + e) * heads))
    keep(room)


def slope_edges(
    first: int, past: int, batch: int, targets: int, sources: int, edges: int, heads: int, width: int, source: int,
    target: int, q: int, k: int, w: int, f: int, apart: int, slope: Any, dscores: int, dq: int, dk: int, dw: int,
    df: int, source_marks: int, beside_dk: int, target_marks: int, beside_dq: int,
) -> None:  # fmt: skip
    """The heads [first, past), over all edges."""
    row, at, count = heads * width, first * width, (past - first) * width
    room, part, unused = np.empty(count, type(slope)), np.zeros(count, type(slope)), np.empty(count, type(slope))
    for b in range(batch):
        begin = 0
        while begin < edges:
            end = past_mark(begin, past_mark(begin, min(begin + CHUNK, edges), source_marks), target_marks)
            for e in range(begin, end):
                i, j = b * targets + place(edges, target)[e], b * sources + place(edges, source)[e]
                n = b * edges + e
                spread(past - first, width, ahead(place(slope, dscores), n * heads + first), pointer(room))
                of_edge = ahead(place(slope, df), n * apart + at) if apart else pointer(unused)
                differentiate(
                    count, ahead(place(slope, q), i * row + at), ahead(place(slope, k), j * row + at),
                    ahead(place(slope, f), n * apart + at), ahead(place(slope, w), at), pointer(room),
                    ahead(place(slope, dq), i * row + at), ahead(place(slope, dk), j * row + at), of_edge,
                    pointer(part), slope,
                )  # fmt: skip
            i, j = b * targets + place(edges, target)[end - 1], b * sources + place(edges, source)[end - 1]
            move_marked(end - 1, count, place(slope, dq), i * row + at, target_marks, beside_dq)
            move_marked(end - 1, count, place(slope, dk), j * row + at, source_marks, beside_dk)
            move(count, pointer(part), ahead(place(0.0, dw), at))
            begin = end
    keep(room)
    keep(part)
    keep(unused)


def aggregate_edges(
    first: int, past: int, batch: int, targets: int, sources: int, edges: int, heads: int, width: int, source: int,
    target: int, weights: int, v: int, out: int, marks: int, beside: int, like: Any,
) -> None:  # fmt: skip
    """The heads [first, past), over all edges."""
    row, at, count = heads * width, first * width, (past - first) * width
    room = np.empty(count, type(like))
    for b in range(batch):
        begin = 0
        while begin < edges:
            end = past_mark(begin, edges, marks)
            for e in range(begin, end):
                i, j = b * targets + place(edges, target)[e], b * sources + place(edges, source)[e]
                spread(past - first, width, ahead(place(like, weights), (b * edges + e) * heads + first), pointer(room))
                value = ahead(place(like, v), j * row + at)
                add_weighted(count, value, pointer(room), ahead(place(like, out), i * row + at))
            of_target = (b * targets + place(edges, target)[end - 1]) * row + at
            move_marked(end - 1, count, place(like, out), of_target, marks, beside)
            begin = end
    keep(room)


def aggregate_edges_backward(
    first: int, past: int, batch: int, targets: int, sources: int, edges: int, heads: int, width: int, source: int,
    target: int, dout: int, weights: int, v: int, dweights: int, dv: int, marks: int, beside: int, like: Any,
) -> None:  # fmt: skip
    """The heads [first, past), over all edges."""
    row, at, count = heads * width, first * width, (past - first) * width
    room = np.empty(count, type(like))
    for b in range(batch):
        begin = 0
        while begin < edges:
            end = past_mark(begin, edges, marks)
            for e in range(begin, end):
                i, j = b * targets + place(edges, target)[e], b * sources + place(edges, source)[e]
                n = (b * edges + e) * heads + first
                of_target = ahead(place(like, dout), i * row + at)
                multiply(count, of_target, ahead(place(like, v), j * row + at), pointer(room))
                sum_heads(past - first, width, pointer(room), ahead(place(like, dweights), n))
                spread(past - first, width, ahead(place(like, weights), n), pointer(room))
                add_weighted(count, of_target, pointer(room), ahead(place(like, dv), j * row + at))
            of_source = (b * sources + place(edges, source)[end - 1]) * row + at
            move_marked(end - 1, count, place(like, dv), of_source, marks, beside)
            begin = end
    keep(room)


spread, sum_heads = jit(spread, fastmath=EXACT, inner=True), jit(sum_heads, fastmath=EXACT, inner=True)
score_edges, slope_edges = jit(score_edges, fastmath=EXACT), jit(slope_edges, fastmath=EXACT)
aggregate_edges = jit(aggregate_edges, fastmath=EXACT)
aggregate_edges_backward = jit(aggregate_edges_backward, fastmath=EXACT)

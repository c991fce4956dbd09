"""The passes along edges that `edges.py` calls: an edge from source j to target i reads the rows of both.

A node has a row of `heads` x `width` numbers, and so may an edge; with a `stride` of 0 all edges have one row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.rows.sums import move_marked, past_mark
from attnarray.kernels.numba.runtime.call import Bytes, Doubles, Integers, Number, Numbers, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import move
from attnarray.kernels.numba.vector.lanes import Lanes, where
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

WIDE = 32  # features of a head that are summed as vectors
CHUNK = 64  # edges whose terms are summed before they are added to the others


class Edges(NamedTuple):
    """A call on edges; marks and sums in float64 are those of `rows/sums.py`."""

    batch: int
    targets: int
    sources: int
    edges: int
    heads: int
    width: int
    source: Integers  # (E,)
    target: Integers  # (E,)
    q: Numbers = None
    k: Numbers = None
    w: Numbers = None
    f: Numbers = None
    stride: int = 0  # numbers between the rows of two edges in `f`
    slope: Number = 0.0
    scores: Numbers = None
    dscores: Numbers = None
    dq: Numbers = None
    dk: Numbers = None
    dw: Doubles = None
    df: Numbers = None
    source_marks: Bytes = None
    dk_doubles: Doubles = None
    target_marks: Bytes = None
    dq_doubles: Doubles = None
    weights: Numbers = None
    v: Numbers = None
    out: Numbers = None
    dout: Numbers = None
    dweights: Numbers = None
    dv: Numbers = None
    marks: Bytes = None
    doubles: Doubles = None


@row_pass(vectors=1)
def score(q: Row, k: Row, f: Row, w: Row, out: Row, slope: Scalar) -> dict[str, Lanes]:
    hidden = q + k + f
    return {"out": w * where(hidden > 0.0, hidden, hidden * slope)}


@row_pass(vectors=1)
def differentiate(
    q: Row, k: Row, f: Row, w: Row, ds: Row, dq: Row, dk: Row, df: Row, dw: Row, slope: Scalar
) -> dict[str, Lanes]:
    hidden, is_zero = q + k + f, ds.equals(0.0)
    rising = hidden > 0.0
    dhidden = where(is_zero, 0.0, ds * w * where(rising, 1.0, slope))
    dweight = where(is_zero, 0.0, ds * where(rising, hidden, hidden * slope))
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
    """Repeat the number of each head for each of its features."""
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


def score_edges(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The edges [first, past) of each batch."""
    c = unpack(Edges, integers, numbers)
    row = c.heads * c.width
    products = np.empty(row, numbers.dtype)
    for b in range(c.batch):
        for e in range(first, past):
            i, j = b * c.targets + c.target[e], b * c.sources + c.source[e]
            features, query, key = ahead(c.f, (b * c.edges + e) * c.stride), ahead(c.q, i * row), ahead(c.k, j * row)
            score(row, query, key, features, c.w, pointer(products), c.slope)
            sum_heads(c.heads, c.width, pointer(products), ahead(c.scores, (b * c.edges + e) * c.heads))
    keep(products)


def score_edges_backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The heads [first, past), over all edges."""
    c = unpack(Edges, integers, numbers)
    row, at, count = c.heads * c.width, first * c.width, (past - first) * c.width
    dscores, unused = np.empty(count, numbers.dtype), np.empty(count, numbers.dtype)
    part = np.zeros(count, numbers.dtype)
    for b in range(c.batch):
        begin = 0
        while begin < c.edges:
            end = past_mark(begin, past_mark(begin, min(begin + CHUNK, c.edges), c.source_marks), c.target_marks)
            for e in range(begin, end):
                i, j = b * c.targets + c.target[e], b * c.sources + c.source[e]
                n = b * c.edges + e
                spread(past - first, c.width, ahead(c.dscores, n * c.heads + first), pointer(dscores))
                df = ahead(c.df, n * c.stride + at) if c.stride else pointer(unused)
                differentiate(
                    count, ahead(c.q, i * row + at), ahead(c.k, j * row + at), ahead(c.f, n * c.stride + at),
                    ahead(c.w, at), pointer(dscores), ahead(c.dq, i * row + at), ahead(c.dk, j * row + at), df,
                    pointer(part), c.slope,
                )  # fmt: skip
            i, j = b * c.targets + c.target[end - 1], b * c.sources + c.source[end - 1]
            move_marked(end - 1, count, c.dq, i * row + at, c.target_marks, c.dq_doubles)
            move_marked(end - 1, count, c.dk, j * row + at, c.source_marks, c.dk_doubles)
            move(count, pointer(part), ahead(c.dw, at))
            begin = end
    keep(dscores)
    keep(part)
    keep(unused)


def aggregate_edges(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The heads [first, past), over all edges."""
    c = unpack(Edges, integers, numbers)
    row, at, count = c.heads * c.width, first * c.width, (past - first) * c.width
    weights = np.empty(count, numbers.dtype)
    for b in range(c.batch):
        begin = 0
        while begin < c.edges:
            end = past_mark(begin, c.edges, c.marks)
            for e in range(begin, end):
                i, j = b * c.targets + c.target[e], b * c.sources + c.source[e]
                spread(past - first, c.width, ahead(c.weights, (b * c.edges + e) * c.heads + first), pointer(weights))
                add_weighted(count, ahead(c.v, j * row + at), pointer(weights), ahead(c.out, i * row + at))
            target_offset = (b * c.targets + c.target[end - 1]) * row + at
            move_marked(end - 1, count, c.out, target_offset, c.marks, c.doubles)
            begin = end
    keep(weights)


def aggregate_edges_backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The heads [first, past), over all edges."""
    c = unpack(Edges, integers, numbers)
    row, at, count = c.heads * c.width, first * c.width, (past - first) * c.width
    products = np.empty(count, numbers.dtype)
    for b in range(c.batch):
        begin = 0
        while begin < c.edges:
            end = past_mark(begin, c.edges, c.marks)
            for e in range(begin, end):
                i, j = b * c.targets + c.target[e], b * c.sources + c.source[e]
                n = (b * c.edges + e) * c.heads + first
                dout_row = ahead(c.dout, i * row + at)
                multiply(count, dout_row, ahead(c.v, j * row + at), pointer(products))
                sum_heads(past - first, c.width, pointer(products), ahead(c.dweights, n))
                spread(past - first, c.width, ahead(c.weights, n), pointer(products))
                add_weighted(count, dout_row, pointer(products), ahead(c.dv, j * row + at))
            source_offset = (b * c.sources + c.source[end - 1]) * row + at
            move_marked(end - 1, count, c.dv, source_offset, c.marks, c.doubles)
            begin = end
    keep(products)


spread, sum_heads = jit(spread, sum_heads, fastmath=EXACT, inner=True)
score_edges, score_edges_backward = jit(score_edges, score_edges_backward, fastmath=EXACT)
aggregate_edges, aggregate_edges_backward = jit(aggregate_edges, aggregate_edges_backward, fastmath=EXACT)

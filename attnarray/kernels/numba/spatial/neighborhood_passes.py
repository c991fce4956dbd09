"""The windows of neighborhood attention in compiled code: one query of one head after the other.

A line or an image is a volume with axes of size 1. The keys of a window that follow each other along the last axis are
`heads` rows apart, times the dilation: they are one run of rows. `spans` says for each position of an axis where its
window begins, and for the gradients of keys and values which queries have it in theirs: these, too, are runs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.rows.softmax import find_max
from attnarray.kernels.numba.runtime.call import Doubles, Integers, Number, Numbers, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import scale
from attnarray.kernels.numba.vector.lanes import Lanes, exp, in_type, where
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, pointer
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, dot_rows
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

SPAN = 5  # integers of a position of an axis: see below
FIRST, COUNT, RELATIVE, FIRST_QUERY, QUERIES = range(SPAN)


class Windows(NamedTuple):
    """A call: arrays (B, T, heads, D or Dv) in whole registers, None for those that only the backward takes."""

    batch: int
    planes: int  # the size of the volume, T in all
    rows: int
    columns: int
    heads: int
    depth: int  # D, and Dv below, in whole registers
    width: int
    plane_step: int  # the dilations
    row_step: int
    column_step: int
    bias_rows: int  # the sizes of the last two axes of the bias
    bias_columns: int
    spans: Integers  # (planes + rows + columns, SPAN)
    slots: int  # N, and more for `dot_rows`
    q: Numbers
    k: Numbers
    v: Numbers
    bias: Numbers  # (heads, R) or null
    extent: int  # R
    scale: Number
    out: Numbers = None
    lse: Numbers = None  # (B, T, heads)
    dout: Numbers = None
    delta: Numbers = None
    dq: Numbers = None
    dk: Numbers = None
    dv: Numbers = None
    dscores: Numbers = None  # (B, T, heads, slots)
    weights: Numbers = None
    dbias: Doubles = None  # (heads, R)


class Place(NamedTuple):
    """A position of a head: its spans along the three axes, the first row of its batch and head, and the head."""

    plane: Integers
    row: Integers
    column: Integers
    start: int
    head: int


@row_pass(vectors=1)
def scale_and_add(scores: Row, bias: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"scores": scores * factor + bias}


@row_pass(vectors=1)
def exponentiate(scores: Row, shift: Scalar, total: Sum) -> dict[str, Lanes]:
    weights = exp(scores - shift)
    return {"scores": weights, "total": total + weights}


@row_pass(vectors=1)
def differentiate(scores: Row, dscores: Row, shift: Scalar, delta: Scalar) -> dict[str, Lanes]:
    """`dscores` holds dout . v, and is overwritten; `scores` with the weights."""
    weights = exp(scores - shift)
    return {"scores": weights, "dscores": where(weights.equals(0.0), 0.0, weights * (dscores - delta))}


@row_pass(vectors=1)
def add(part: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + in_type(part, total)}


@row_pass(vectors=2)
def copy_scaled(x: Row, out: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"out": x * factor}


def locate(n: int, c: Any) -> Any:
    """The place of row n of (B, T, heads)."""
    plane = c.rows * c.columns
    m = n // c.heads
    i = m % (c.planes * plane)
    x, y, z = i % c.columns, i // c.columns % c.rows, i // plane
    return Place(
        ahead(c.spans, SPAN * z), ahead(c.spans, SPAN * (c.planes + y)), ahead(c.spans, SPAN * (c.planes + c.rows + x)),
        (m - i) * c.heads + n % c.heads, n % c.heads,
    )  # fmt: skip


def dot_window(place: Any, c: Any, query: Any, rows: Any, length: int, dots: Any) -> int:
    """The dot products of `query` with the rows of a window, and their number."""
    at, count = 0, place.column[COUNT]
    for a in range(place.plane[COUNT]):
        for b in range(place.row[COUNT]):
            y = (place.plane[FIRST] + a * c.plane_step) * c.rows + place.row[FIRST] + b * c.row_step
            first = place.start + (y * c.columns + place.column[FIRST]) * c.heads
            dot_rows(
                count, length, query, ahead(rows, first * length), c.column_step * c.heads * length, ahead(dots, at)
            )
            at += count
    return at


def sum_window(place: Any, c: Any, weights: Any, rows: Any, length: int, total: Any) -> None:
    """Add the weighted rows of a window to `total`."""
    at, count = 0, place.column[COUNT]
    for a in range(place.plane[COUNT]):
        for b in range(place.row[COUNT]):
            y = (place.plane[FIRST] + a * c.plane_step) * c.rows + place.row[FIRST] + b * c.row_step
            first = place.start + (y * c.columns + place.column[FIRST]) * c.heads
            step = c.column_step * c.heads * length
            add_weighted_rows(count, length, ahead(weights, at), ahead(rows, first * length), step, total)
            at += count


def relative_start(place: Any, c: Any, a: int, b: int) -> int:
    """Where the relative positions of a run of a window begin in the bias."""
    y = (place.plane[RELATIVE] + a) * c.bias_rows + place.row[RELATIVE] + b
    return place.head * c.extent + y * c.bias_columns + place.column[RELATIVE]


def score_window(n: int, place: Any, c: Any, scores: Any) -> int:
    """The scores of row n with the keys of its window, and their number."""
    total = dot_window(place, c, ahead(c.q, n * c.depth), c.k, c.depth, scores)
    if is_null(c.bias):
        scale(total, scores, c.scale)
        return total
    at, count = 0, place.column[COUNT]
    for a in range(place.plane[COUNT]):
        for b in range(place.row[COUNT]):
            scale_and_add(count, ahead(scores, at), ahead(c.bias, relative_start(place, c, a, b)), c.scale)
            at += count
    return total


def forward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Outputs and lse of the rows [first, past) of (B, T, heads)."""
    c = unpack(Windows, integers, numbers)
    memory, zero = np.empty(c.slots, numbers.dtype), c.scale - c.scale
    scores = pointer(memory)
    for n in range(first, past):
        place = locate(n, c)
        count = score_window(n, place, c, scores)
        row_max = find_max(count, scores)
        shift = row_max if row_max != -math.inf else zero
        total = exponentiate(count, scores, shift)
        c.lse[n] = -math.inf
        if total != 0:
            scale(count, scores, 1 / total)
            c.lse[n] = shift + math.log(total)
        sum_window(place, c, scores, c.v, c.width, ahead(c.out, n * c.width))
    keep(memory)


def backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Gradients of the queries [first, past), and the weights and gradients of scores of their windows."""
    c = unpack(Windows, integers, numbers)
    memory, zero = np.empty(c.slots, numbers.dtype), c.scale - c.scale
    scaled = pointer(memory)
    for n in range(first, past):
        place = locate(n, c)
        weights, dscores = ahead(c.weights, n * c.slots), ahead(c.dscores, n * c.slots)
        count = score_window(n, place, c, weights)
        dot_window(place, c, ahead(c.dout, n * c.width), c.v, c.width, dscores)
        shift = c.lse[n] if c.lse[n] != -math.inf else zero
        differentiate(count, weights, dscores, shift, c.delta[n])
        copy_scaled(count, dscores, scaled, c.scale)
        sum_window(place, c, scaled, c.k, c.depth, ahead(c.dq, n * c.depth))
    keep(memory)


def backward_of_keys(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Gradients of the keys and values [first, past): each sums over the queries that have it in their windows."""
    c = unpack(Windows, integers, numbers)
    memory = np.empty(2 * c.columns, numbers.dtype)
    dscores = pointer(memory)
    weights = ahead(dscores, c.columns)
    for n in range(first, past):
        place = locate(n, c)
        key = (n // c.heads) % (c.planes * c.rows * c.columns)
        z, y, x = key // (c.rows * c.columns), key // c.columns % c.rows, key % c.columns
        count = place.column[QUERIES]
        for a in range(place.plane[QUERIES]):
            query_z = place.plane[FIRST_QUERY] + a * c.plane_step
            plane = ahead(c.spans, SPAN * query_z)
            slot_z = (z - plane[FIRST]) // c.plane_step
            for b in range(place.row[QUERIES]):
                query_y = place.row[FIRST_QUERY] + b * c.row_step
                row = ahead(c.spans, SPAN * (c.planes + query_y))
                slot_y = slot_z * row[COUNT] + (y - row[FIRST]) // c.row_step
                start = place.start + (query_z * c.rows + query_y) * c.columns * c.heads
                for s in range(count):
                    query_x = place.column[FIRST_QUERY] + s * c.column_step
                    column = ahead(c.spans, SPAN * (c.planes + c.rows + query_x))
                    slot = slot_y * column[COUNT] + (x - column[FIRST]) // c.column_step
                    at = (start + query_x * c.heads) * c.slots + slot
                    dscores[s], weights[s] = c.dscores[at] * c.scale, c.weights[at]
                at, step = start + place.column[FIRST_QUERY] * c.heads, c.column_step * c.heads
                queries, douts = ahead(c.q, at * c.depth), ahead(c.dout, at * c.width)
                add_weighted_rows(count, c.depth, dscores, queries, step * c.depth, ahead(c.dk, n * c.depth))
                add_weighted_rows(count, c.width, weights, douts, step * c.width, ahead(c.dv, n * c.width))
    keep(memory)


def backward_of_bias(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients of the bias of the heads [first, past)."""
    c = unpack(Windows, integers, numbers)
    for h in range(first, past):
        for m in range(c.batch * c.planes * c.rows * c.columns):
            n, at = m * c.heads + h, 0
            place = locate(n, c)
            count = place.column[COUNT]
            for a in range(place.plane[COUNT]):
                for b in range(place.row[COUNT]):
                    part = ahead(c.dscores, n * c.slots + at)
                    add(count, part, ahead(c.dbias, relative_start(place, c, a, b)))
                    at += count


locate, relative_start = jit(locate, relative_start, fastmath=EXACT, inner=True)
dot_window, sum_window, score_window = jit(dot_window, sum_window, score_window, fastmath=EXACT, inner=True)
forward, backward = jit(forward, backward, fastmath=EXACT)
backward_of_keys, backward_of_bias = jit(backward_of_keys, backward_of_bias, fastmath=EXACT)

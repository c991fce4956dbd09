"""The windows of local attention in compiled code: scores, dropout and Gaussian of one query after the other.

A window is `count` neighbouring keys from `begin` on, all of them visible: nothing in it is hidden.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention.local_products import add_outer_product
from attnarray.kernels.numba.rows.softmax import find_largest, scale
from attnarray.kernels.numba.rows.sums import move
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, exp, tanh
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.philox import MULTIPLIERS, ROUNDS, WEYL
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, dot_rows, row_lanes
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, place, row_pass

WORD = 0xFFFFFFFF
TOGETHER = 64  # queries of a batch, whose gradients of keys and values are summed by themselves in float32
FEWEST = 4  # times that the keys of these queries are added to for each key, so that sums by themselves are worth it
SCALE, SOFTCAP, INVERSE, KEPT = range(4)  # numbers that all queries share: no softcap is 0; 1 / sigma, 1 / (1 - p)


class Call(NamedTuple):
    """What all queries share, for compiled code: addresses and sizes."""

    queries: int  # T of each batch
    keys: int  # S
    q: int
    q_apart: int
    k: int
    k_apart: int
    v: int
    v_apart: int
    depth: int  # D, and Dv below, in whole registers
    width: int
    bounds: int  # (B, T, 2) the first key that a query sees, and how many
    centers: int  # (B, T)
    ramp: int  # (N,) 0, 1, 2 ...
    room: int  # N, and more for `dot_rows`
    offsets: int  # (B,) the position of the first query, which dropout is keyed by
    seed_low: int
    seed_high: int
    limit: int  # words below this drop their weights; -1 for no dropout


@row_pass(vectors=1)
def cap(scores: Row, slopes: Row, factor: Scalar, bound: Scalar) -> dict[str, Lanes]:
    capped, slope = tanh(scores * factor)
    return {"scores": capped * bound, "slopes": slope}


@row_pass(vectors=1)
def weigh(
    scores: Row, ramp: Row, factors: Row, shift: Scalar, offset: Scalar, inverse: Scalar, total: Sum
) -> dict[str, Lanes]:
    """The exponentials are summed, and stored times the Gaussian and dropout."""
    distance = (ramp + offset) * inverse
    exponentials = exp(scores - shift)
    return {"scores": exponentials * exp(distance * distance * -0.5) * factors, "total": total + exponentials}


@row_pass(vectors=1)
def differentiate(
    scores: Row, ramp: Row, factors: Row, dscores: Row, weights: Row, shift: Scalar, offset: Scalar, inverse: Scalar,
    delta: Scalar, factor: Scalar, moved: Sum,
) -> dict[str, Lanes]:  # fmt: skip
    """`dscores` holds do . v before, and after it the gradients of the dot products."""
    distance = (ramp + offset) * inverse
    softmax = exp(scores - shift)
    near = softmax * exp(distance * distance * -0.5) * factors
    share = near * dscores
    return {"dscores": (share - softmax * delta) * factor, "weights": near, "moved": moved + share * distance}


@row_pass(vectors=2)
def multiply(x: Row, factors: Row) -> dict[str, Lanes]:
    return {"x": x * factors}


def score_window(n: int, call: Any, numbers: Any, scores: Any, slopes: Any) -> None:
    """The scores of query n with the keys that it sees."""
    bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
    query = ahead(place(numbers[SCALE], call.q), n * call.q_apart)
    keys = ahead(place(numbers[SCALE], call.k), (n // call.queries * call.keys + bounds[0]) * call.k_apart)
    dot_rows(bounds[1], call.depth, query, keys, call.k_apart, scores)
    if numbers[SOFTCAP] != 0:
        cap(bounds[1], scores, slopes, numbers[SCALE] / numbers[SOFTCAP], numbers[SOFTCAP])
    else:
        scale(bounds[1], scores, numbers[SCALE])


def drop_window(n: int, call: Any, numbers: Any, factors: Any) -> None:
    """What dropout makes of the weights of query n: the words of Philox for its keys, as in vector/philox.py."""
    if call.limit < 0:
        return
    bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
    begin, count, b = bounds[0], bounds[1], n // call.queries
    row = (n % call.queries + place(np.int64(0), call.offsets)[b]) & WORD
    for block in range(begin // 4, (begin + count + 3) // 4):
        words, low, high = (block, row, 0, b), call.seed_low, call.seed_high
        for _ in range(ROUNDS):
            first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
            highs = second >> 32 & WORD, first >> 32 & WORD
            words = highs[0] ^ words[1] ^ low, second & WORD, highs[1] ^ words[3] ^ high, first & WORD
            low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
        for m in range(4):
            key = 4 * block + m - begin
            if 0 <= key < count:
                factors[key] = numbers[KEPT] if words[m] >= call.limit else 0.0


def weigh_windows(first: int, past: int, call: Any, numbers: Any, out: int, lse: int) -> None:
    """Outputs and lse of the queries [first, past), counted over all batches."""
    like = numbers[SCALE]
    scratch = np.ones(3 * call.room, numbers.dtype)
    scores = pointer(scratch)
    slopes, factors = ahead(scores, call.room), ahead(scores, 2 * call.room)  # the factors stay ones without dropout
    for n in range(first, past):
        bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
        begin, count = bounds[0], bounds[1]
        place(like, lse)[n] = -math.inf
        if count > 0:
            score_window(n, call, numbers, scores, slopes)
            largest = find_largest(count, scores)
            shift = largest if largest != -math.inf else like - like
            offset = begin - place(like, call.centers)[n]
            drop_window(n, call, numbers, factors)
            total = weigh(count, scores, place(like, call.ramp), factors, shift, offset, numbers[INVERSE])
            if total != 0:
                scale(count, scores, 1 / total)
                place(like, lse)[n] = shift + math.log(total)
            values = ahead(place(like, call.v), (n // call.queries * call.keys + begin) * call.v_apart)
            add_weighted_rows(count, call.width, scores, values, call.v_apart, ahead(place(like, out), n * call.width))
    keep(scratch)


def differentiate_windows(
    first: int, past: int, call: Any, numbers: Any, dout: int, dout_apart: int, delta: int, lse: int, dq: int,
    dcenters: int, dscores: int, weights: int,
) -> None:  # fmt: skip
    """Gradients of the queries [first, past) and of their centres, and what their windows add to keys and values."""
    like = numbers[SCALE]
    scratch = np.ones(3 * call.room, numbers.dtype)
    scores = pointer(scratch)
    slopes, factors = ahead(scores, call.room), ahead(scores, 2 * call.room)  # the factors stay ones without dropout
    for n in range(first, past):
        bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
        begin, count = bounds[0], bounds[1]
        if count > 0:
            score_window(n, call, numbers, scores, slopes)
            start = n // call.queries * call.keys + begin
            gradients, near = ahead(place(like, dscores), n * call.room), ahead(place(like, weights), n * call.room)
            values = ahead(place(like, call.v), start * call.v_apart)
            dot_rows(count, call.width, ahead(place(like, dout), n * dout_apart), values, call.v_apart, gradients)
            shift = place(like, lse)[n]
            shift = shift if shift != -math.inf else like - like
            offset = begin - place(like, call.centers)[n]
            drop_window(n, call, numbers, factors)
            moved = differentiate(
                count, scores, place(like, call.ramp), factors, gradients, near, shift, offset, numbers[INVERSE],
                place(like, delta)[n], numbers[SCALE],
            )  # fmt: skip
            if numbers[SOFTCAP] != 0:
                multiply(count, gradients, slopes)
            place(like, dcenters)[n] = moved * numbers[INVERSE]
            keys = ahead(place(like, call.k), start * call.k_apart)
            add_weighted_rows(count, call.depth, gradients, keys, call.k_apart, ahead(place(like, dq), n * call.depth))
    keep(scratch)


def add_windows(
    first: int, past: int, call: Any, numbers: Any, rows: int, apart: int, length: int, factors: int, total: int
) -> None:
    """The registers [first, past) of each row of `total`, counted over all batches: what every query adds to them."""
    like = numbers[SCALE]
    lanes = row_lanes(place(like, total))
    units = length // lanes
    while first < past:
        b = first // units
        stop = min(past, (b + 1) * units)
        at = (first - b * units) * lanes
        for n in range(b * call.queries, (b + 1) * call.queries):
            bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
            window = ahead(place(like, total), (b * call.keys + bounds[0]) * length + at)
            row, own = ahead(place(like, rows), n * apart + at), ahead(place(like, factors), n * call.room)
            add_outer_product(bounds[1], (stop - first) * lanes, own, row, window, length)
        first = stop


def add_long_windows(
    first: int, past: int, call: Any, numbers: Any, rows: int, apart: int, length: int, factors: int, total: int
) -> None:
    """The same with `total` in float64: some neighbouring queries are summed in float32 and then added to it."""
    like = numbers[SCALE]
    lanes = row_lanes(pointer(numbers))
    units = length // lanes
    scratch = np.zeros(call.keys * min(past - first, units) * lanes, numbers.dtype)
    while first < past:
        b = first // units
        stop = min(past, (b + 1) * units)
        at, columns = (first - b * units) * lanes, (stop - first) * lanes
        for low in range(b * call.queries, (b + 1) * call.queries, TOGETHER):
            high = min(low + TOGETHER, (b + 1) * call.queries)
            begin, end, pairs = call.keys, 0, 0
            for n in range(low, high):
                bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
                if bounds[1] > 0:
                    begin, end, pairs = min(begin, bounds[0]), max(end, bounds[0] + bounds[1]), pairs + bounds[1]
            together = pairs >= FEWEST * (end - begin)
            for n in range(low, high):
                bounds = ahead(place(np.int64(0), call.bounds), 2 * n)
                row, own = ahead(place(like, rows), n * apart + at), ahead(place(like, factors), n * call.room)
                if together:
                    add_outer_product(
                        bounds[1], columns, own, row, ahead(pointer(scratch), bounds[0] * columns), columns
                    )
                else:
                    window = ahead(place(0.0, total), (b * call.keys + bounds[0]) * length + at)
                    add_outer_product(bounds[1], columns, own, row, window, length)
            if together:
                for j in range(begin, end):
                    of_key = ahead(place(0.0, total), (b * call.keys + j) * length + at)
                    move(columns, ahead(pointer(scratch), j * columns), of_key)
        first = stop
    keep(scratch)


score_window, drop_window = jit(score_window, fastmath=EXACT, inner=True), jit(drop_window, inner=True)
weigh_windows, differentiate_windows = jit(weigh_windows, fastmath=EXACT), jit(differentiate_windows, fastmath=EXACT)
add_windows, add_long_windows = jit(add_windows, fastmath=EXACT), jit(add_long_windows, fastmath=EXACT)

"""The windows of local attention in compiled code: scores, dropout and Gaussian of one query after the other.

A window is `count` consecutive keys from `begin` on, all of them visible: nothing in it is masked.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention.local_products import add_outer_product
from attnarray.kernels.numba.attention.row_scores import cap
from attnarray.kernels.numba.rows.softmax import find_max
from attnarray.kernels.numba.runtime.call import Doubles, Integers, Number, Numbers, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import move, scale
from attnarray.kernels.numba.vector.lanes import Lanes, exp
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.philox import MULTIPLIERS, ROUNDS, WEYL
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, dot_rows, row_lanes
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

WORD = 0xFFFFFFFF
TOGETHER = 64  # queries of a batch, whose gradients of keys and values are summed in float32 before they are added
FEWEST = 4  # additions for each key of these queries, at least, for float32 sums to pay off


class Windows(NamedTuple):
    """A call on queries: arrays in whole registers, and sizes; None for those that only the backward takes."""

    queries: int  # T of each batch
    keys: int  # S
    q: Numbers
    q_step: int
    k: Numbers
    k_step: int
    v: Numbers
    v_step: int
    depth: int  # D, and Dv below, in whole registers
    width: int
    bounds: Integers  # (B, T, 2) the first visible key of a query, and their number
    centers: Numbers  # (B, T)
    ramp: Numbers  # (N,) 0, 1, 2 ...
    scratch: int  # N, and more for `dot_rows`
    offsets: Integers  # (B,) the position of the first query, a key of dropout
    seed_low: int
    seed_high: int
    limit: int  # words below this drop their weights; -1 for no dropout
    scale: Number
    softcap: Number  # 0 for none
    inverse: Number  # 1 / sigma
    kept: Number  # 1 / (1 - p)
    out: Numbers  # (B T, Dv)
    lse: Numbers  # (B T,)
    dout: Numbers
    dout_step: int
    delta: Numbers
    dq: Numbers
    dcenters: Numbers
    dscores: Numbers  # (B T, N)
    weights: Numbers  # (B T, N)


class Sums(NamedTuple):
    """A call on keys: all queries add `factors` times `rows` to them."""

    queries: int
    keys: int
    bounds: Integers
    scratch: int
    rows: Numbers
    step: int
    length: int
    factors: Numbers  # (B T, N)
    total: Numbers  # (B S, length), one of the two
    doubles: Doubles


class Gaussian(NamedTuple):
    """Distances from a center: (ramp + offset) / sigma."""

    ramp: Row
    offset: Scalar
    inverse: Scalar


@row_pass(vectors=1)
def gaussian_weights(scores: Row, near: Gaussian, factors: Row, shift: Scalar, total: Sum) -> dict[str, Lanes]:
    """The exponentials are summed, and stored times the Gaussian and dropout."""
    distance = (near.ramp + near.offset) * near.inverse
    exponentials = exp(scores - shift)
    return {"scores": exponentials * exp(distance * distance * -0.5) * factors, "total": total + exponentials}


@row_pass(vectors=1)
def differentiate(
    scores: Row, near: Gaussian, factors: Row, dscores: Row, weights: Row, shift: Scalar, delta: Scalar, factor: Scalar,
    moved: Sum,
) -> dict[str, Lanes]:  # fmt: skip
    """`dscores` holds dout . v, and is overwritten with the gradients of the dot products."""
    distance = (near.ramp + near.offset) * near.inverse
    softmax = exp(scores - shift)
    weight = softmax * exp(distance * distance * -0.5) * factors
    share = weight * dscores
    return {"dscores": (share - softmax * delta) * factor, "weights": weight, "moved": moved + share * distance}


@row_pass(vectors=2)
def multiply(x: Row, factors: Row) -> dict[str, Lanes]:
    return {"x": x * factors}


def score_window(n: int, c: Any, scores: Any, slopes: Any) -> None:
    """The scores of query n with its visible keys."""
    bounds = ahead(c.bounds, 2 * n)
    keys = ahead(c.k, (n // c.queries * c.keys + bounds[0]) * c.k_step)
    dot_rows(bounds[1], c.depth, ahead(c.q, n * c.q_step), keys, c.k_step, scores)
    if c.softcap != 0:
        cap(bounds[1], scores, slopes, c.scale / c.softcap, c.softcap)
    else:
        scale(bounds[1], scores, c.scale)


def drop_window(n: int, c: Any, factors: Any) -> None:
    """The dropout factors of query n: the words of Philox for its keys, as in vector/philox.py."""
    if c.limit < 0:
        return
    begin, count, b = c.bounds[2 * n], c.bounds[2 * n + 1], n // c.queries
    row = (n % c.queries + c.offsets[b]) & WORD
    for block in range(begin // 4, (begin + count + 3) // 4):
        words, low, high = (block, row, 0, b), c.seed_low, c.seed_high
        for _ in range(ROUNDS):
            first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
            highs = second >> 32 & WORD, first >> 32 & WORD
            words = highs[0] ^ words[1] ^ low, second & WORD, highs[1] ^ words[3] ^ high, first & WORD
            low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
        for m in range(4):
            key = 4 * block + m - begin
            if 0 <= key < count:
                factors[key] = c.kept if words[m] >= c.limit else 0.0


def forward_windows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Outputs and lse of the queries [first, past), counted over all batches."""
    c = unpack(Windows, integers, numbers)
    memory, zero = np.ones(3 * c.scratch, numbers.dtype), c.scale - c.scale
    scores = pointer(memory)
    slopes, factors = ahead(scores, c.scratch), ahead(scores, 2 * c.scratch)  # the factors stay ones without dropout
    for n in range(first, past):
        begin, count = c.bounds[2 * n], c.bounds[2 * n + 1]
        c.lse[n] = -math.inf
        if count > 0:
            score_window(n, c, scores, slopes)
            row_max = find_max(count, scores)
            shift = row_max if row_max != -math.inf else zero
            drop_window(n, c, factors)
            total = gaussian_weights(count, scores, Gaussian(c.ramp, begin - c.centers[n], c.inverse), factors, shift)
            if total != 0:
                scale(count, scores, 1 / total)
                c.lse[n] = shift + math.log(total)
            values = ahead(c.v, (n // c.queries * c.keys + begin) * c.v_step)
            add_weighted_rows(count, c.width, scores, values, c.v_step, ahead(c.out, n * c.width))
    keep(memory)


def backward_windows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Gradients of the queries [first, past) and their centers, and the factors of those of keys and values."""
    c = unpack(Windows, integers, numbers)
    memory, zero = np.ones(3 * c.scratch, numbers.dtype), c.scale - c.scale
    scores = pointer(memory)
    slopes, factors = ahead(scores, c.scratch), ahead(scores, 2 * c.scratch)  # the factors stay ones without dropout
    for n in range(first, past):
        begin, count = c.bounds[2 * n], c.bounds[2 * n + 1]
        if count > 0:
            score_window(n, c, scores, slopes)
            start = n // c.queries * c.keys + begin
            gradients, weights = ahead(c.dscores, n * c.scratch), ahead(c.weights, n * c.scratch)
            values = ahead(c.v, start * c.v_step)
            dot_rows(count, c.width, ahead(c.dout, n * c.dout_step), values, c.v_step, gradients)
            shift = c.lse[n] if c.lse[n] != -math.inf else zero
            drop_window(n, c, factors)
            near = Gaussian(c.ramp, begin - c.centers[n], c.inverse)
            moved = differentiate(count, scores, near, factors, gradients, weights, shift, c.delta[n], c.scale)
            if c.softcap != 0:
                multiply(count, gradients, slopes)
            c.dcenters[n] = moved * c.inverse
            keys = ahead(c.k, start * c.k_step)
            add_weighted_rows(count, c.depth, gradients, keys, c.k_step, ahead(c.dq, n * c.depth))
    keep(memory)


def add_windows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The registers [first, past) of each row of `total`, counted over all batches: the sums over queries."""
    c = unpack(Sums, integers, numbers)
    lanes = row_lanes(c.total)
    units = c.length // lanes
    while first < past:
        b = first // units
        stop = min(past, (b + 1) * units)
        at = (first - b * units) * lanes
        for n in range(b * c.queries, (b + 1) * c.queries):
            window = ahead(c.total, (b * c.keys + c.bounds[2 * n]) * c.length + at)
            row, own = ahead(c.rows, n * c.step + at), ahead(c.factors, n * c.scratch)
            add_outer_product(c.bounds[2 * n + 1], (stop - first) * lanes, own, row, window, c.length)
        first = stop


def add_long_windows(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The same into `doubles`: some consecutive queries are summed in float32 and then added to it."""
    c = unpack(Sums, integers, numbers)
    lanes = row_lanes(c.total)
    units = c.length // lanes
    scratch = np.zeros(c.keys * min(past - first, units) * lanes, numbers.dtype)
    while first < past:
        b = first // units
        stop = min(past, (b + 1) * units)
        at, columns = (first - b * units) * lanes, (stop - first) * lanes
        for low in range(b * c.queries, (b + 1) * c.queries, TOGETHER):
            high = min(low + TOGETHER, (b + 1) * c.queries)
            begin, end, pairs = c.keys, 0, 0
            for n in range(low, high):
                bounds = ahead(c.bounds, 2 * n)
                if bounds[1] > 0:
                    begin, end, pairs = min(begin, bounds[0]), max(end, bounds[0] + bounds[1]), pairs + bounds[1]
            together = pairs >= FEWEST * (end - begin)
            for n in range(low, high):
                bounds = ahead(c.bounds, 2 * n)
                row, own = ahead(c.rows, n * c.step + at), ahead(c.factors, n * c.scratch)
                if together:
                    window = ahead(pointer(scratch), bounds[0] * columns)
                    add_outer_product(bounds[1], columns, own, row, window, columns)
                else:
                    window = ahead(c.doubles, (b * c.keys + bounds[0]) * c.length + at)
                    add_outer_product(bounds[1], columns, own, row, window, c.length)
            if together:
                for j in range(begin, end):
                    key_sums = ahead(c.doubles, (b * c.keys + j) * c.length + at)
                    move(columns, ahead(pointer(scratch), j * columns), key_sums)
        first = stop
    keep(scratch)


score_window = jit(score_window, fastmath=EXACT, inner=True)
drop_window = jit(drop_window, inner=True)
forward_windows, backward_windows = jit(forward_windows, backward_windows, fastmath=EXACT)
add_windows, add_long_windows = jit(add_windows, add_long_windows, fastmath=EXACT)

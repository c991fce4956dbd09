"""Linear attention with a decay for each key dimension, forward: chunk after chunk, with the state in scratch.

Reference: attention/linear/linear_attention.py, `attend_in_chunks`. Parallel over batches, key heads and
parts of the value columns. Scratch per thread: the state, the matrices of a chunk, and its factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.linear.chunk import (
    Linear,
    add_scaled,
    load_rows,
    product,
    product_lower,
    solve_lower,
    store_rows,
    unit_call,
)
from attnarray.kernels.numba.linear.pairs import decays_size, divide_decays, fill_decays, multiply_rows, pair_products
from attnarray.kernels.numba.runtime.call import unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import scale
from attnarray.kernels.numba.vector.lanes import tile_rows
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, scratch
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import Operand


class Buffers(NamedTuple):
    """Scratch of one thread: matrices of Dk or C rows, with columns padded to whole vectors."""

    S: Any  # (Dk, Dv)
    k: Any  # (C, Dk)
    q: Any
    decayed: Any
    u: Any  # (C, Dv)
    out: Any
    P: Any  # (C, C)


def forward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The units [first, past): parts of key heads, counted over all batches."""
    whole = c = unpack(Linear, integers, numbers)
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    more = tile_rows(c.key)
    rows = size + more
    of_chunk = rows * (3 * deep + 2 * wide + size)
    floats = np.zeros(16 + (deep + more) * wide + of_chunk + decays_size(size, deep, more), numbers.dtype)
    S = scratch(floats)
    k = ahead(S, (deep + more) * wide)
    q = ahead(k, rows * deep)
    decayed = ahead(q, rows * deep)
    u = ahead(decayed, rows * deep)
    out = ahead(u, rows * wide)
    P = ahead(out, rows * wide)
    m, f = Buffers(S, k, q, decayed, u, out, P), divide_decays(ahead(P, rows * size), size, deep, more)
    one, chunks = numbers[0] * 0 + 1, (c.steps + c.chunk - 1) // c.chunk
    for unit in range(first, past):
        c, head = unit_call(whole, unit), unit // whole.parts
        load_rows(c.depth, c.width, c.columns, ahead(c.initial, head * c.depth * c.columns), m.S, one)
        for number in range(chunks):
            t = number * c.chunk
            n = min(c.chunk, c.steps - t)
            if not is_null(c.states):
                before = ahead(c.states, (head * chunks + number) * c.depth * c.columns)
                store_rows(c.depth, c.width, c.columns, m.S, before, one)
            write(head * c.steps + t, n, m, f, c, one)
            for g in range(c.group):
                read((head * c.group + g) * c.steps + t, n, m, f, c, one)
            multiply_rows(n, c.depth, deep, m.k, f.end, m.decayed)
            for d in range(c.depth):
                scale(wide, ahead(m.S, d * wide), f.start[(n - 1) * deep + d])
            product(c.depth, wide, n, Operand(m.decayed, 1, deep), Operand(m.u, 0, wide), Operand(m.S, wide, 0), True)
        store_rows(c.depth, c.width, c.columns, m.S, ahead(c.state, head * c.depth * c.columns), one)
    keep(floats)


def write(at: int, n: int, m: Any, f: Any, c: Any, one: Any) -> None:
    """What each of `n` steps from `at` on writes to the state: U."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.key, at * c.depth), m.k, one)
    load_rows(n, c.width, c.columns, ahead(c.value, at * c.columns), m.u, one)
    fill_decays(n, c.depth, deep, ahead(c.decay, at * c.depth), f, one)
    if not is_null(c.beta):
        pair_products(n, c.depth, deep, size, m.k, m.k, f, m.P, one)
        multiply_rows(n, c.depth, deep, m.k, f.start, m.decayed)
        product(n, wide, c.depth, Operand(m.decayed, deep, 1), Operand(m.S, 0, wide), Operand(m.out, wide, 0), False)
        for s in range(n):
            scale(size, ahead(m.P, s * size), -one)
            add_scaled(wide, ahead(m.out, s * wide), ahead(m.u, s * wide), -one)
        solve_lower(n, c.width, m.P, size, m.u, ahead(c.beta, at), m.u)


def read(at: int, n: int, m: Any, f: Any, c: Any, one: Any) -> None:
    """The outputs of one query head."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.query, at * c.depth), m.q, c.scale)
    pair_products(n, c.depth, deep, size, m.q, m.k, f, m.P, one)
    multiply_rows(n, c.depth, deep, m.q, f.start, m.decayed)
    product(n, wide, c.depth, Operand(m.decayed, deep, 1), Operand(m.S, 0, wide), Operand(m.out, wide, 0), False)
    product_lower(n, wide, Operand(m.P, size, 1), Operand(m.u, 0, wide), Operand(m.out, wide, 0), True)
    store_rows(n, c.width, c.columns, m.out, ahead(c.out, at * c.columns), one)


write, read = jit(write, read, fastmath=EXACT, inner=True)
forward = jit(forward, fastmath=EXACT)

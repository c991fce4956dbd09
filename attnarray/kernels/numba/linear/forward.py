"""Linear attention with one decay for each step, forward: chunk after chunk, with the state in scratch.

Reference: attention/linear/linear_attention.py, `attend_in_chunks`. Parallel over batches, key heads and
parts of the value columns. Scratch per thread: the state, and the matrices of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.linear.chunk import (
    Linear,
    Steps,
    add_scaled,
    fill_steps,
    load_rows,
    product,
    product_lower,
    scale_rows,
    solve_lower,
    store_rows,
    unit_call,
    weigh,
)
from attnarray.kernels.numba.runtime.call import unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import fill, scale
from attnarray.kernels.numba.vector.lanes import tile_rows
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, scratch
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import Operand
from attnarray.kernels.numba.vector.transpose import transpose_matrix


class Buffers(NamedTuple):
    """Scratch of one thread: matrices of Dk or C rows, with columns padded to whole vectors."""

    S: Any  # (Dk, Dv)
    k_columns: Any  # (Dk, C)
    k: Any  # (C, Dk)
    q: Any
    u: Any  # (C, Dv)
    out: Any
    below: Any  # -M, (C, C)
    P: Any


def forward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The units [first, past): parts of key heads, counted over all batches."""
    whole = c = unpack(Linear, integers, numbers)
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    rows, columns = size + tile_rows(c.key), deep + tile_rows(c.key)
    of_chunk = rows * (2 * deep + 2 * wide + 3 * size) + 3 * size
    floats = np.zeros(16 + columns * (wide + size) + of_chunk, numbers.dtype)
    S = scratch(floats)
    k_columns = ahead(S, columns * wide)
    k = ahead(k_columns, columns * size)
    q = ahead(k, rows * deep)
    u = ahead(q, rows * deep)
    out = ahead(u, rows * wide)
    below = ahead(out, rows * wide)
    P = ahead(below, rows * size)
    pairs = ahead(P, rows * size)
    each = ahead(pairs, rows * size)
    steps = Steps(each, ahead(each, size), ahead(each, 2 * size), pairs)
    m, one = Buffers(S, k_columns, k, q, u, out, below, P), numbers[0] * 0 + 1
    chunks = (c.steps + c.chunk - 1) // c.chunk
    for unit in range(first, past):
        c, head = unit_call(whole, unit), unit // whole.parts
        load_rows(c.depth, c.width, c.columns, ahead(c.initial, head * c.depth * c.columns), m.S, one)
        for number in range(chunks):
            t = number * c.chunk
            n = min(c.chunk, c.steps - t)
            if not is_null(c.states):
                before = ahead(c.states, (head * chunks + number) * c.depth * c.columns)
                store_rows(c.depth, c.width, c.columns, m.S, before, one)
            write(head * c.steps + t, n, m, steps, c, one)
            for g in range(c.group):
                read((head * c.group + g) * c.steps + t, n, m, steps, c, one)
            scale_rows(n, c.width, m.u, steps.end, one)
            for d in range(c.depth):
                scale(wide, ahead(m.S, d * wide), steps.start[n - 1])
            product(c.depth, wide, n, Operand(m.k, 1, deep), Operand(m.u, 0, wide), Operand(m.S, wide, 0), True)
        store_rows(c.depth, c.width, c.columns, m.S, ahead(c.state, head * c.depth * c.columns), one)
    keep(floats)


def write(at: int, n: int, m: Any, steps: Any, c: Any, one: Any) -> None:
    """What each of `n` steps from `at` on writes to the state: U."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.key, at * c.depth), m.k, one)
    load_rows(n, c.width, c.columns, ahead(c.value, at * c.columns), m.u, one)
    fill((size - n) * deep, ahead(m.k, n * deep), one * 0)
    transpose_matrix(size, deep, m.k, deep, m.k_columns, size)
    fill_steps(n, size, ahead(c.decay, 0 if is_null(c.decay) else at), steps, one)
    if not is_null(c.beta):
        k = Operand(m.k, deep, 1)
        product(n, size, c.depth, k, Operand(m.k_columns, 0, size), Operand(m.below, size, 0), False)
        product(n, wide, c.depth, k, Operand(m.S, 0, wide), Operand(m.out, wide, 0), False)
        for s in range(n):
            weigh(size, ahead(m.below, s * size), ahead(steps.pairs, s * size), -one)
            add_scaled(wide, ahead(m.out, s * wide), ahead(m.u, s * wide), -steps.start[s])
        solve_lower(n, c.width, m.below, size, m.u, ahead(c.beta, at), m.u)


def read(at: int, n: int, m: Any, steps: Any, c: Any, one: Any) -> None:
    """The outputs of one query head."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.query, at * c.depth), m.q, c.scale)
    q = Operand(m.q, deep, 1)
    product(n, size, c.depth, q, Operand(m.k_columns, 0, size), Operand(m.P, size, 0), False)
    product(n, wide, c.depth, q, Operand(m.S, 0, wide), Operand(m.out, wide, 0), False)
    for s in range(n):
        weigh(size, ahead(m.P, s * size), ahead(steps.pairs, s * size), one)
        scale(wide, ahead(m.out, s * wide), steps.start[s])
    product_lower(n, wide, Operand(m.P, size, 1), Operand(m.u, 0, wide), Operand(m.out, wide, 0), True)
    store_rows(n, c.width, c.columns, m.out, ahead(c.out, at * c.columns), one)


write, read = jit(write, read, fastmath=EXACT, inner=True)
forward = jit(forward, fastmath=EXACT)

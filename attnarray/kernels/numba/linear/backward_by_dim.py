"""Linear attention with a decay for each key dimension, backward: from the last chunk to the first.

Reference: attention/linear/linear_attention.py, `attend_in_chunks_backward`. Parallel over batches, key heads
and parts of the value columns. Scratch per thread: the state before a chunk, the gradient of the state after it, and
the matrices and factors of the chunk, which is computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.linear.backward import combine
from attnarray.kernels.numba.linear.chunk import (
    Linear,
    add_scaled,
    dot,
    load_rows,
    product,
    product_upper,
    solve_lower,
    solve_upper,
    store_rows,
    unit_call,
)
from attnarray.kernels.numba.linear.pairs import (
    border_backward,
    decays_size,
    divide_decays,
    fill_decays,
    multiply_rows,
    pair_products,
    pair_products_backward,
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
    """Scratch of one thread: matrices of C, Dk or Dv rows, with columns padded to whole vectors."""

    k: Any  # (C, Dk)
    q: Any
    dk: Any
    dq: Any
    decayed: Any
    dborder: Any  # the gradient of a decayed matrix
    rest: Any  # (C, Dv): v - S^T k, less what earlier steps wrote
    u: Any
    du: Any
    du_rows: Any  # beta du
    dout: Any
    u_columns: Any  # (Dv, C)
    S: Any  # (Dk, Dv)
    D: Any
    S_columns: Any  # (Dv, Dk)
    D_columns: Any
    P: Any  # (C, C)
    dP: Any
    below: Any  # -M
    above: Any  # -M^T


def backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The units [first, past): parts of key heads, counted over all batches."""
    whole = c = unpack(Linear, integers, numbers)
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    more = tile_rows(c.key)
    floats = np.zeros(16 + scratch_size(size, deep, wide, more), numbers.dtype)
    m, f = divide(scratch(floats), size, deep, wide, more)
    one, chunks = numbers[0] * 0 + 1, (c.steps + c.chunk - 1) // c.chunk
    for unit in range(first, past):
        c, head = unit_call(whole, unit), unit // whole.parts
        state = head * c.depth * c.columns
        load_rows(c.depth, c.width, c.columns, ahead(c.dstate, state), m.D, one)
        for number in range(chunks - 1, -1, -1):
            t = number * c.chunk
            n, at = min(c.chunk, c.steps - t), head * c.steps + t
            before = ahead(c.states, (head * chunks + number) * c.depth * c.columns)
            load_rows(c.depth, c.width, c.columns, before, m.S, one)
            through_state(at, n, m, f, c, one)
            for g in range(c.group):
                through_queries((head * c.group + g) * c.steps + t, n, m, f, c, one)
            if is_null(c.beta):
                store_rows(n, c.width, c.columns, m.du, ahead(c.dvalue, at * c.columns), one)
            else:
                through_delta(at, n, m, f, c, one)
            store_rows(n, c.depth, c.depth, m.dk, ahead(c.dkey, at * c.depth), one)
            store_rows(n, c.depth, c.depth, f.dlog, ahead(c.ddecay, at * c.depth), one)
        store_rows(c.depth, c.width, c.columns, m.D, ahead(c.dinitial, state), one)
    keep(floats)


def scratch_size(size: int, deep: int, wide: int, more: int) -> Any:
    """The numbers of all matrices of `divide`."""
    of_chunk = (size + more) * (6 * deep + 5 * wide + 4 * size)
    of_state = (deep + more) * 2 * wide + (wide + more) * (2 * deep + size)
    return of_chunk + of_state + decays_size(size, deep, more)


def divide(k: Any, size: int, deep: int, wide: int, more: int) -> Any:
    """The matrices in scratch from `k` on; `more` are the rows that a product may write beyond the last."""
    rows = size + more
    q = ahead(k, rows * deep)
    dk = ahead(q, rows * deep)
    dq = ahead(dk, rows * deep)
    decayed = ahead(dq, rows * deep)
    dborder = ahead(decayed, rows * deep)
    rest = ahead(dborder, rows * deep)
    u = ahead(rest, rows * wide)
    du = ahead(u, rows * wide)
    du_rows = ahead(du, rows * wide)
    dout = ahead(du_rows, rows * wide)
    u_columns = ahead(dout, rows * wide)
    S = ahead(u_columns, (wide + more) * size)
    D = ahead(S, (deep + more) * wide)
    S_columns = ahead(D, (deep + more) * wide)
    D_columns = ahead(S_columns, (wide + more) * deep)
    P = ahead(D_columns, (wide + more) * deep)
    dP = ahead(P, rows * size)
    below = ahead(dP, rows * size)
    above = ahead(below, rows * size)
    return (
        Buffers(
            k, q, dk, dq, decayed, dborder, rest, u, du, du_rows, dout, u_columns, S, D, S_columns, D_columns, P, dP,
            below, above,
        ),
        divide_decays(ahead(above, rows * size), size, deep, more),
    )  # fmt: skip


def through_state(at: int, n: int, m: Any, f: Any, c: Any, one: Any) -> None:
    """U of the chunk again, and the gradients that the states after it give: of U, of the keys and of the decays."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.key, at * c.depth), m.k, one)
    load_rows(n, c.width, c.columns, ahead(c.value, at * c.columns), m.u, one)
    transpose_matrix(deep, wide, m.S, wide, m.S_columns, deep)
    transpose_matrix(deep, wide, m.D, wide, m.D_columns, deep)
    fill_decays(n, c.depth, deep, ahead(c.decay, at * c.depth), f, one)
    if not is_null(c.beta):
        pair_products(n, c.depth, deep, size, m.k, m.k, f, m.below, one)
        multiply_rows(n, c.depth, deep, m.k, f.start, m.decayed)
        product(n, wide, c.depth, Operand(m.decayed, deep, 1), Operand(m.S, 0, wide), Operand(m.rest, wide, 0), False)
        for s in range(n):
            scale(size, ahead(m.below, s * size), -one)
            combine(wide, ahead(m.u, s * wide), ahead(m.rest, s * wide), -one)
        solve_lower(n, c.width, m.below, size, m.rest, ahead(c.beta, at), m.u)
        transpose_matrix(size, size, m.below, size, m.above, size)
    fill((size - n) * wide, ahead(m.u, n * wide), one * 0)
    transpose_matrix(size, wide, m.u, wide, m.u_columns, size)
    multiply_rows(n, c.depth, deep, m.k, f.end, m.decayed)
    product(n, wide, c.depth, Operand(m.decayed, deep, 1), Operand(m.D, 0, wide), Operand(m.du, wide, 0), False)
    product(n, deep, c.width, Operand(m.u, wide, 1), Operand(m.D_columns, 0, deep), Operand(m.dborder, deep, 0), False)
    fill((size + 1) * deep, f.dlog, one * 0)
    fill(size * deep, m.dk, one * 0)
    for d in range(c.depth):  # the decays of all steps are between the states before and after the chunk
        whole = f.start[(n - 1) * deep + d]
        f.total[d] = whole * dot(c.width, ahead(m.S, d * wide), ahead(m.D, d * wide))
        scale(wide, ahead(m.D, d * wide), whole)
    for s in range(n):
        add_scaled(c.depth, f.total, ahead(f.dlog, s * deep), one)
    fill(c.depth, f.total, one * 0)
    for s in range(n):
        row, after = s * deep, (s + 1 if s + 1 < n else size) * deep
        border_backward(
            c.depth, ahead(m.decayed, row), ahead(m.dborder, row), ahead(f.end, row), ahead(m.dk, row), f.total,
            ahead(f.dlog, after),
        )  # fmt: skip


def through_queries(at: int, n: int, m: Any, f: Any, c: Any, one: Any) -> None:
    """The gradients of the outputs of one query head."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.query, at * c.depth), m.q, one)
    load_rows(n, c.width, c.columns, ahead(c.dout, at * c.columns), m.dout, c.scale)
    pair_products(n, c.depth, deep, size, m.q, m.k, f, m.P, one)
    dout = Operand(m.dout, wide, 1)
    product(n, size, c.width, dout, Operand(m.u_columns, 0, size), Operand(m.dP, size, 0), False)
    product(n, deep, c.width, dout, Operand(m.S_columns, 0, deep), Operand(m.dborder, deep, 0), False)
    multiply_rows(n, c.depth, deep, m.q, f.start, m.decayed)
    fill(size * deep, m.dq, one * 0)
    from_start(n, m, m.dq, f, c, one)
    product_upper(n, wide, Operand(m.P, 1, size), Operand(m.dout, 0, wide), Operand(m.du, wide, 0), True)
    product(c.depth, wide, n, Operand(m.decayed, 1, deep), Operand(m.dout, 0, wide), Operand(m.D, wide, 0), True)
    pair_products_backward(n, m.dP, m.q, m.k, m.dq, m.dk, f, c, False, one)
    store_rows(n, c.depth, c.depth, m.dq, ahead(c.dquery, at * c.depth), one)


def through_delta(at: int, n: int, m: Any, f: Any, c: Any, one: Any) -> None:
    """From the gradients of U those of keys, values and beta."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    solve_upper(n, c.width, m.above, size, m.du, ahead(c.beta, at), m.du_rows)
    store_rows(n, c.width, c.columns, m.du_rows, ahead(c.dvalue, at * c.columns), one)
    for s in range(n):
        c.dbeta[at + s] = dot(c.width, ahead(m.du, s * wide), ahead(m.rest, s * wide))
        scale(wide, ahead(m.du_rows, s * wide), -one)
    du_rows = Operand(m.du_rows, wide, 1)
    product(n, size, c.width, du_rows, Operand(m.u_columns, 0, size), Operand(m.dP, size, 0), False)
    product(n, deep, c.width, du_rows, Operand(m.S_columns, 0, deep), Operand(m.dborder, deep, 0), False)
    multiply_rows(n, c.depth, deep, m.k, f.start, m.decayed)
    from_start(n, m, m.dk, f, c, one)
    product(c.depth, wide, n, Operand(m.decayed, 1, deep), Operand(m.du_rows, 0, wide), Operand(m.D, wide, 0), True)
    pair_products_backward(n, m.dP, m.k, m.k, m.dk, m.dk, f, c, True, one)


def from_start(n: int, m: Any, grad: Any, f: Any, c: Any, one: Any) -> None:
    """Add the gradients of steps that were decayed from the start of the chunk, and of their decays."""
    deep = whole_lanes(c.depth, c.key)
    fill(c.depth, f.total, one * 0)
    for s in range(n - 1, -1, -1):
        row = s * deep
        border_backward(
            c.depth, ahead(m.decayed, row), ahead(m.dborder, row), ahead(f.start, row), ahead(grad, row), f.total,
            ahead(f.dlog, row),
        )  # fmt: skip


scratch_size, divide = jit(scratch_size, divide, inner=True)
from_start = jit(from_start, fastmath=EXACT, inner=True)
through_state, through_queries = jit(through_state, through_queries, fastmath=EXACT, inner=True)
through_delta = jit(through_delta, fastmath=EXACT, inner=True)
backward = jit(backward, fastmath=EXACT)

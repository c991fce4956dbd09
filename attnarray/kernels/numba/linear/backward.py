"""Linear attention with one decay for each step, backward: from the last chunk to the first, each computed again.

Reference: attention/linear/linear_attention.py, `attend_in_chunks_backward`. Parallel over batches, key heads
and parts of the value columns. Scratch per thread: the state before a chunk, the gradient of the state after it, and
the matrices of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.linear.chunk import (
    Linear,
    Steps,
    add_scaled,
    dot,
    fill_steps,
    load_rows,
    product,
    product_lower,
    product_upper,
    scale_rows,
    solve_lower,
    solve_upper,
    store_rows,
    unit_call,
    weigh,
)
from attnarray.kernels.numba.runtime.call import unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import fill, scale
from attnarray.kernels.numba.vector.lanes import Lanes, tile_rows, where
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, scratch
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import Operand
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass
from attnarray.kernels.numba.vector.transpose import transpose_matrix


class Buffers(NamedTuple):
    """Scratch of one thread: matrices of C, Dk or Dv rows, with columns padded to whole vectors."""

    k: Any  # (C, Dk)
    q: Any
    dk: Any
    dq: Any
    k_columns: Any  # (Dk, C)
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
    through: Any  # dP P and dM M
    dstart: Any  # (C,), gradients of the logarithms of the factors
    dend: Any
    late: Any


def backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The units [first, past): parts of key heads, counted over all batches."""
    whole = c = unpack(Linear, integers, numbers)
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    more = tile_rows(c.key)
    floats = np.zeros(16 + scratch_size(size, deep, wide, more), numbers.dtype)
    m, steps = divide(scratch(floats), size, deep, wide, more)
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
            through_state(at, n, m, steps, c, one)
            for g in range(c.group):
                through_queries((head * c.group + g) * c.steps + t, n, m, steps, c, one)
            if is_null(c.beta):
                store_rows(n, c.width, c.columns, m.du, ahead(c.dvalue, at * c.columns), one)
            else:
                through_delta(at, n, m, steps, c, one)
            store_rows(n, c.depth, c.depth, m.dk, ahead(c.dkey, at * c.depth), one)
            if not is_null(c.decay):
                sum_decays(n, size, m, ahead(c.ddecay, at), one)
        store_rows(c.depth, c.width, c.columns, m.D, ahead(c.dinitial, state), one)
    keep(floats)


def scratch_size(size: int, deep: int, wide: int, more: int) -> Any:
    """The numbers of all matrices of `divide`."""
    of_chunk = (size + more) * (4 * deep + 5 * wide + 6 * size)
    return of_chunk + (deep + more) * (2 * wide + size) + (wide + more) * (2 * deep + size) + 6 * size


def divide(k: Any, size: int, deep: int, wide: int, more: int) -> Any:
    """The matrices in scratch from `k` on; `more` are the rows that a product may write beyond the last."""
    rows = size + more
    q = ahead(k, rows * deep)
    dk = ahead(q, rows * deep)
    dq = ahead(dk, rows * deep)
    k_columns = ahead(dq, rows * deep)
    rest = ahead(k_columns, (deep + more) * size)
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
    through = ahead(above, rows * size)
    pairs = ahead(through, rows * size)
    each = ahead(pairs, rows * size)
    dstart = ahead(each, 3 * size)
    steps = Steps(each, ahead(each, size), ahead(each, 2 * size), pairs)
    return (
        Buffers(
            k, q, dk, dq, k_columns, rest, u, du, du_rows, dout, u_columns, S, D, S_columns, D_columns, P, dP, below,
            above, through, dstart, ahead(dstart, size), ahead(dstart, 2 * size),
        ),
        steps,
    )  # fmt: skip


def through_state(at: int, n: int, m: Any, steps: Any, c: Any, one: Any) -> None:
    """U of the chunk again, and the gradients that the states after it give: of U, of the keys and of its decay."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.key, at * c.depth), m.k, one)
    load_rows(n, c.width, c.columns, ahead(c.value, at * c.columns), m.u, one)
    fill((size - n) * deep, ahead(m.k, n * deep), one * 0)
    transpose_matrix(size, deep, m.k, deep, m.k_columns, size)
    transpose_matrix(deep, wide, m.S, wide, m.S_columns, deep)
    transpose_matrix(deep, wide, m.D, wide, m.D_columns, deep)
    fill_steps(n, size, ahead(c.decay, 0 if is_null(c.decay) else at), steps, one)
    k_rows = Operand(m.k, deep, 1)
    if not is_null(c.beta):
        product(n, size, c.depth, k_rows, Operand(m.k_columns, 0, size), Operand(m.below, size, 0), False)
        product(n, wide, c.depth, k_rows, Operand(m.S, 0, wide), Operand(m.rest, wide, 0), False)
        for s in range(n):
            weigh(size, ahead(m.below, s * size), ahead(steps.pairs, s * size), -one)
            m.below[s * size + s] = 0
            combine(wide, ahead(m.u, s * wide), ahead(m.rest, s * wide), -steps.start[s])
        solve_lower(n, c.width, m.below, size, m.rest, ahead(c.beta, at), m.u)
        transpose_matrix(size, size, m.below, size, m.above, size)
    fill((size - n) * wide, ahead(m.u, n * wide), one * 0)
    transpose_matrix(size, wide, m.u, wide, m.u_columns, size)
    product(n, wide, c.depth, k_rows, Operand(m.D, 0, wide), Operand(m.du, wide, 0), False)
    product(n, deep, c.width, Operand(m.u, wide, 1), Operand(m.D_columns, 0, deep), Operand(m.dk, deep, 0), False)
    whole = one * 0
    for s in range(c.depth):
        whole += dot(c.width, ahead(m.S, s * wide), ahead(m.D, s * wide))
        scale(wide, ahead(m.D, s * wide), steps.start[n - 1])
    for s in range(n):
        scale(wide, ahead(m.du, s * wide), steps.end[s])
        scale(deep, ahead(m.dk, s * deep), steps.end[s])
        m.dend[s] = dot(c.depth, ahead(m.k, s * deep), ahead(m.dk, s * deep))
        m.dstart[s] = 0
        fill(size, ahead(m.through, s * size), one * 0)
    m.dstart[n - 1] = whole * steps.start[n - 1]


def through_queries(at: int, n: int, m: Any, steps: Any, c: Any, one: Any) -> None:
    """The gradients of the outputs of one query head."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    load_rows(n, c.depth, c.depth, ahead(c.query, at * c.depth), m.q, one)
    load_rows(n, c.width, c.columns, ahead(c.dout, at * c.columns), m.dout, c.scale)
    product(n, size, c.depth, Operand(m.q, deep, 1), Operand(m.k_columns, 0, size), Operand(m.P, size, 0), False)
    product(n, size, c.width, Operand(m.dout, wide, 1), Operand(m.u_columns, 0, size), Operand(m.dP, size, 0), False)
    product(n, deep, c.width, Operand(m.dout, wide, 1), Operand(m.S_columns, 0, deep), Operand(m.dq, deep, 0), False)
    for s in range(n):
        weigh(size, ahead(m.P, s * size), ahead(steps.pairs, s * size), one)
        masked_product(size, ahead(m.dP, s * size), ahead(m.P, s * size), ahead(m.through, s * size))
        weigh(size, ahead(m.dP, s * size), ahead(steps.pairs, s * size), one)
        scale(deep, ahead(m.dq, s * deep), steps.start[s])
        m.dstart[s] += dot(c.depth, ahead(m.q, s * deep), ahead(m.dq, s * deep))
    product_upper(n, wide, Operand(m.P, 1, size), Operand(m.dout, 0, wide), Operand(m.du, wide, 0), True)
    product_lower(n, deep, Operand(m.dP, size, 1), Operand(m.k, 0, deep), Operand(m.dq, deep, 0), True)
    product_upper(n, deep, Operand(m.dP, 1, size), Operand(m.q, 0, deep), Operand(m.dk, deep, 0), True)
    store_rows(n, c.depth, c.depth, m.dq, ahead(c.dquery, at * c.depth), one)
    scale_rows(n, wide, m.dout, steps.start, one)
    product(c.depth, wide, n, Operand(m.q, 1, deep), Operand(m.dout, 0, wide), Operand(m.D, wide, 0), True)


def through_delta(at: int, n: int, m: Any, steps: Any, c: Any, one: Any) -> None:
    """From the gradients of U those of keys, values and beta."""
    size, deep, wide = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), whole_lanes(c.width, c.key)
    solve_upper(n, c.width, m.above, size, m.du, ahead(c.beta, at), m.du_rows)
    store_rows(n, c.width, c.columns, m.du_rows, ahead(c.dvalue, at * c.columns), one)
    du_rows = Operand(m.du_rows, wide, 1)
    product(n, size, c.width, du_rows, Operand(m.u_columns, 0, size), Operand(m.dP, size, 0), False)
    product(n, deep, c.width, du_rows, Operand(m.S_columns, 0, deep), Operand(m.dq, deep, 0), False)
    for s in range(n):
        c.dbeta[at + s] = dot(c.width, ahead(m.du, s * wide), ahead(m.rest, s * wide))
        masked_product(size, ahead(m.dP, s * size), ahead(m.below, s * size), ahead(m.through, s * size))
        weigh(size, ahead(m.dP, s * size), ahead(steps.pairs, s * size), -one)
        m.dP[s * size + s] = 0
        scale(deep, ahead(m.dq, s * deep), -steps.start[s])
        m.dstart[s] += dot(c.depth, ahead(m.k, s * deep), ahead(m.dq, s * deep))
        add_scaled(deep, ahead(m.dq, s * deep), ahead(m.dk, s * deep), one)
    k_rows, dk = Operand(m.k, 0, deep), Operand(m.dk, deep, 0)
    product_lower(n, deep, Operand(m.dP, size, 1), k_rows, dk, True)
    product_upper(n, deep, Operand(m.dP, 1, size), k_rows, dk, True)
    scale_rows(n, wide, m.du_rows, steps.start, -one)
    product(c.depth, wide, n, Operand(m.k, 1, deep), Operand(m.du_rows, 0, wide), Operand(m.D, wide, 0), True)


def sum_decays(n: int, size: int, m: Any, ddecay: Any, one: Any) -> None:
    """The gradient of each decay, of all factors that it is part of."""
    fill(size, m.late, one * 0)
    after, before = one * 0, one * 0
    for t in range(n - 1, -1, -1):
        after += m.dstart[t]
        add_scaled(size, ahead(m.through, t * size), m.late, one)
        ddecay[t] = after + row_total(t, m.late)
    for t in range(n):
        ddecay[t] += before
        before += m.dend[t]


@row_pass(vectors=2)
def combine(x: Row, total: Row, factor: Scalar) -> dict[str, Lanes]:
    """x + factor total"""
    return {"total": x + total * factor}


@row_pass(vectors=1)
def masked_product(x: Row, y: Row, total: Row) -> dict[str, Lanes]:
    """Add x y; where y is 0, x may be anything."""
    return {"total": total + where(y.equals(0.0), 0.0, x * y)}


@row_pass(vectors=1)
def row_total(x: Row, total: Sum) -> dict[str, Lanes]:
    return {"total": total + x}


scratch_size, divide, sum_decays = jit(scratch_size, divide, sum_decays, inner=True)
through_state, through_queries = jit(through_state, through_queries, fastmath=EXACT, inner=True)
through_delta = jit(through_delta, fastmath=EXACT, inner=True)
backward = jit(backward, fastmath=EXACT)

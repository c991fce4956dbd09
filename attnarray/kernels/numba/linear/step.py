"""One step of linear attention in place: the state is read from memory once, and written once.

Reference: attention/linear/step.py, `advance`. Parallel over batches and key heads. Scratch: a few rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.linear.chunk import dot
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, pointer
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, row_lanes
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass

ROWS = 32  # of a state that stay in the cache for all queries of a group
EACH = 0.15  # nanoseconds for each number of the state


def advance(q: Any, k: Any, v: Any, state: Any, decay: Any, beta: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(state)
    if not state.flags.c_contiguous or not state.flags.writeable or state.dtype != real or not state.flags.aligned:
        raise Declined("a state that is not contiguous")
    B, heads, Dk, Dv = state.shape
    out = np.zeros((B, q.shape[1], 1, Dv), real)
    q, k, v, decay, beta = (
        None if x is None else np.ascontiguousarray(ra.aligned(x, real)) for x in (q, k, v, decay, beta)
    )
    decays = 0 if decay is None else decay.shape[3]
    call = Step(q.shape[1] // max(heads, 1), Dk, Dv, decays, q, k, v, decay, beta, state, out)
    split_rows(step, B * heads, ra.nanoseconds(state.size, EACH, real), *pack(call, real))
    return out, state


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    step(0, 0, *pack(empty_call(Step), dtype))


class Step(NamedTuple):
    """A call; arrays are contiguous, and a state has 0, 1 or Dk decays."""

    group: int
    depth: int
    width: int
    decays: int
    query: Numbers
    key: Numbers
    value: Numbers
    decay: Numbers
    beta: Numbers
    state: Numbers
    out: Numbers


@row_pass(vectors=2)
def add_weighted(row: Row, total: Row, weight: Scalar) -> dict[str, Lanes]:
    return {"total": total + row * weight}


@row_pass(vectors=2)
def write(row: Row, u: Row, decay: Scalar, key: Scalar) -> dict[str, Lanes]:
    return {"row": row * decay + u * key}


@row_pass(vectors=2)
def rest(value: Row, u: Row, beta: Scalar) -> dict[str, Lanes]:
    """What the state is to hold at the key, less what it holds."""
    return {"u": (value - u) * beta}


def step(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The states [first, past) of all batches and key heads.

    The output is that of the old state and of what is written: S'^T q = (e^g S)^T q + (k . q) u. So one pass reads the
    state, for keys and queries, and one writes it.
    """
    c = unpack(Step, integers, numbers)
    floats, one = np.zeros(c.width + (c.group + 1) * c.depth + 1, numbers.dtype), numbers[0] * 0 + 1
    u = pointer(floats)
    key_weights = ahead(u, c.width)
    query_weights = ahead(key_weights, c.depth)
    for unit in range(first, past):
        state, key = ahead(c.state, unit * c.depth * c.width), ahead(c.key, unit * c.depth)
        query, out = ahead(c.query, unit * c.group * c.depth), ahead(c.out, unit * c.group * c.width)
        decay, factor = ahead(c.decay, unit * c.decays), one
        for d in range(c.depth):
            if d < c.decays:
                factor = np.exp(decay[d])
            key_weights[d] = key[d] * factor
            for g in range(c.group):
                query_weights[g * c.depth + d] = query[g * c.depth + d] * factor
        fill(c.width, u, one * 0)
        for d in range(0, c.depth, ROWS):
            count, rows = min(ROWS, c.depth - d), ahead(state, d * c.width)
            if not is_null(c.beta):
                weighted_sum(count, c.width, ahead(key_weights, d), rows, u)
            for g in range(c.group):
                weighted_sum(count, c.width, ahead(query_weights, g * c.depth + d), rows, ahead(out, g * c.width))
        rest(c.width, ahead(c.value, unit * c.width), u, one if is_null(c.beta) else c.beta[unit])
        for g in range(c.group):
            add_weighted(c.width, u, ahead(out, g * c.width), dot(c.depth, key, ahead(query, g * c.depth)))
        factor = one if c.decays == 0 else np.exp(decay[0])
        for d in range(c.depth):
            if 0 < d < c.decays:
                factor = np.exp(decay[d])
            write(c.width, ahead(state, d * c.width), u, factor, key[d])
    keep(floats)


def weighted_sum(count: int, columns: int, weights: Any, rows: Any, total: Any) -> None:
    """total += sum_d weights[d] rows[d]"""
    if columns % row_lanes(total) == 0:
        add_weighted_rows(count, columns, weights, rows, columns, total)
    else:
        for d in range(count):
            add_weighted(columns, ahead(rows, d * columns), total, weights[d])


weighted_sum = jit(weighted_sum, fastmath=EXACT, inner=True)
step = jit(step, fastmath=EXACT)

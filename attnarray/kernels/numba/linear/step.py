"""One step of linear attention in place: the state is read from memory once, and written once.

Reference: attention/linear/step.py, `advance`. Parallel over batches and key heads. Scratch: a row of values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass

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
def write_and_read(row: Row, u: Row, out: Row, decay: Scalar, key: Scalar, query: Scalar) -> dict[str, Lanes]:
    new = row * decay + u * key
    return {"row": new, "out": out + new * query}


@row_pass(vectors=2)
def rest(value: Row, u: Row, beta: Scalar) -> dict[str, Lanes]:
    """What the state is to hold at the key, less what it holds."""
    return {"u": (value - u) * beta}


def step(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The states [first, past) of all batches and key heads."""
    c = unpack(Step, integers, numbers)
    floats, one = np.zeros(max(c.width, 1), numbers.dtype), numbers[0] * 0 + 1
    u = pointer(floats)
    for unit in range(first, past):
        state, key = ahead(c.state, unit * c.depth * c.width), ahead(c.key, unit * c.depth)
        value, decay = ahead(c.value, unit * c.width), ahead(c.decay, unit * c.decays)
        fill(c.width, u, one * 0)
        if not is_null(c.beta):
            for d in range(c.depth):
                factor = one if c.decays == 0 else np.exp(decay[d if c.decays > 1 else 0])
                add_weighted(c.width, ahead(state, d * c.width), u, key[d] * factor)
        rest(c.width, value, u, one if is_null(c.beta) else c.beta[unit])
        query, out = ahead(c.query, unit * c.group * c.depth), ahead(c.out, unit * c.group * c.width)
        for d in range(c.depth):
            factor = one if c.decays == 0 else np.exp(decay[d if c.decays > 1 else 0])
            row = ahead(state, d * c.width)
            write_and_read(c.width, row, u, out, factor, key[d], query[d])
            for g in range(1, c.group):
                add_weighted(c.width, row, ahead(out, g * c.width), query[g * c.depth + d])
    keep(floats)


step = jit(step, fastmath=EXACT)

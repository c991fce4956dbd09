"""One step of an LSTM after its matrix products, forward and backward: all gates of a row in one pass.

Reference: ops/lstm_cell.py. Parallel over the rows. Scratch: none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.recurrent.step import Gates, gates_at
from attnarray.kernels.numba.rows.activations import hyperbolic_tangent, logistic
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, row_pass

FORWARD, BACKWARD = 5.0, 3.0  # nanoseconds for each cell


def lstm_cell(products: Any, inputs: Any, c: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(products)
    given: Any = [_dense(x, real) for x in (products, inputs, c)]
    gates, h, cells = np.empty(products.shape, real), np.empty(c.shape, real), np.empty(c.shape, real)
    size, count = c.shape[-1], gates.size // max(4 * c.shape[-1], 1)
    products, inputs, before = given
    call = Step(size, before, cells, gates, products=products, inputs=inputs, h=h)
    split_rows(step, count, ra.nanoseconds(c.size, FORWARD, real), *pack(call, real))
    return gates, h, cells


def lstm_cell_backward(dh: Any, dc: Any, gates: Any, c_before: Any, c: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(gates)
    given: Any = [_dense(x, real) for x in (dh, dc, gates, c_before, c)]
    dsums, dbefore = np.empty(gates.shape, real), np.empty(c.shape, real)
    size, count = c.shape[-1], gates.size // max(4 * c.shape[-1], 1)
    dh, dc, gates, before, cells = given
    call = Step(size, before, cells, gates, dh=dh, dc=dc, dsums=dsums, dbefore=dbefore)
    split_rows(step_backward, count, ra.nanoseconds(c.size, BACKWARD, real), *pack(call, real))
    return dsums, dbefore


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    step(0, 0, *pack(empty_call(Step), dtype))
    step_backward(0, 0, *pack(empty_call(Step), dtype))


class Step(NamedTuple):
    """A call; all gates of a row are contiguous."""

    size: int
    before: Numbers
    c: Numbers
    gates: Numbers
    products: Numbers = None
    inputs: Numbers = None
    h: Numbers = None
    dh: Numbers = None
    dc: Numbers = None
    dsums: Numbers = None
    dbefore: Numbers = None


def _dense(x: Any, real: Any) -> Any:
    return np.ascontiguousarray(ra.aligned(x, real))


@row_pass(vectors=1)
def add(products: Row, inputs: Row, gates: Row) -> dict[str, Lanes]:
    return {"gates": products + inputs}


@row_pass(vectors=1)
def cell(gates: Gates, before: Row, h: Row, c: Row) -> dict[str, Any]:
    """The gates hold their sums, and are overwritten."""
    i, f, o = (logistic(x)[0] for x in (gates.i, gates.f, gates.o))
    g = hyperbolic_tangent(gates.g)
    c = multiply_add(f, before, i * g)
    return {"gates": Gates(i, f, g, o), "h": o * hyperbolic_tangent(c), "c": c}


@row_pass(vectors=1)
def cell_backward(dh: Row, dc: Row, gates: Gates, before: Row, c: Row, dsums: Gates, dbefore: Row) -> dict[str, Any]:
    (i, f, g, o), one, read = gates, c.constant(1.0), hyperbolic_tangent(c)
    dcell = multiply_add(dh * o, one - read * read, dc)
    return {
        "dsums": Gates(
            dcell * g * i * (one - i), dcell * before * f * (one - f), dcell * i * (one - g * g),
            dh * read * o * (one - o),
        ),
        "dbefore": dcell * f,
    }  # fmt: skip


def step(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The rows [first, past)."""
    s = unpack(Step, integers, numbers)
    for n in range(first, past):
        at = n * s.size
        gates = ahead(s.gates, 4 * at)
        add(4 * s.size, ahead(s.products, 4 * at), ahead(s.inputs, 4 * at), gates)
        cell(s.size, gates_at(gates, s.size), ahead(s.before, at), ahead(s.h, at), ahead(s.c, at))


def step_backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The rows [first, past)."""
    s = unpack(Step, integers, numbers)
    for n in range(first, past):
        at = n * s.size
        gates, dsums = gates_at(ahead(s.gates, 4 * at), s.size), gates_at(ahead(s.dsums, 4 * at), s.size)
        cell_backward(
            s.size, ahead(s.dh, at), ahead(s.dc, at), gates, ahead(s.before, at), ahead(s.c, at), dsums,
            ahead(s.dbefore, at),
        )  # fmt: skip


step, step_backward = jit(step, step_backward, fastmath=EXACT)

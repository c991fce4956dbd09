"""One step of an LSTM behind its matrix products, forward and backward: all gates of a row in one pass.

Reference: ops/lstm_cell.py. Parallel over the rows. Scratch: none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.rows.activations import logistic, tangent
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, place, row_pass

FORWARD, BACKWARD = 5.0, 3.0  # nanoseconds for each cell


def lstm_cell(products: Any, inputs: Any, c: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.computed_in(products)
    given = [_dense(x, real) for x in (products, inputs, c)]
    gates, h, cells = np.empty(products.shape, real), np.empty(c.shape, real), np.empty(c.shape, real)
    size, count = c.shape[-1], gates.size // max(4 * c.shape[-1], 1)
    places = [x.ctypes.data for x in (*given, gates, h, cells)]
    split_rows(take_step, count, ra.nanoseconds(c.size, FORWARD, real), size, *places, real.type(0))
    return gates, h, cells


def lstm_cell_backward(dh: Any, dc: Any, gates: Any, c_before: Any, c: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = ra.computed_in(gates)
    given = [_dense(x, real) for x in (dh, dc, gates, c_before, c)]
    dsums, dbefore = np.empty(gates.shape, real), np.empty(c.shape, real)
    size, count = c.shape[-1], gates.size // max(4 * c.shape[-1], 1)
    places = [x.ctypes.data for x in (*given, dsums, dbefore)]
    split_rows(take_step_back, count, ra.nanoseconds(c.size, BACKWARD, real), size, *places, real.type(0))
    return dsums, dbefore


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    zero = np.dtype(dtype).type(0)
    take_step(0, 0, 0, 0, 0, 0, 0, 0, 0, zero)
    take_step_back(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, zero)


def _dense(x: Any, real: Any) -> Any:
    return np.ascontiguousarray(ra.aligned(x, real))


@row_pass(vectors=1)
def add(products: Row, inputs: Row, gates: Row) -> dict[str, Lanes]:
    return {"gates": products + inputs}


@row_pass(vectors=1)
def turn(i: Row, f: Row, g: Row, o: Row, before: Row, h: Row, c: Row) -> dict[str, Lanes]:
    """The gates hold their sums, and are overwritten."""
    i, f, o = (logistic(x)[0] for x in (i, f, o))
    g = tangent(g)
    c = multiply_add(f, before, i * g)
    return {"i": i, "f": f, "g": g, "o": o, "h": o * tangent(c), "c": c}


@row_pass(vectors=1)
def turn_back(
    dh: Row, dc: Row, i: Row, f: Row, g: Row, o: Row, before: Row, c: Row, di: Row, df: Row, dg: Row, do: Row,
    dbefore: Row,
) -> dict[str, Lanes]:  # fmt: skip
    one, read = c.constant(1.0), tangent(c)
    dcell = multiply_add(dh * o, one - read * read, dc)
    return {
        "di": dcell * g * i * (one - i),
        "df": dcell * before * f * (one - f),
        "dg": dcell * i * (one - g * g),
        "do": dh * read * o * (one - o),
        "dbefore": dcell * f,
    }


def take_step(
    first: int, past: int, size: int, products: int, inputs: int, c: int, gates: int, h: int, cells: int, like: Any
) -> None:
    for n in range(first, past):
        at = 4 * n * size
        out = ahead(place(like, gates), at)
        add(4 * size, ahead(place(like, products), at), ahead(place(like, inputs), at), out)
        turn(
            size, out, ahead(out, size), ahead(out, 2 * size), ahead(out, 3 * size), ahead(place(like, c), n * size),
            ahead(place(like, h), n * size), ahead(place(like, cells), n * size),
        )  # fmt: skip


def take_step_back(
    first: int, past: int, size: int, dh: int, dc: int, gates: int, before: int, c: int, dsums: int, dbefore: int,
    like: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        gate, dsum = ahead(place(like, gates), 4 * n * size), ahead(place(like, dsums), 4 * n * size)
        turn_back(
            size, ahead(place(like, dh), n * size), ahead(place(like, dc), n * size), gate, ahead(gate, size),
            ahead(gate, 2 * size), ahead(gate, 3 * size), ahead(place(like, before), n * size),
            ahead(place(like, c), n * size), dsum, ahead(dsum, size), ahead(dsum, 2 * size), ahead(dsum, 3 * size),
            ahead(place(like, dbefore), n * size),
        )  # fmt: skip


take_step, take_step_back = jit(take_step, fastmath=EXACT), jit(take_step_back, fastmath=EXACT)

"""What the kernels of linear attention share: the record of a call, the decays of a chunk, products of its matrices.

The matrices of a chunk are in scratch, row by row with columns padded to whole vectors, so that each is an operand of
the micro-kernel as it is, the left one also transposed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.runtime.call import Number, Numbers
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import fill, scale
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, tile_rows, where
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import Operand, tile_product
from attnarray.kernels.numba.vector.row_products import add_weighted_rows
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass


class Linear(NamedTuple):
    """A call; arrays are contiguous: queries (heads, group, steps, depth), the others (heads, steps, ...).

    A unit is a part of the value columns of a key head. The gradients of what its parts share have an axis for them in
    front.
    """

    heads: int
    parts: int
    group: int
    steps: int
    depth: int
    columns: int
    width: int  # of a part
    decays: int  # numbers of a step: 1, or one for each key dimension
    chunk: int
    query: Numbers
    key: Numbers
    value: Numbers
    decay: Numbers
    beta: Numbers
    initial: Numbers
    states: Numbers
    out: Numbers = None
    state: Numbers = None
    dout: Numbers = None
    dstate: Numbers = None
    dquery: Numbers = None
    dkey: Numbers = None
    dvalue: Numbers = None
    ddecay: Numbers = None
    dbeta: Numbers = None
    dinitial: Numbers = None
    scale: Number = 1.0


class Steps(NamedTuple):
    """The factors of the state in a chunk: of each step, from the start up to it, from it to the end; and of pairs."""

    each: Any
    start: Any
    end: Any
    pairs: Any  # (C, C), 0 where the second step is later


@row_pass(vectors=2)
def add_scaled(x: Row, total: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"total": total + x * factor}


@row_pass(vectors=2)
def copy_scaled(x: Row, out: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"out": x * factor}


@row_pass(vectors=1)
def weigh(x: Row, factor: Row, sign: Scalar) -> dict[str, Lanes]:
    """A product of a pair that is masked may be anything."""
    return {"x": where(factor.equals(0.0), 0.0, x * factor * sign)}


@row_pass(vectors=2)
def dot(x: Row, y: Row, total: Sum) -> dict[str, Lanes]:
    return {"total": total + x * y}


def unit_call(c: Any, unit: int) -> Any:
    """The call whose pointers are at the columns, or at the gradients, of the part of a unit."""
    part = unit % c.parts
    left, rows = part * c.width, part * c.heads * c.steps
    return Linear(
        c.heads, c.parts, c.group, c.steps, c.depth, c.columns, c.width, c.decays, c.chunk,
        c.query, c.key, ahead(c.value, left), c.decay, c.beta, ahead(c.initial, left),
        ahead(c.states, 0 if is_null(c.states) else left), ahead(c.out, left), ahead(c.state, left),
        ahead(c.dout, left), ahead(c.dstate, left),
        ahead(c.dquery, rows * c.group * c.depth), ahead(c.dkey, rows * c.depth), ahead(c.dvalue, left),
        ahead(c.ddecay, rows * c.decays), ahead(c.dbeta, rows), ahead(c.dinitial, left), c.scale,
    )  # fmt: skip


def load_rows(count: int, columns: int, step: int, x: Any, rows: Any, factor: Any) -> None:
    """Copy rows that are `step` numbers apart to padded ones."""
    padded = whole_lanes(columns, rows)
    for n in range(count):
        copy_scaled(columns, ahead(x, n * step), ahead(rows, n * padded), factor)


def store_rows(count: int, columns: int, step: int, rows: Any, x: Any, factor: Any) -> None:
    """Copy padded rows to rows that are `step` numbers apart."""
    padded = whole_lanes(columns, rows)
    for n in range(count):
        copy_scaled(columns, ahead(rows, n * padded), ahead(x, n * step), factor)


def scale_rows(count: int, columns: int, rows: Any, factors: Any, sign: Any) -> None:
    """Multiply each row by its factor, and by `sign`."""
    step = whole_lanes(columns, rows)
    for n in range(count):
        scale(step, ahead(rows, n * step), factors[n] * sign)


def product(rows: int, columns: int, depth: int, a: Any, b: Any, c: Any, accumulate: bool) -> None:
    """C (+)= A B for operands of any rows and whole vectors of columns."""
    for n in range(0, columns, lanes(c.start)):
        for m in range(0, rows, tile_rows(c.start)):
            a_tile, c_tile = Operand(ahead(a.start, m * a.row), a.row, a.step), ahead(c.start, m * c.row + n)
            tile_product(
                rows - m, depth, a_tile, Operand(ahead(b.start, n), 0, b.step), Operand(c_tile, c.row, 0), accumulate
            )


def product_lower(rows: int, columns: int, a: Any, b: Any, c: Any, accumulate: bool) -> None:
    """The same for a square A, 0 above the diagonal."""
    for n in range(0, columns, lanes(c.start)):
        for m in range(0, rows, tile_rows(c.start)):
            depth, c_tile = min(rows, m + tile_rows(c.start)), ahead(c.start, m * c.row + n)
            a_tile, b_tile = Operand(ahead(a.start, m * a.row), a.row, a.step), Operand(ahead(b.start, n), 0, b.step)
            tile_product(rows - m, depth, a_tile, b_tile, Operand(c_tile, c.row, 0), accumulate)


def product_upper(rows: int, columns: int, a: Any, b: Any, c: Any, accumulate: bool) -> None:
    """The same for a square A, 0 below the diagonal."""
    for n in range(0, columns, lanes(c.start)):
        for m in range(0, rows, tile_rows(c.start)):
            a_tile, c_tile = ahead(a.start, m * (a.row + a.step)), ahead(c.start, m * c.row + n)
            b_tile = Operand(ahead(b.start, m * b.step + n), 0, b.step)
            tile_product(
                rows - m, rows - m, Operand(a_tile, a.row, a.step), b_tile, Operand(c_tile, c.row, 0), accumulate
            )


def fill_steps(count: int, size: int, decay: Any, steps: Any, one: Any) -> None:
    """The factors of `count` steps from their decays; a null pointer stands for none."""
    total = one
    for t in range(count):
        steps.each[t] = one if is_null(decay) else np.exp(decay[t])
    for t in range(count):
        total = steps.each[0] if t == 0 else total * steps.each[t]
        steps.start[t] = total
        row = ahead(steps.pairs, t * size)
        if t == 0:
            fill(size, row, one * 0)
        else:
            copy_scaled(size, ahead(row, -size), row, steps.each[t])
        row[t] = 1
    steps.end[count - 1] = 1
    for t in range(count - 1, 0, -1):
        steps.end[t - 1] = steps.end[t] * steps.each[t]


def solve_lower(count: int, columns: int, below: Any, size: int, rest: Any, beta: Any, u: Any) -> None:
    """rest_t += sum_(s < t) below_ts u_s and u_t = beta_t rest_t, step after step; `rest` and `u` may be the same."""
    step = whole_lanes(columns, u)
    for t in range(count):
        row = ahead(rest, t * step)
        add_weighted_rows(t, step, ahead(below, t * size), u, step, row)
        copy_scaled(step, row, ahead(u, t * step), beta[t])


def solve_upper(count: int, columns: int, above: Any, size: int, rest: Any, beta: Any, u: Any) -> None:
    """rest_t += sum_(s > t) above_ts u_s and u_t = beta_t rest_t, from the last step on."""
    step = whole_lanes(columns, u)
    for t in range(count - 1, -1, -1):
        row, later = ahead(rest, t * step), t + 1
        add_weighted_rows(count - later, step, ahead(above, t * size + later), ahead(u, later * step), step, row)
        copy_scaled(step, row, ahead(u, t * step), beta[t])


unit_call = jit(unit_call, inner=True)
load_rows, store_rows, scale_rows = jit(load_rows, store_rows, scale_rows, fastmath=EXACT, inner=True)
product, product_lower, product_upper = jit(product, product_lower, product_upper, fastmath=EXACT, inner=True)
fill_steps, solve_lower, solve_upper = jit(fill_steps, solve_lower, solve_upper, fastmath=EXACT, inner=True)

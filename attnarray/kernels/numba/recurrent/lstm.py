"""All steps of an LSTM, forward and backward: products with packed recurrent weights, and the cells behind them.

Reference: ops/lstm.py. Parallel over blocks of W units, each with its four gates. A step reads what the step before has
written for all units: so each is a call of its own, and h, or the gradients of the gates, are held in the order in
which the products read them, in two places by turns. Scratch: a block's products.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.recurrent.lstm_cell import add, cell_backward
from attnarray.kernels.numba.recurrent.step import Gates, gates_at
from attnarray.kernels.numba.rows.activations import hyperbolic_tangent, logistic
from attnarray.kernels.numba.rows.correlation import FLOPS, pack_panels, pack_transposed
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Bytes, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import run_parts, threads_for
from attnarray.kernels.numba.vector.basics import copy, fill, move
from attnarray.kernels.numba.vector.lanes import lanes, multiply_add, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.product import LONGEST, Operand, tile_product
from attnarray.kernels.numba.vector.rows import Row, row_pass

CELL = 4.0  # nanoseconds for each cell
LEAST = 2**13  # nanoseconds of a step for each thread: between steps, threads do not fall asleep


class Steps(NamedTuple):
    """A call; arrays of states are dense, and packed ones in groups of M sequences."""

    turn: int  # of the step, in the order of the calls; written before each
    descending: int  # whether turn 0 is position T - 1
    sequences: int  # N
    steps: int  # T
    size: int  # H
    room: int  # N in whole groups of M
    weight: Numbers  # (blocks, 4, H, W); in the backward (blocks, 4 H, W)
    packed: Numbers  # (2, N, H); in the backward (2, N, 4 H)
    columns: int  # H in whole panels
    products: Numbers  # (4, N, H) in whole groups and panels; in the backward (N, H)
    mask: Bytes  # (T, N), or None
    c0: Numbers = None  # (N, H)
    gates: Numbers = None  # (T, N, 4 H)
    cells: Numbers = None  # (T, N, H)
    states: Numbers = None  # (T, N, H)
    h0: Numbers = None  # (N, H)
    sums: Numbers = None  # (T, N, 4 H)
    dy: Numbers = None  # (T, N, H)
    dh: Numbers = None  # (N, H)
    dc: Numbers = None  # (N, H)
    dsums: Numbers = None  # (T, N, 4 H)


def lstm_steps(sums: Any, weight: Any, h: Any, c: Any, given: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(sums)
    sums, h, c = _by_time(sums, real), _dense(h, real), _dense(c, real)
    (T, N, rows), H = sums.shape, h.shape[1]
    gates, states, cells = (np.empty((T, N, size), real) for size in (rows, H, H))
    panels = _gate_panels(weight, H, real)
    call = _call(panels, h, 4, given, real)._replace(descending=int(given.reverse), h0=h, c0=c)
    _run(step, call._replace(sums=sums, gates=gates, states=states, cells=cells), T, real)
    return _by_sequence(gates), _by_sequence(states), _by_sequence(cells)


def lstm_steps_backward(dy: Any, dh: Any, dc: Any, weight: Any, c: Any, ctx: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(dy)
    dy, gates, cells = (_by_time(x, real) for x in (dy, ctx.gates, ctx.cells))
    dh, dc, c = np.array(dh, real, order="C"), np.array(dc, real, order="C"), _dense(c, real)
    dsums = np.empty(gates.shape, real)
    panels, first = pack_panels(weight, real), np.zeros((len(dh), gates.shape[2]), real)
    call = _call(panels, first, 1, ctx.given, real)._replace(descending=int(not ctx.given.reverse), c0=c)
    call = call._replace(gates=gates, cells=cells, dy=dy, dh=dh, dc=dc, dsums=dsums)
    _run(step_backward, call, len(gates) + 1, real)
    return _by_sequence(dsums), dh, dc


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    step(0, 0, *pack(empty_call(Steps), np.dtype(dtype)))
    step_backward(0, 0, *pack(empty_call(Steps), np.dtype(dtype)))


def _call(panels: Any, first: Any, gates: int, given: Any, real: Any) -> Steps:
    """A call whose first step reads the products of the panels with `first` (N, ...), for so many gates together."""
    (N, depth), (width, tile), T = first.shape, tile_size(real.itemsize * 8), given.x.shape[-2]
    groups, columns = -(-N // tile), len(panels) * width
    rows = np.zeros((groups * tile, depth), real)
    rows[:N] = first
    packed = np.zeros((2, groups, depth, tile), real)
    packed[0] = rows.reshape(groups, tile, depth).transpose(0, 2, 1)
    products = np.empty((gates, len(rows), columns), real)
    mask = None if given.mask is None else np.ascontiguousarray(given.mask.reshape(N, T).T).view(np.uint8)
    return Steps(0, 0, N, T, given.hidden, len(rows), panels, packed, columns, products, mask)


def _gate_panels(weight: Any, size: int, real: Any) -> Any:
    """(4 H, H) as (blocks, 4, H, W): the units of a panel are rows of the weight."""
    width, gates = tile_size(real.itemsize * 8)[0], ra.aligned(weight, real).reshape(4, size, size)
    if size % width:
        gates = np.pad(gates, ((0, 0), (0, -size % width), (0, 0)))
    return np.ascontiguousarray(gates.reshape(4, gates.shape[1] // width, width, size).transpose(1, 0, 3, 2))


def _run(kernel: Any, call: Steps, count: int, real: Any) -> None:
    """A call of the kernel for each step, by as many threads as pay off."""
    blocks, flops = len(call.weight), 8.0 * call.sequences * call.size**2
    work = ra.nanoseconds(1, flops / FLOPS + CELL * call.sequences * call.size, real)
    threads = min(threads_for(work * count, blocks), max(work // LEAST, 1))
    bounds, arguments = [blocks * n // threads for n in range(threads + 1)], pack(call, real)
    parts = [(*span, *arguments) for span in itertools.pairwise(bounds)]
    for turn in range(count):
        arguments[0][0] = turn
        run_parts(kernel, parts)


def _dense(x: Any, real: Any) -> Any:
    return np.ascontiguousarray(ra.aligned(x, real))


def _by_time(x: Any, real: Any) -> Any:
    """(N, T, S) as a dense (T, N, S): no copy of what recurrent functions hold."""
    return _dense(np.swapaxes(x, 0, 1), real)


def _by_sequence(x: Any) -> Any:
    return np.swapaxes(x, 0, 1)


@row_pass(vectors=1)
def cell(products: Gates, sums: Gates, before: Row, gates: Gates, h: Row, c: Row) -> dict[str, Any]:
    i, f, o = (logistic(x + y)[0] for x, y in ((products.i, sums.i), (products.f, sums.f), (products.o, sums.o)))
    g = hyperbolic_tangent(products.g + sums.g)
    c = multiply_add(f, before, i * g)
    return {"gates": Gates(i, f, g, o), "h": o * hyperbolic_tangent(c), "c": c}


def position(s: Any) -> Any:
    return s.steps - 1 - s.turn if s.descending != 0 else s.turn


def places(s: Any, columns: int) -> Any:
    """Where packed rows of so many columns are read, and where they are written."""
    place = s.room * columns
    return ahead(s.packed, s.turn % 2 * place), ahead(s.packed, (s.turn + 1) % 2 * place)


def is_masked(s: Any, row: int) -> bool:
    return not is_null(s.mask) and s.mask[row] == 0


def multiply(depth: int, rows: Any, panel: Any, s: Any, products: Any) -> None:
    """W columns of the products of packed rows (N, depth) with a panel (depth, W)."""
    tile, width = tile_rows(products), lanes(products)
    for k in range(0, depth, LONGEST):
        for n in range(0, s.sequences, tile):
            a, b = Operand(ahead(rows, n * depth + k * tile), 1, tile), Operand(ahead(panel, k * width), 0, width)
            c = Operand(ahead(products, n * s.columns), s.columns, 0)
            tile_product(s.sequences - n, min(depth - k, LONGEST), a, b, c, k > 0)


def step(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gates and the state after a step, of the blocks [first, past). Where there is no step, the state stays."""
    s = unpack(Steps, integers, numbers)
    width, tile, size, t = lanes(s.gates), tile_rows(s.gates), s.size, position(s)
    back = (-1 if s.descending != 0 else 1) * s.sequences * size  # from a state to the one before
    read, written = places(s, size)
    for block in range(first, past):
        for q in range(4):
            panel = ahead(s.weight, (block * 4 + q) * size * width)
            multiply(size, read, panel, s, ahead(s.products, q * s.room * s.columns + block * width))
    u = first * width
    count = min(past * width, size) - u
    for start in range(0, s.sequences, tile):
        filled, at = min(tile, s.sequences - start), (t * s.sequences + start) * size + u
        for n in range(filled):
            row, place = t * s.sequences + start + n, at + n * size
            h, c, gates = ahead(s.states, place), ahead(s.cells, place), ahead(s.gates, row * 4 * size + u)
            h_before, c_before = ahead(s.h0, (start + n) * size + u), ahead(s.c0, (start + n) * size + u)
            if s.turn > 0:
                h_before, c_before = ahead(h, -back), ahead(c, -back)
            sums = gates_at(ahead(s.sums, row * 4 * size + u), size)
            products = gates_at(ahead(s.products, (start + n) * s.columns + u), s.room * s.columns)
            cell(count, products, sums, c_before, gates_at(gates, size), h, c)
            if is_masked(s, row):
                copy(count, h_before, h)
                copy(count, c_before, c)
        pack_transposed(count, ahead(s.states, at), size, filled, ahead(written, start * size + u * tile))


def step_backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients of the sums of a step. Before it, dh is completed by the products of those of the step behind.

    The call of the last turn completes the gradient of the initial state alone.
    """
    s = unpack(Steps, integers, numbers)
    width, tile, size, t = lanes(s.gates), tile_rows(s.gates), s.size, position(s)
    back = (1 if s.descending != 0 else -1) * s.sequences * size
    read, written = places(s, 4 * size)
    u = first * width
    count = min(past * width, size) - u
    if s.turn > 0:
        for block in range(first, past):
            multiply(4 * size, read, ahead(s.weight, block * 4 * size * width), s, ahead(s.products, block * width))
        for n in range(s.sequences):
            move(count, ahead(s.products, n * s.columns + u), ahead(s.dh, n * size + u))
    for start in range(0, s.sequences if s.turn < s.steps else 0, tile):
        filled, at = min(tile, s.sequences - start), (t * s.sequences + start) * size + u
        for n in range(filled):
            row, place, state = t * s.sequences + start + n, at + n * size, (start + n) * size + u
            dh, dc, c, gates = ahead(s.dh, state), ahead(s.dc, state), ahead(s.cells, place), row * 4 * size + u
            if is_masked(s, row):
                for q in range(4):
                    fill(count, ahead(s.dsums, gates + q * size), 0.0)
            else:
                total, c_before = ahead(s.products, (start + n) * s.columns + u), ahead(s.c0, state)
                if s.turn < s.steps - 1:
                    c_before = ahead(c, -back)
                add(count, dh, ahead(s.dy, place), total)
                of_row, dsums = gates_at(ahead(s.gates, gates), size), gates_at(ahead(s.dsums, gates), size)
                cell_backward(count, total, dc, of_row, c_before, c, dsums, dc)
                fill(count, dh, 0.0)
        for q in range(4):
            dsums = ahead(s.dsums, 4 * (at - u) + q * size + u)
            packed = ahead(written, start * 4 * size + (q * size + u) * tile)
            pack_transposed(count, dsums, 4 * size, filled, packed)


position, places, is_masked = jit(position, places, is_masked, inner=True)
multiply = jit(multiply, fastmath=EXACT, inner=True)
step, step_backward = jit(step, step_backward, fastmath=EXACT)

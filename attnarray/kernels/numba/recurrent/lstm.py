"""All steps of an LSTM, forward and backward: products with packed recurrent weights, and the cells behind them.

Reference: ops/lstm.py. Parallel over blocks of W units, each with its four gates, in one part for each thread. A step
reads what the step before has written for all units: so threads wait for each other after each step, and h, or the
gradients of the gates, are held in the order in which the products read them, in two places by turns. A thread that is
done with its part takes those that no thread has begun, so that none is waited for that does not run. Scratch: the
products of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.recurrent.lstm_cell import add, cell_backward
from attnarray.kernels.numba.recurrent.step import Gates, gates_at
from attnarray.kernels.numba.rows.activations import hyperbolic_tangent, logistic
from attnarray.kernels.numba.rows.correlation import FLOPS, pack_transposed
from attnarray.kernels.numba.rows.panels import pack_panels
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.atomics import add as add_word
from attnarray.kernels.numba.runtime.atomics import compare_exchange
from attnarray.kernels.numba.runtime.call import Bytes, Numbers, address, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import run_parts, threads_for
from attnarray.kernels.numba.runtime.waiting import LINE, wait_for, yield_function
from attnarray.kernels.numba.vector.basics import copy, fill, move
from attnarray.kernels.numba.vector.lanes import lanes, multiply_add, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.product import LONGEST, Operand, tile_product
from attnarray.kernels.numba.vector.rows import Row, row_pass

CELL = 4.0  # nanoseconds for each cell
LEAST = 2**12  # nanoseconds of a step for each thread: between steps, threads do not fall asleep


class Steps(NamedTuple):
    """A call; arrays of states are dense, and packed ones in groups of M sequences."""

    turns: int  # the number of steps, in the order in which they are computed
    blocks: int  # of W units
    parts: int  # into which the blocks are cut
    state: int  # address of the words of each turn: parts that are finished; and, lines apart, whether each is taken
    state_bytes: int  # of a turn
    yields: int
    descending: int  # whether turn 0 is position T - 1
    sequences: int  # N
    steps: int  # T
    size: int  # H
    room: int  # N in whole groups of M
    weight: Numbers  # (4, blocks, H, W); in the backward (blocks, 4 H, W)
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
    _run(run_steps, call._replace(sums=sums, gates=gates, states=states, cells=cells), T, real)
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
    _run(run_steps_backward, call, len(gates) + 1, real)
    return _by_sequence(dsums), dh, dc


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    run_steps(0, 0, *pack(empty_call(Steps), np.dtype(dtype)))
    run_steps_backward(0, 0, *pack(empty_call(Steps), np.dtype(dtype)))


def _call(panels: Any, first: Any, gates: int, given: Any, real: Any) -> Steps:
    """A call whose first step reads the products of the panels with `first` (N, ...), for so many gates together."""
    (N, depth), (width, tile), T = first.shape, tile_size(real.itemsize * 8), given.x.shape[-2]
    groups, blocks = -(-N // tile), panels.shape[-3]
    rows = np.zeros((groups * tile, depth), real)
    rows[:N] = first
    packed = np.zeros((2, groups, depth, tile), real)
    packed[0] = rows.reshape(groups, tile, depth).transpose(0, 2, 1)
    products = np.empty((gates, len(rows), blocks * width), real)
    mask = None if given.mask is None else np.ascontiguousarray(given.mask.reshape(N, T).T).view(np.uint8)
    return Steps(
        0,
        blocks,
        0,
        0,
        0,
        yield_function(),
        0,
        N,
        T,
        given.hidden,
        len(rows),
        panels,
        packed,
        blocks * width,
        products,
        mask,
    )


def _gate_panels(weight: Any, size: int, real: Any) -> Any:
    """(4 H, H) as (4, blocks, H, W): the units of a panel are rows of the weight."""
    width = tile_size(real.itemsize * 8)[0]
    panels = np.empty((4, -(-size // width), size, width), real)
    if size % width == 0:
        return pack_panels(weight.T, real, panels)
    for gate in range(4):
        pack_panels(weight[gate * size : (gate + 1) * size].T, real, panels[gate])
    return panels


def _run(kernel: Any, call: Steps, turns: int, real: Any) -> None:
    """Run the kernel by as many threads as pay off."""
    flops = 8.0 * call.sequences * call.size**2
    work = ra.nanoseconds(1, flops / FLOPS + CELL * call.sequences * call.size, real)
    threads = int(min(threads_for(work * turns, call.blocks), max(work // LEAST, 1)))
    state = np.zeros((turns, LINE // 8 + -(-threads // 8) * 8), np.int64)
    call = call._replace(turns=turns, parts=threads, state=address(state), state_bytes=state.strides[0])
    arguments = pack(call, real)
    run_parts(kernel, [(n, threads, *arguments) for n in range(threads)])


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


def position(turn: int, s: Any) -> Any:
    return s.steps - 1 - turn if s.descending != 0 else turn


def places(turn: int, s: Any, columns: int) -> Any:
    """Where packed rows of so many columns are read, and where they are written."""
    place = s.room * columns
    return ahead(s.packed, turn % 2 * place), ahead(s.packed, (turn + 1) % 2 * place)


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


def take(turn: int, part: int, s: Any) -> Any:
    """Whether this thread is the one to compute a part."""
    return compare_exchange(s.state + turn * s.state_bytes + LINE + 8 * part, 0, 1)


def finish(turn: int, s: Any) -> None:
    add_word(s.state + turn * s.state_bytes, 1)


def run_steps(thread: int, threads: int, integers: Any, numbers: Any) -> None:
    """Take part in all steps, and compute the part of this thread in each."""
    s = unpack(Steps, integers, numbers)
    for turn in range(s.turns):
        for n in range(s.parts):
            part = (thread + n) % s.parts
            if take(turn, part, s):
                step(s.blocks * part // s.parts, s.blocks * (part + 1) // s.parts, turn, s)
                finish(turn, s)
        wait_for(s.state + turn * s.state_bytes, s.parts, s.yields)


def run_steps_backward(thread: int, threads: int, integers: Any, numbers: Any) -> None:
    """See `run_steps`."""
    s = unpack(Steps, integers, numbers)
    for turn in range(s.turns):
        for n in range(s.parts):
            part = (thread + n) % s.parts
            if take(turn, part, s):
                step_backward(s.blocks * part // s.parts, s.blocks * (part + 1) // s.parts, turn, s)
                finish(turn, s)
        wait_for(s.state + turn * s.state_bytes, s.parts, s.yields)


def step(first: int, past: int, turn: int, s: Any) -> None:
    """The gates and the state after a step, of the blocks [first, past). Where there is no step, the state stays."""
    width, tile, size, t = lanes(s.gates), tile_rows(s.gates), s.size, position(turn, s)
    back = (-1 if s.descending != 0 else 1) * s.sequences * size  # from a state to the one before
    read, written = places(turn, s, size)
    for block in range(first, past):
        for q in range(4):
            panel = ahead(s.weight, (q * s.blocks + block) * size * width)
            multiply(size, read, panel, s, ahead(s.products, q * s.room * s.columns + block * width))
    u = first * width
    count = min(past * width, size) - u
    for start in range(0, s.sequences, tile):
        filled, at = min(tile, s.sequences - start), (t * s.sequences + start) * size + u
        for n in range(filled):
            row, place = t * s.sequences + start + n, at + n * size
            h, c, gates = ahead(s.states, place), ahead(s.cells, place), ahead(s.gates, row * 4 * size + u)
            h_before, c_before = ahead(s.h0, (start + n) * size + u), ahead(s.c0, (start + n) * size + u)
            if turn > 0:
                h_before, c_before = ahead(h, -back), ahead(c, -back)
            sums = gates_at(ahead(s.sums, row * 4 * size + u), size)
            products = gates_at(ahead(s.products, (start + n) * s.columns + u), s.room * s.columns)
            cell(count, products, sums, c_before, gates_at(gates, size), h, c)
            if is_masked(s, row):
                copy(count, h_before, h)
                copy(count, c_before, c)
        pack_transposed(count, ahead(s.states, at), size, filled, ahead(written, start * size + u * tile))


def step_backward(first: int, past: int, turn: int, s: Any) -> None:
    """The gradients of the sums of a step. Before it, dh is completed by the products of those of the step behind.

    The last turn completes the gradient of the initial state alone.
    """
    width, tile, size, t = lanes(s.gates), tile_rows(s.gates), s.size, position(turn, s)
    back = (1 if s.descending != 0 else -1) * s.sequences * size
    read, written = places(turn, s, 4 * size)
    u = first * width
    count = min(past * width, size) - u
    if turn > 0:
        for block in range(first, past):
            multiply(4 * size, read, ahead(s.weight, block * 4 * size * width), s, ahead(s.products, block * width))
        for n in range(s.sequences):
            move(count, ahead(s.products, n * s.columns + u), ahead(s.dh, n * size + u))
    for start in range(0, s.sequences if turn < s.steps else 0, tile):
        filled, at = min(tile, s.sequences - start), (t * s.sequences + start) * size + u
        for n in range(filled):
            row, place, state = t * s.sequences + start + n, at + n * size, (start + n) * size + u
            dh, dc, c, gates = ahead(s.dh, state), ahead(s.dc, state), ahead(s.cells, place), row * 4 * size + u
            if is_masked(s, row):
                for q in range(4):
                    fill(count, ahead(s.dsums, gates + q * size), 0.0)
            else:
                total, c_before = ahead(s.products, (start + n) * s.columns + u), ahead(s.c0, state)
                if turn < s.steps - 1:
                    c_before = ahead(c, -back)
                add(count, dh, ahead(s.dy, place), total)
                of_row, dsums = gates_at(ahead(s.gates, gates), size), gates_at(ahead(s.dsums, gates), size)
                cell_backward(count, total, dc, of_row, c_before, c, dsums, dc)
                fill(count, dh, 0.0)
        for q in range(4):
            dsums = ahead(s.dsums, 4 * (at - u) + q * size + u)
            packed = ahead(written, start * 4 * size + (q * size + u) * tile)
            pack_transposed(count, dsums, 4 * size, filled, packed)


position, places, is_masked, take, finish = jit(position, places, is_masked, take, finish, inner=True)
multiply, step, step_backward = jit(multiply, step, step_backward, fastmath=EXACT, inner=True)
run_steps, run_steps_backward = jit(run_steps, run_steps_backward, fastmath=EXACT)

"""One step of the LSTM for a panel of W rows, and a call as compiled code reads it.

Used by recurrent/forward.py and recurrent/backward.py. Rows are the queries of all batches, one after the other; each
of them is a lane. Gates, states and their projections are panels (4 H, W), (H, W) and (A, W): the micro-kernel
multiplies them with the weights, and the cell is a pass down their rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray.kernels.numba.rows.activations import hyperbolic_tangent, logistic
from attnarray.kernels.numba.runtime.call import Bytes, Doubles, Integers, Numbers
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, multiply_add, tile_rows, where
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.panel import Each, Lane, Row, Total, panel_pass
from attnarray.kernels.numba.vector.product import packed_product


class Problem(NamedTuple):
    """A call of forward or backward, None for unused fields; weights are in groups of M rows (`pack_rows`)."""

    rows: int  # B T
    queries: int  # T
    keys: int  # S
    size: int  # H
    features: int  # A
    held: int  # keys whose gates are held at a time
    batch: int  # the first one in `dkeys`
    query: Numbers  # (B T, 4 H)
    key: Numbers  # (B, S, 4 H)
    h0: Numbers  # (B T, H)
    c0: Numbers  # (B T, H)
    steps: Bytes  # (B T, S), 0 where there is no step; None if there is one everywhere
    bounds: Integers  # (panels, 2): the keys [low, past) that a panel reads
    hidden: Numbers  # W_hh
    output: Numbers  # W_r
    vector: Numbers  # v
    memory: Numbers  # scratch
    scores: Numbers  # (B T, S)
    dscores: Numbers  # (B T, S)
    hidden_transposed: Numbers  # W_hh^T, packed
    output_transposed: Numbers  # W_r^T, packed
    dqueries: Numbers  # (B T, 4 H)
    dh0: Numbers  # (B T, H)
    dc0: Numbers  # (B T, H)
    dkeys: Doubles  # (batches of the thread, S, 4 H)
    dhidden: Doubles  # (4 H padded to M, H padded to W)
    doutput: Doubles  # (A padded to M, H padded to W)
    dvector: Doubles  # (A,)


class Panel(NamedTuple):
    """The rows [first, first + filled) of a panel, its batch, or -1 for several, and its keys [low, past)."""

    first: int
    filled: int
    batch: int
    low: int
    past: int


class Gates(NamedTuple):
    """The gates of a cell: input, forget, cell and output."""

    i: Row
    f: Row
    g: Row
    o: Row


def gates_at(gates: Any, size: int) -> Any:
    """The four gates, `size` numbers apart."""
    return Gates(gates, ahead(gates, size), ahead(gates, 2 * size), ahead(gates, 3 * size))


@panel_pass
def copy(numbers: Row, out: Row) -> dict[str, Lanes]:
    return {"out": numbers}


@panel_pass
def add_one_key(queries: Row, sums: Row, key: Each) -> dict[str, Lanes]:
    return {"sums": queries + key}


@panel_pass
def sum_lanes(dsums: Row, dkey: Total) -> dict[str, Lanes]:
    return {"dkey": dsums}


@panel_pass
def apply_logistic(sums: Row) -> dict[str, Lanes]:
    return {"sums": logistic(sums)[0]}


@panel_pass
def apply_tanh(sums: Row) -> dict[str, Lanes]:
    return {"sums": hyperbolic_tangent(sums)}


@panel_pass
def advance(gates: Gates, h_before: Row, c_before: Row, h: Row, c: Row, active: Lane) -> dict[str, Lanes]:
    """Where there is no step, the state stays."""
    active, c = active > 0.0, multiply_add(gates.f, c_before, gates.i * gates.g)
    return {"h": where(active, gates.o * hyperbolic_tangent(c), h_before), "c": where(active, c, c_before)}


def panel_at(n: int, p: Any) -> Any:
    first = n * lanes(p.query)
    count = min(lanes(p.query), p.rows - first)
    batch = first // p.queries
    together = (first + count - 1) // p.queries == batch
    return Panel(first, count, batch if together else -1, p.bounds[2 * n], p.bounds[2 * n + 1])


def into_lanes(x: Any, stride: int, count: int, columns: int, packed: Any) -> None:
    """`count` rows of numbers, `stride` elements apart, as lanes of (columns, W); the other lanes are 0."""
    width = lanes(packed)
    for w in range(width):
        for n in range(columns):
            packed[n * width + w] = x[w * stride + n] if w < count else 0


def into_bytes_lanes(x: Any, stride: int, count: int, columns: int, packed: Any) -> None:
    """The same for bytes, as 0 and 1."""
    width = lanes(packed)
    for w in range(width):
        for n in range(columns):
            packed[n * width + w] = 1 if w < count and x[w * stride + n] != 0 else 0


def from_lanes(packed: Any, count: int, columns: int, x: Any, stride: int) -> None:
    width = lanes(packed)
    for w in range(count):
        for n in range(columns):
            x[w * stride + n] = packed[n * width + w]


def find_steps(panel: Any, low: int, past: int, p: Any, active: Any) -> None:
    """1 in each lane that has a step at a key, else 0: (keys, W)."""
    width = lanes(active)
    if not is_null(p.steps):
        into_bytes_lanes(ahead(p.steps, panel.first * p.keys + low), p.keys, panel.filled, past - low, active)
        return
    for n in range((past - low) * width):
        active[n] = 1 if n % width < panel.filled else 0


def multiply(rows: int, depth: int, weights: Any, b: Any, c: Any, accumulate: bool) -> None:
    """c (+)= A b, for `rows` rows of A, padded to whole groups, as c has them too."""
    packed_product(rows, depth, depth * tile_rows(c), weights, b, c, accumulate)


def add_key(panel: Any, j: int, p: Any, queries: Any, sums: Any) -> None:
    """Set the gates' inputs to the terms of query and key."""
    gates, width = 4 * p.size, lanes(sums)
    if panel.batch >= 0:
        add_one_key(0, gates, 0, queries, sums, ahead(p.key, (panel.batch * p.keys + j) * gates))
        return
    for w in range(width):
        row = panel.first + min(w, panel.filled - 1)
        key = ahead(p.key, (row // p.queries * p.keys + j) * gates)
        for e in range(gates):
            sums[e * width + w] = queries[e * width + w] + key[e]


def take_step(
    panel: Any, j: int, p: Any, queries: Any, active: Any, h_before: Any, c_before: Any, gates: Any, h: Any, c: Any
) -> None:
    """The gates of key j, and the state after it; `active` is 1 in the lanes that have this step, else 0."""
    part = p.size * lanes(gates)
    add_key(panel, j, p, queries, gates)
    multiply(4 * p.size, p.size, p.hidden, h_before, gates, True)
    # One function at a time: out-of-order execution overlaps several rows of a short body.
    apply_logistic(0, 2 * p.size, 0, gates)
    apply_tanh(2 * p.size, 3 * p.size, 0, gates)
    apply_logistic(3 * p.size, 4 * p.size, 0, gates)
    advance(0, p.size, 0, gates_at(gates, part), h_before, c_before, h, c, active)


gates_at, panel_at, into_lanes, into_bytes_lanes = jit(gates_at, panel_at, into_lanes, into_bytes_lanes, inner=True)
from_lanes, find_steps = jit(from_lanes, find_steps, inner=True)
multiply, take_step = jit(multiply, take_step, fastmath=EXACT, inner=True)
add_key = jit(add_key, fastmath=EXACT, inner=True, inline=True)

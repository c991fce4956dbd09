"""Scores by an LSTM over the keys, backward: the gates of a panel are recomputed, then read from the last key on.

Reference: attention/alignment/recurrent.py, `recurrent_scores_backward`. Parallel over panels; gradients that
panels share are summed per thread, in float64. Scratch per thread: gates and states of `held` keys. Of more keys only
the states before each such segment are held, and its gates are recomputed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray.kernels.numba.attention.panels import clear
from attnarray.kernels.numba.recurrent.step import (
    Gates,
    Problem,
    copy,
    find_steps,
    from_lanes,
    gates_at,
    into_lanes,
    multiply,
    panel_at,
    sum_lanes,
    take_step,
)  # fmt: skip
from attnarray.kernels.numba.rows.activations import hyperbolic_tangent
from attnarray.kernels.numba.runtime.call import unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, in_type, lanes, multiply_add, tile_rows, where
from attnarray.kernels.numba.vector.memory import ahead, scratch
from attnarray.kernels.numba.vector.packing import whole_lanes, whole_tiles
from attnarray.kernels.numba.vector.panel import Each, Lane, Row, panel_pass
from attnarray.kernels.numba.vector.product import lane_product
from attnarray.kernels.numba.vector.transpose import transpose

BLOCK = 4  # keys whose products over lanes are taken together


class Held(NamedTuple):
    """Panels of scratch; K is `held`."""

    queries: Any  # (4 H, W)
    dqueries: Any  # (4 H, W)
    dh: Any  # (H padded to M, W)
    dc: Any  # (H, W)
    active: Any  # (K, W)
    dscores: Any  # (K, W)
    dvector: Any  # (A, W)
    dread: Any  # (BLOCK, A padded to M, W)
    transposed: Any  # (BLOCK + 1, W, H padded to W): states with contiguous features
    dhidden: Any  # as in `Problem`, of one panel
    doutput: Any
    c: Any  # (K + 1, H, W)
    h: Any  # (K + 1, H, W)
    gates: Any  # (K, 4 H padded to M, W)
    starts: Any  # (segments, 2, H, W): the state before each


@panel_pass
def read_back(z: Row, dvector: Row, vector: Each, dscore: Lane) -> dict[str, Lanes]:
    """Gradients of z, in place, and of v."""
    read = hyperbolic_tangent(z)
    return {
        "z": dscore * vector * (read.constant(1.0) - read * read),
        "dvector": multiply_add(dscore, read, dvector),
    }


@panel_pass
def cell_backward(gates: Gates, c_before: Row, c: Row, dh: Row, dc: Row, dquery: Gates, active: Lane) -> dict[str, Any]:
    """Gradients of the gates' inputs overwrite the gates, and are added to dquery; without a step dh and dc stay."""
    (i, f, g, o), one, read, active = gates, c.constant(1.0), hyperbolic_tangent(c), active > 0.0
    dcell = multiply_add(dh * o, one - read * read, dc)
    sums = (
        dcell * g * i * (one - i), dcell * c_before * f * (one - f), dcell * i * (one - g * g),
        dh * read * o * (one - o),
    )  # fmt: skip
    dgates = Gates(*(where(active, dsum, 0.0) for dsum in sums))
    added = Gates(*(total + dsum for total, dsum in zip(dquery, dgates, strict=True)))
    return {"gates": dgates, "dquery": added, "dh": where(active, 0.0, dh), "dc": where(active, dcell * f, dc)}


@panel_pass
def add_to(numbers: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + in_type(numbers, total)}


def scratch_size(size: int, features: int, held: int, segments: int, width: int, tile: int) -> int:
    """The scratch of a thread, in numbers; see `held_at`."""
    gates, states, reads = (-(-n // tile) * tile for n in (4 * size, size, features))
    columns = -(-size // width) * width
    per_lane = 8 * size + states + size + 2 * held + features + BLOCK * reads + (BLOCK + 1) * columns
    per_lane += 2 * (held + 1) * size + held * gates + 2 * segments * size
    return 16 + width * (per_lane + width) + (gates + reads) * columns  # `transpose` reads whole squares


def held_at(p: Any, memory: Any) -> Any:
    width, part = lanes(memory), p.size * lanes(memory)
    gates, reads = whole_tiles(4 * p.size, memory), whole_tiles(p.features, memory)
    columns = whole_lanes(p.size, memory)
    dqueries = ahead(memory, 4 * part)
    dh = ahead(dqueries, 4 * part)
    dc = ahead(dh, whole_tiles(p.size, memory) * width)
    active = ahead(dc, part)
    dscores = ahead(active, p.held * width)
    dvector = ahead(dscores, p.held * width)
    dread = ahead(dvector, p.features * width)
    transposed = ahead(dread, BLOCK * reads * width)
    dhidden = ahead(transposed, (BLOCK + 1) * columns * width)
    doutput = ahead(dhidden, gates * columns)
    c = ahead(doutput, reads * columns)
    h = ahead(c, (p.held + 1) * part)
    sums = ahead(h, (p.held + 1) * part)
    starts = ahead(sums, p.held * gates * width)
    return Held(
        memory, dqueries, dh, dc, active, dscores, dvector, dread, transposed, dhidden, doutput, c, h, sums, starts
    )  # fmt: skip


def backward_panels(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The panels [first, past)."""
    p = unpack(Problem, integers, numbers)
    for n in range(first, past):
        backward_panel(panel_at(n, p), p, held_at(p, scratch(p.memory)))


def backward_panel(panel: Any, p: Any, m: Any) -> None:
    width, part, gates = lanes(m.h), p.size * lanes(m.h), 4 * p.size
    into_lanes(ahead(p.query, panel.first * gates), gates, panel.filled, gates, m.queries)
    into_lanes(ahead(p.h0, panel.first * p.size), p.size, panel.filled, p.size, m.starts)
    into_lanes(ahead(p.c0, panel.first * p.size), p.size, panel.filled, p.size, ahead(m.starts, part))
    clear(0, gates, 0, m.dqueries)
    clear(0, whole_tiles(p.size, m.h), 0, m.dh)
    clear(0, p.size, 0, m.dc)
    clear(0, p.features, 0, m.dvector)
    columns = whole_lanes(p.size, m.h) // width
    clear(0, (whole_tiles(gates, m.h) + whole_tiles(p.features, m.h)) * columns, 0, m.dhidden)
    segments = (panel.past - panel.low + p.held - 1) // p.held
    for n in range(2 * segments - 1):  # from the first segment to the last, and back
        k = n if n < segments else 2 * segments - 2 - n
        recompute(panel, k, p, m)
        if n < segments - 1:
            copy(0, p.size, 0, ahead(m.h, p.held * part), ahead(m.starts, 2 * (k + 1) * part))
            copy(0, p.size, 0, ahead(m.c, p.held * part), ahead(m.starts, (2 * (k + 1) + 1) * part))
        else:
            segment_backward(panel, k, p, m)
    from_lanes(m.dqueries, panel.filled, gates, ahead(p.dqueries, panel.first * gates), gates)
    from_lanes(m.dh, panel.filled, p.size, ahead(p.dh0, panel.first * p.size), p.size)
    from_lanes(m.dc, panel.filled, p.size, ahead(p.dc0, panel.first * p.size), p.size)
    add_to(0, whole_tiles(gates, m.h) * columns, 0, m.dhidden, p.dhidden)
    add_to(0, whole_tiles(p.features, m.h) * columns, 0, m.doutput, p.doutput)
    sum_lanes(0, p.features, 0, m.dvector, p.dvector)


def recompute(panel: Any, k: int, p: Any, m: Any) -> None:
    """Gates and states of segment k."""
    width, part, gates = lanes(m.h), p.size * lanes(m.h), whole_tiles(4 * p.size, m.h)
    low = panel.low + k * p.held
    past = min(low + p.held, panel.past)
    copy(0, p.size, 0, ahead(m.starts, 2 * k * part), m.h)
    copy(0, p.size, 0, ahead(m.starts, (2 * k + 1) * part), m.c)
    find_steps(panel, low, past, p, m.active)
    for s in range(past - low):
        h, c = ahead(m.h, s * part), ahead(m.c, s * part)
        take_step(
            panel, low + s, p, m.queries, ahead(m.active, s * width), h, c, ahead(m.gates, s * gates * width),
            ahead(h, part), ahead(c, part),
        )  # fmt: skip


def segment_backward(panel: Any, k: int, p: Any, m: Any) -> None:
    """Segment k from its last key to its first."""
    part, gates, reads = p.size * lanes(m.h), whole_tiles(4 * p.size, m.h), whole_tiles(p.features, m.h)
    low, width, columns = panel.low + k * p.held, lanes(m.h), whole_lanes(p.size, m.h)
    past, tile = min(low + p.held, panel.past), tile_rows(m.h)
    find_dscores(panel, low, past, p, m.dscores)
    for s in range(past - low - 1, -1, -1):
        step_backward(panel, low + s, s, p, m)
        if s % BLOCK == 0:
            count = min(BLOCK, past - low - s)
            for n in range(count + 1):
                transpose(columns, ahead(m.h, (s + n) * part), ahead(m.transposed, n * width * columns), columns)
            dsums = ahead(m.gates, s * gates * width)
            for row in range(0, gates, tile):
                at, total = ahead(dsums, row * width), ahead(m.dhidden, row * columns)
                lane_product(count, gates * width, at, m.transposed, columns, total)
            for row in range(0, reads, tile):
                at, total = ahead(m.dread, row * width), ahead(m.doutput, row * columns)
                lane_product(count, reads * width, at, ahead(m.transposed, width * columns), columns, total)


def find_dscores(panel: Any, low: int, past: int, p: Any, dscores: Any) -> None:
    """Score gradients of the keys [low, past), (keys, W); the first and the last one include those of keys beyond."""
    given, width = ahead(p.dscores, panel.first * p.keys), lanes(dscores)
    into_lanes(ahead(given, low), p.keys, panel.filled, past - low, dscores)
    for w in range(panel.filled):
        if low == panel.low:
            for j in range(low):
                dscores[w] += given[w * p.keys + j]
        if past == panel.past:
            for j in range(past, p.keys):
                dscores[(past - low - 1) * width + w] += given[w * p.keys + j]


def step_backward(panel: Any, j: int, s: int, p: Any, m: Any) -> None:
    """From the gradients of the state after key j, number s of its segment, to those of the state before."""
    width, part, gates = lanes(m.h), p.size * lanes(m.h), whole_tiles(4 * p.size, m.h)
    dread, active = ahead(m.dread, s % BLOCK * whole_tiles(p.features, m.h) * width), ahead(m.active, s * width)
    multiply(p.features, p.size, p.output, ahead(m.h, (s + 1) * part), dread, False)
    read_back(0, p.features, s, dread, m.dvector, p.vector, m.dscores)
    multiply(p.size, p.features, p.output_transposed, dread, m.dh, True)
    dsums, c = ahead(m.gates, s * gates * width), ahead(m.c, s * part)
    gates, dquery = gates_at(dsums, part), gates_at(m.dqueries, part)
    cell_backward(0, p.size, 0, gates, c, ahead(c, part), m.dh, m.dc, dquery, active)
    multiply(p.size, 4 * p.size, p.hidden_transposed, dsums, m.dh, True)
    if panel.batch >= 0:
        dkey = ahead(p.dkeys, ((panel.batch - p.batch) * p.keys + j) * 4 * p.size)
        sum_lanes(0, 4 * p.size, 0, dsums, dkey)
        return
    for w in range(panel.filled):
        dkey = ahead(p.dkeys, (((panel.first + w) // p.queries - p.batch) * p.keys + j) * 4 * p.size)
        for e in range(4 * p.size):
            dkey[e] += dsums[e * width + w]


held_at, find_dscores = jit(held_at, find_dscores, inner=True, inline=True)
recompute, step_backward = jit(recompute, step_backward, fastmath=EXACT, inner=True, inline=True)
segment_backward, backward_panel = jit(segment_backward, backward_panel, fastmath=EXACT, inner=True, inline=True)
backward_panels = jit(backward_panels, fastmath=EXACT)

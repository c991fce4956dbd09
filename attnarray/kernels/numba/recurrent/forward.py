"""Scores by an LSTM over the keys, forward: a panel of W queries reads all keys, its state in the L1 cache.

Reference: attention/alignment/recurrent.py, `recurrent_scores`. Parallel over panels. Scratch per thread: one
step, and the scores of `KEYS` keys.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.attention.panels import clear
from attnarray.kernels.numba.recurrent.step import (
    Problem,
    find_steps,
    from_lanes,
    into_lanes,
    multiply,
    panel_at,
    take_step,
)  # fmt: skip
from attnarray.kernels.numba.rows.activations import hyperbolic_tangent
from attnarray.kernels.numba.runtime.call import unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead, scratch
from attnarray.kernels.numba.vector.packing import whole_tiles
from attnarray.kernels.numba.vector.panel import Each, Lane, Row, panel_pass

KEYS = 64  # whose scores are transposed at a time


@panel_pass
def add_scores(z: Row, vector: Each, score: Lane) -> dict[str, Lanes]:
    return {"score": multiply_add(vector, hyperbolic_tangent(z), score)}


def scratch_size(size: int, features: int, width: int, tile: int) -> int:
    """The scratch of a thread, in numbers."""
    gates, reads = (-(-n // tile) * tile for n in (4 * size, features))
    return 16 + width * (4 * size + gates + 2 * size + reads + 2 * KEYS)


def score_panels(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The scores of the panels [first, past)."""
    p = unpack(Problem, integers, numbers)
    for n in range(first, past):
        score_panel(panel_at(n, p), p, scratch(p.memory))


def score_panel(panel: Any, p: Any, memory: Any) -> None:
    width = lanes(memory)
    queries = memory
    gates = ahead(queries, 4 * p.size * width)
    h = ahead(gates, whole_tiles(4 * p.size, memory) * width)
    c = ahead(h, p.size * width)
    z = ahead(c, p.size * width)
    active = ahead(z, whole_tiles(p.features, memory) * width)
    found = ahead(active, KEYS * width)
    into_lanes(ahead(p.query, panel.first * 4 * p.size), 4 * p.size, panel.filled, 4 * p.size, queries)
    into_lanes(ahead(p.h0, panel.first * p.size), p.size, panel.filled, p.size, h)
    into_lanes(ahead(p.c0, panel.first * p.size), p.size, panel.filled, p.size, c)
    for low in range(panel.low, panel.past, KEYS):
        stop = min(low + KEYS, panel.past)
        find_steps(panel, low, stop, p, active)
        clear(0, stop - low, 0, found)
        for j in range(low, stop):
            take_step(panel, j, p, queries, ahead(active, (j - low) * width), h, c, gates, h, c)
            multiply(p.features, p.size, p.output, h, z, False)
            add_scores(0, p.features, j - low, z, p.vector, found)
        from_lanes(found, panel.filled, stop - low, ahead(p.scores, panel.first * p.keys + low), p.keys)
    for i in range(panel.first, panel.first + panel.filled):  # keys that no lane reads leave the state as it is
        row = ahead(p.scores, i * p.keys)
        for j in range(panel.low):
            row[j] = row[panel.low]
        for j in range(panel.past, p.keys):
            row[j] = row[panel.past - 1]


score_panel = jit(score_panel, fastmath=EXACT, inner=True, inline=True)
score_panels = jit(score_panels, fastmath=EXACT)

"""Tiled attention, forward: one panel of queries against one tile of keys at a time, with an online softmax.

Reference: attention/engine.py, `attention`. Online softmax: Milakov and Gimelshein, arXiv:1805.02867; tiles: Dao et
al., FlashAttention, arXiv:2205.14135. The queries are the lanes of all vectors: scores are K Q^T and outputs V^T P, so
that the softmax over keys never crosses lanes.

Sums over many keys have three levels, so that their rounding does not grow with the number of keys: those of a tile,
those of `tiles_together` tiles, and those of all keys, relative to the maximum when they were last added to. The
sum of the exponentials, whose error all outputs of a query would share, is in float64 beyond a few keys.

Parallel over panels of W queries. Scratch per thread: a chunk of panels (queries and outputs, these twice where there
are many keys) and a tile of keys and values, of at most 1 MB and 128 kB, so that they stay in the cache of a core.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.mask_tiles import BOUNDS, EMPTY, KIND, find_kinds
from attnarray.kernels.numba.attention.panels import add_rows_to, clear, move, unpack_panel
from attnarray.kernels.numba.attention.scores import (
    HIGH,
    LOW,
    Part,
    Queries,
    chunk_span,
    decode_scratch,
    dropout_factors,
    prepare_queries,
    score_panel,
    seen_keys,
)  # fmt: skip
from attnarray.kernels.numba.attention.stored import pack_paired_columns, rows_scratch, stored_rows, word_rows
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import (
    Lanes,
    exp,
    in_type,
    lanes,
    log,
    maximum,
    multiply_add,
    tile_rows,
    where,
)
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer, scratch
from attnarray.kernels.numba.vector.packing import pack_columns, pack_rows, put_nan, remove_nonfinite, whole_tiles
from attnarray.kernels.numba.vector.pairs import packed_pair_product, pair_rows
from attnarray.kernels.numba.vector.panel import Lane, Row, Sum, panel_pass
from attnarray.kernels.numba.vector.product import packed_product

TOGETHER = 16  # tiles of keys, at least, that are summed before they are added to the sums of all keys


class State(NamedTuple):
    """The online softmax of a chunk, as pointers to (P, W)."""

    row_max: Any  # of the scores so far
    before: Any  # the same, one tile ago
    shift: Any  # the same, but 0 where all keys so far are masked
    row_sum: Any  # float64
    factor: Any
    out: Any  # (P, Dv padded to M, W)
    all_max: Any  # `row_max` when the sums of all keys were last added to
    all_sum: Any  # float64
    all_out: Any


@panel_pass
def find_max(scores: Row, row_max: Lane) -> dict[str, Lanes]:
    return {"row_max": maximum(scores, row_max)}


@panel_pass
def update_max(row_max: Row, before: Row, shift: Row, row_sum: Row, factor: Row) -> dict[str, Lanes]:
    """The running maximum has grown from `before` to `row_max`: `factor` rescales the sums so far."""
    shift = where(row_max.equals(-math.inf), 0.0, row_max)
    factor = exp(before - shift)
    return {"before": row_max, "shift": shift, "factor": factor, "row_sum": row_sum * in_type(factor, row_sum)}


@panel_pass
def rescale(out: Row, factor: Lane) -> dict[str, Lanes]:
    return {"out": out * factor}


@panel_pass
def rescale_hiding(out: Row, factor: Lane) -> dict[str, Lanes]:
    """A factor of zero masks NaN and infinities, as a weight of zero does."""
    return {"out": where(factor.equals(0.0), 0.0, out * factor)}


@panel_pass
def add_all(row_max: Row, all_max: Row, row_sum: Row, all_sum: Row, factor: Row) -> dict[str, Lanes]:
    """The sum over all keys, rescaled by `factor` and added to the one of the last tiles."""
    factor = exp(all_max - where(row_max.equals(-math.inf), 0.0, row_max))
    return {"factor": factor, "row_sum": row_sum + all_sum * in_type(factor, row_sum)}


@panel_pass
def exponentiate(scores: Row, shift: Lane, row_sum: Sum) -> dict[str, Lanes]:
    weights = exp(scores - shift)
    return {"scores": weights, "row_sum": row_sum + weights}


@panel_pass
def drop(weights: Row, factor: Row) -> dict[str, Lanes]:
    return {"weights": weights * factor}


@panel_pass
def conclude(shift: Row, row_sum: Row, inverse: Row, rest: Row) -> dict[str, Lanes]:
    """Overwrite the shift with the lse; 1 / row_sum as a sum of two numbers, 0 for a fully masked row.

    Both are above 0, so that their products with an infinity are not NaN.
    """
    wide = where(row_sum.equals(0.0), 0.0, row_sum.constant(1.0) / row_sum)
    inverse = in_type(wide * (1 - 2.0**-23), shift)
    rest = in_type(wide - in_type(inverse, wide), shift)
    return {"shift": shift + log(in_type(row_sum, shift)), "inverse": inverse, "rest": rest}


@panel_pass
def divide(out: Row, inverse: Lane, rest: Lane) -> dict[str, Lanes]:
    return {"out": multiply_add(out, inverse, out * rest)}


def forward(first: int, past: int, call_integers: Any, call_numbers: Any) -> None:
    """The panels [first, past), counted over all batches and heads of keys."""
    call, numbers = pointer(call_integers), pointer(call_numbers)
    ac.find_data(call)
    width, depth = lanes(numbers), ac.columns(call, ac.K)
    panels = (ac.group_rows(call) + width - 1) // width
    chunk, keys = min(call[ac.PANELS_PER_CHUNK], panels, past - first), whole_tiles(call[ac.KEYS_PER_TILE], numbers)
    columns = whole_tiles(ac.columns(call, ac.V), numbers)
    lane = chunk * width
    lane_of_all = lane if ac.rows(call, ac.K) > tiles_together(call) * call[ac.KEYS_PER_TILE] else 0
    sizes = (
        lane * depth, lane * columns, keys * depth, keys * columns, keys * width, (keys + 8) * width, 5 * lane,
        lane_of_all * (columns + 1), decode_scratch(call, numbers), rows_scratch(keys, call, numbers),
    )  # fmt: skip
    floats, doubles = np.empty(16 + sum(sizes), call_numbers.dtype), np.empty(8 + lane + lane_of_all)
    integers, bounds_array = np.empty(4 * lane, np.int32), np.empty(BOUNDS * chunk + width, np.int64)
    i32, at = pointer(integers), scratch(floats)
    bounds = pointer(bounds_array)
    queries = Queries(
        at, i32, ahead(i32, lane), ahead(i32, 2 * lane), ahead(i32, 3 * lane), bounds, ahead(bounds, BOUNDS * chunk),
        ahead(at, sum(sizes[:-2])), ahead(at, sum(sizes[:-1])),
    )  # fmt: skip
    out = ahead(at, sizes[0])
    key_tile = ahead(out, sizes[1])
    value_tile = ahead(key_tile, sizes[2])
    scores = ahead(value_tile, sizes[3])
    extra = ahead(scores, sizes[4])
    at = ahead(extra, sizes[5])
    beyond, totals = ahead(at, sizes[6]), scratch(doubles)
    state = State(
        at, ahead(at, lane), ahead(at, 2 * lane), totals, ahead(at, 3 * lane), out, beyond, ahead(totals, lane),
        ahead(beyond, lane_of_all),
    )  # fmt: skip
    while first < past:
        span = chunk_span(first, past, chunk, call, numbers)
        forward_chunk(span, queries, state, key_tile, value_tile, scores, extra, call, numbers)
        first += (span.past - span.first + width - 1) // width
    keep(floats)
    keep(doubles)
    keep(integers)
    keep(bounds_array)


def forward_chunk(
    span: Any, queries: Any, state: Any, key_tile: Any, value_tile: Any, scores: Any, extra: Any, call: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """All queries of a chunk; its tiles of keys are packed once for all of its panels."""
    panels = (span.past - span.first + lanes(numbers) - 1) // lanes(numbers)
    size = call[ac.KEYS_PER_TILE]
    prepare_queries(span, queries, call, numbers)
    start_state(span, panels, state, call, numbers)
    low, high = seen_keys(panels, queries, call)
    tiles, together = 0, tiles_together(call)
    for t in range(low // size * size, high, size):
        start, stop = max(t, low), min(t + size, high)
        if not find_kinds(panels, start, span, queries, call, numbers):
            continue
        if tiles % together == 0 and tiles > 0:
            set_aside(panels, tiles > together, state, call, numbers)
        tiles += 1
        nonfinite = pack_tile(start, stop, span, queries, key_tile, value_tile, call, numbers)
        for p in range(panels):
            tile = Tile(start, stop, nonfinite, key_tile, value_tile)
            forward_panel(p, tile, span, queries, state, scores, extra, call, numbers)
    if tiles > together:
        gather(panels, state, call, numbers)
    finish(span, panels, queries, state, call, numbers)


def pack_tile(
    start: int, stop: int, span: Any, queries: Any, key_tile: Any, value_tile: Any, call: Any, numbers: Any
) -> bool:
    """Pack the keys and values [start, stop); return whether NaN or infinities among the values were replaced by 0."""
    b, g, memory = span.b, span.g, queries.wide
    if ac.in_pairs(call, numbers):
        pack_rows(word_rows(ac.K, b, g, start, stop, call, numbers), 0, stop - start, key_tile)
        return pack_paired_columns(ac.V, b, g, start, stop, memory, value_tile, call, numbers)
    pack_rows(stored_rows(ac.K, b, g, start, stop, memory, call, numbers), 0, stop - start, key_tile)
    pack_columns(stored_rows(ac.V, b, g, start, stop, memory, call, numbers), 0, stop - start, value_tile)
    count = (stop - start) * whole_tiles(ac.columns(call, ac.V), numbers)
    return call[ac.HIDES] != 0 and remove_nonfinite(value_tile, count)


def start_state(span: Any, panels: int, state: Any, call: Any, numbers: Any) -> None:
    """Start with empty sums; a sink is a score before all others."""
    width, count = lanes(numbers), ac.rows(call, ac.Q)
    for n in range(panels * width):
        state.row_max[n], state.before[n], state.shift[n], state.row_sum[n] = -np.inf, -np.inf, 0, 0
    if ac.given(call, ac.SINKS):
        for n in range(span.past - span.first):
            sink = ac.matrix(numbers, call, ac.SINKS, 0, span.h + (span.first + n) // count)[0, 0]
            state.row_max[n], state.before[n] = sink, sink
            state.shift[n], state.row_sum[n] = (sink, 1) if sink != -np.inf else (0, 0)
    for n in range(panels * whole_tiles(ac.columns(call, ac.V), numbers) * width):
        state.out[n] = 0


class Tile(NamedTuple):
    """A packed tile of the keys [start, stop), and whether its values held NaN or infinities."""

    start: int
    stop: int
    nonfinite: bool
    keys: Any
    values: Any


def forward_panel(
    p: int, key_tile: Any, span: Any, queries: Any, state: Any, scores: Any, extra: Any, call: Any, numbers: Any
) -> None:
    """One panel of queries against one tile of keys."""
    start, stop = key_tile.start, key_tile.stop
    width, tile = lanes(numbers), tile_rows(numbers)
    bounds = ahead(queries.bounds, BOUNDS * p)
    first, past = max(start, bounds[LOW]) - start, min(stop, bounds[HIGH]) - start
    if first >= past or bounds[KIND] == EMPTY:
        return
    score_panel(Part(p, start, first, past), span, queries, key_tile.keys, scores, extra, extra, call, numbers)
    find_max(first, past, p, scores, state.row_max)
    update_max(p, p + 1, 0, state.row_max, state.before, state.shift, state.row_sum, state.factor)
    columns = ac.columns(call, ac.V)
    out = ahead(state.out, p * whole_tiles(columns, numbers) * width)
    if call[ac.HIDES] != 0:
        rescale_hiding(0, columns, p, out, state.factor)
    else:
        rescale(0, columns, p, out, state.factor)
    exponentiate(first, past, p, scores, state.shift, state.row_sum)
    if call[ac.DROPS] != 0:
        drop(first, past, 0, scores, dropout_factors(p, start, first, past, span, queries, extra, call, numbers))
    weights = ahead(scores, first * width)
    if ac.in_pairs(call, numbers):
        low, high, pairs = first // 2, (past + 1) // 2, (stop - start + 1) // 2
        clear(2 * low, first, 0, scores)
        clear(past, 2 * high, 0, scores)
        pair_rows(low, high, scores, extra)
        values, words = ahead(key_tile.values, low * tile), ahead(extra, low * width)
        packed_pair_product(columns, high - low, pairs * tile, values, words, out, True, numbers[ac.ONE])
    else:
        values = ahead(key_tile.values, first * tile)
        packed_product(columns, past - first, (stop - start) * tile, values, weights, out, True)
    if key_tile.nonfinite:
        source = stored_rows(ac.V, span.b, span.g, start + first, start + past, queries.wide, call, numbers)
        put_nan(source, 0, past - first, weights, width, 1, width, out, width, 1)


def tiles_together(call: Any) -> Any:
    """How many tiles of keys are summed before they are added to the others: of many tiles about the square root."""
    return max(TOGETHER, int(math.sqrt(ac.rows(call, ac.K) // call[ac.KEYS_PER_TILE])))


def set_aside(panels: int, again: bool, state: Any, call: Any, numbers: Any) -> None:
    """Add the sums of the last tiles to those of all keys, and reset them."""
    columns = whole_tiles(ac.columns(call, ac.V), numbers)
    if again:
        gather(panels, state, call, numbers)
    move(0, panels * columns, 0, state.out, state.all_out)
    for n in range(panels * lanes(numbers)):
        state.all_max[n] = state.row_max[n]
        state.all_sum[n], state.row_sum[n] = state.row_sum[n], 0


def gather(panels: int, state: Any, call: Any, numbers: Any) -> None:
    """Add the sums of all keys to those of the last tiles."""
    width, columns = lanes(numbers), whole_tiles(ac.columns(call, ac.V), numbers)
    add_all(0, panels, 0, state.row_max, state.all_max, state.row_sum, state.all_sum, state.factor)
    for p in range(panels):
        out = ahead(state.all_out, p * columns * width)
        if call[ac.HIDES] != 0:
            rescale_hiding(0, columns, p, out, state.factor)
        else:
            rescale(0, columns, p, out, state.factor)
        add_rows_to(0, columns, 0, out, ahead(state.out, p * columns * width))


def finish(span: Any, panels: int, queries: Any, state: Any, call: Any, numbers: Any) -> None:
    """Outputs and lse of a chunk from its sums."""
    width, count, columns = lanes(numbers), ac.rows(call, ac.Q), whole_tiles(ac.columns(call, ac.V), numbers)
    conclude(0, panels, 0, state.shift, state.row_sum, state.factor, state.before)
    for p in range(panels):
        out = ahead(state.out, p * columns * width)
        divide(0, ac.columns(call, ac.V), p, out, state.factor, state.before)
        unpack_panel(ac.OUT, p, span, queries, out, call, numbers)
    h, i = span.h + span.first // count, span.first % count
    for n in range(span.past - span.first):
        ac.matrix(numbers, call, ac.LSE, span.b, h)[i, 0] = state.shift[n]
        h, i = (h, i + 1) if i + 1 < count else (h + 1, 0)


pack_tile = jit(pack_tile, inner=True)
start_state, finish, set_aside, gather = jit(start_state, finish, set_aside, gather, fastmath=EXACT, inner=True)
tiles_together = jit(tiles_together, inner=True)
forward_panel, forward_chunk = jit(forward_panel, forward_chunk, fastmath=EXACT, inner=True, inline=True)
forward = jit(forward, fastmath=EXACT)

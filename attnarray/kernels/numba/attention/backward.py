"""Tiled attention, backward: the weights are recomputed from the lse, one panel of queries and tile of keys at a time.

Reference: attention/engine.py, `attention_backward`; the order of the loops is that of FlashAttention (Dao et al.,
arXiv:2205.14135) within a chunk of queries: for each tile of keys, for each block of panels

    S^T = K Q^T,  P^T = exp(S^T - lse),  dP^T = V dO^T,  dS = P (dP - delta),
    dQ^T += K^T dS^T,  dV += P^T dO,  dK += dS^T Q

Gradients of queries are summed over some tiles of keys before they are added to those of all keys; gradients of keys
and values over a block of panels, then over a chunk, and then over all queries: so rounding does not grow with their
number. The gradients of sinks, and of a bias that many queries or keys share, are summed in float64.

Parallel over panels of W queries. A head that two threads share has gradients of key and value in scratch of the second
one, which are added at the end. Scratch per thread: a chunk of panels, a tile of keys and a block of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.block import BLOCK, Block, Chunk, Seen, Tile, backward_block
from attnarray.kernels.numba.attention.forward import tiles_together
from attnarray.kernels.numba.attention.mask_tiles import BOUNDS, find_kinds
from attnarray.kernels.numba.attention.panels import (
    add_rows_to,
    clear,
    move,
    multiply,
    pack_panel,
    pack_words,
    unpack_panel,
)
from attnarray.kernels.numba.attention.scores import (
    Queries,
    chunk_span,
    decode_scratch,
    prepare_queries,
    seen_keys,
)  # fmt: skip
from attnarray.kernels.numba.attention.stored import (
    interleave_rows,
    pack_paired_columns,
    rows_scratch,
    store_row,
    stored_rows,
    word_rows,
)  # fmt: skip
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, where
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer, pointer_at, row_pointer, scratch
from attnarray.kernels.numba.vector.packing import (
    pack_columns,
    pack_row,
    pack_rows,
    remove_nonfinite,
    whole_lanes,
    whole_tiles,
)  # fmt: skip
from attnarray.kernels.numba.vector.pairs import remove_nonfinite_words
from attnarray.kernels.numba.vector.panel import Row, Sum, panel_pass
from attnarray.kernels.numba.vector.sixteen import NATIVE


def backward(first: int, past: int, call_integers: Any, call_numbers: Any) -> None:
    """The panels [first, past), counted over all batches and heads of keys."""
    call, numbers = pointer(call_integers), pointer(call_numbers)
    ac.find_data(call)
    width = lanes(numbers)
    panels = (ac.group_rows(call) + width - 1) // width
    chunk, size = min(call[ac.PANELS_PER_CHUNK], panels, past - first), whole_tiles(call[ac.KEYS_PER_TILE], numbers)
    depth, wide = ac.columns(call, ac.K), ac.columns(call, ac.V)
    lane, full = chunk * width, size * width
    integers, bounds_array = np.empty(4 * lane, np.int32), np.empty(BOUNDS * chunk + width, np.int64)
    (depth_rows, wide_rows), depth_panels = padded_rows(call, numbers), whole_tiles(depth, numbers)
    per_lane = depth + wide + depth_rows + wide_rows + depth_panels + 2
    per_key = depth + wide + depth_panels + depth_rows + wide_rows
    all_of_lane = depth_panels if ac.rows(call, ac.K) > tiles_together(call) * call[ac.KEYS_PER_TILE] else 0
    before = full if call[ac.MODIFY] else 0
    per_panel = (9 + wide) * width + before
    others = per_panel + lane * all_of_lane + decode_scratch(call, numbers) + rows_scratch(size, call, numbers)
    floats = np.empty(16 + lane * per_lane + size * per_key + full * (2 * BLOCK + 2) + others, call_numbers.dtype)
    i32, at, bounds = pointer(integers), scratch(floats), pointer(bounds_array)
    all_queries = ahead(at, lane * depth)
    decoding = ahead(all_queries, lane * all_of_lane)
    ends, positions, heads = ahead(i32, lane), ahead(i32, 2 * lane), ahead(i32, 3 * lane)
    widened = ahead(decoding, decode_scratch(call, numbers))
    queries = Queries(at, i32, ends, positions, heads, bounds, ahead(bounds, BOUNDS * chunk), decoding, widened)
    dout = ahead(widened, rows_scratch(size, call, numbers))
    query_rows = ahead(dout, lane * wide)
    dout_rows = ahead(query_rows, lane * depth_rows)
    dquery = ahead(dout_rows, lane * wide_rows)
    lse = ahead(dquery, lane * depth_panels)
    kept = Chunk(dout, query_rows, dout_rows, dquery, all_queries, lse, ahead(lse, lane), ahead(lse, 2 * lane))
    at = ahead(kept.out, wide * width)
    key_columns = ahead(at, size * (depth + wide))
    dkeys = ahead(key_columns, size * depth_panels)
    dvalues = ahead(dkeys, size * depth_rows)
    tile = Tile(at, ahead(at, size * depth), key_columns, dkeys, dvalues)
    at = ahead(dvalues, size * wide_rows)
    slope = ahead(at, 2 * BLOCK * full)
    factors = ahead(slope, full + before)
    block = Block(at, ahead(at, BLOCK * full), slope, ahead(slope, before), factors, ahead(factors, full + 8 * width))
    while first < past:
        span, shared = chunk_span(first, past, chunk, call, numbers), first // panels == call[ac.SHARED]
        backward_chunk(span, queries, kept, tile, block, shared, call, numbers)
        first += (span.past - span.first + width - 1) // width
    keep(floats)
    keep(integers)
    keep(bounds_array)


def padded_rows(call: Any, like: Any) -> Any:
    """The numbers of a packed row of keys, and of values."""
    return whole_lanes(ac.columns(call, ac.K), like), whole_lanes(ac.columns(call, ac.V), like)


def backward_chunk(
    span: Any, queries: Any, kept: Any, tile: Any, block: Any, shared: bool, call: Any, numbers: Any
) -> None:
    """All queries of a chunk against all keys; `shared` says that another thread adds to this head's gradients."""
    width, depth, wide = lanes(numbers), ac.columns(call, ac.K), ac.columns(call, ac.V)
    panels, size = (span.past - span.first + width - 1) // width, call[ac.KEYS_PER_TILE]
    prepare_queries(span, queries, call, numbers)
    bad_queries = prepare_chunk(span, panels, queries, kept, call, numbers)
    low, high = seen_keys(panels, queries, call)
    tiles, together, dqueries = 0, tiles_together(call), panels * whole_tiles(depth, numbers)
    for t in range(low // size * size, high, size):
        start, stop = max(t, low), min(t + size, high)
        if not find_kinds(panels, start, span, queries, call, numbers):
            continue
        if tiles % together == 0 and tiles > 0:
            if tiles > together:
                add_rows_to(0, dqueries, 0, kept.all_dquery, kept.dquery)
            move(0, dqueries, 0, kept.dquery, kept.all_dquery)
        tiles += 1
        pack_tile(start, stop, span, queries, tile, call, numbers)
        clear(0, whole_tiles(size, numbers) * whole_lanes(depth, numbers) // width, 0, tile.dkeys)
        clear(0, whole_tiles(size, numbers) * whole_lanes(wide, numbers) // width, 0, tile.dvalues)
        for p in range(0, panels, BLOCK):
            seen = Seen(start, stop, bad_queries)
            backward_block(p, min(panels, p + BLOCK), seen, span, queries, kept, tile, block, call, numbers)
        if ac.in_pairs(call, numbers):  # whose queries are not multiplied by the scale
            multiply(0, size * whole_lanes(depth, numbers) // width, 0, tile.dkeys, numbers[ac.SCALE])
        add_rows(tile.dkeys, start, stop, ac.SHARED_DK if shared else ac.DK, span, call, numbers)
        add_rows(tile.dvalues, start, stop, ac.SHARED_DV if shared else ac.DV, span, call, numbers)
    if tiles > together:
        add_rows_to(0, dqueries, 0, kept.all_dquery, kept.dquery)
    for p in range(panels):
        dquery = ahead(kept.dquery, p * whole_tiles(depth, numbers) * width)
        multiply(0, depth, 0, dquery, numbers[ac.SCALE])
        unpack_panel(ac.DQ, p, span, queries, dquery, call, numbers)


def pack_tile(start: int, stop: int, span: Any, queries: Any, tile: Any, call: Any, numbers: Any) -> None:
    """Pack the keys and values [start, stop); keys that weights of zero may hide are finite in `key_columns`."""
    b, g, memory = span.b, span.g, queries.wide
    if ac.in_pairs(call, numbers):
        pack_rows(word_rows(ac.V, b, g, start, stop, call, numbers), 0, stop - start, tile.values)
        pack_rows(word_rows(ac.K, b, g, start, stop, call, numbers), 0, stop - start, tile.keys)
        pack_paired_columns(ac.K, b, g, start, stop, memory, tile.key_columns, call, numbers)
        return
    pack_rows(stored_rows(ac.V, b, g, start, stop, memory, call, numbers), 0, stop - start, tile.values)
    keys = stored_rows(ac.K, b, g, start, stop, memory, call, numbers)
    pack_rows(keys, 0, stop - start, tile.keys)
    pack_columns(keys, 0, stop - start, tile.key_columns)
    if call[ac.HIDES] != 0:
        remove_nonfinite(tile.key_columns, (stop - start) * whole_tiles(ac.columns(call, ac.K), numbers))


def prepare_chunk(span: Any, panels: int, queries: Any, kept: Any, call: Any, numbers: Any) -> bool:
    """Fill `kept`; return whether queries and cotangents had NaN or infinities, which a weight of zero must mask."""
    width, depth, wide, count = lanes(numbers), ac.columns(call, ac.K), ac.columns(call, ac.V), ac.rows(call, ac.Q)
    depth_rows, wide_rows = whole_lanes(depth, numbers), whole_lanes(wide, numbers)
    doubles = np.empty(width)
    sums = pointer(doubles)
    clear(0, panels * whole_tiles(depth, numbers), 0, kept.dquery)
    clear(0, panels * depth_rows, 0, kept.query_rows)
    clear(0, panels * wide_rows, 0, kept.dout_rows)
    clear(0, panels, 0, kept.lse)
    for p in range(panels):
        dout = ahead(kept.dout, p * wide * width)
        pack_panel(ac.DOUT, p, numbers[ac.ONE], span, queries, dout, call, numbers)
        pack_panel(ac.OUT, p, numbers[ac.ONE], span, queries, kept.out, call, numbers)
        for w in range(width):
            sums[w] = 0
        add_to_delta(0, wide, 0, dout, kept.out, sums)
        for w in range(width):
            kept.delta[p * width + w] = sums[w]
        if ac.in_pairs(call, numbers):
            pack_words(ac.DOUT, p, span, queries, dout, call, numbers)
    bad_queries = pack_query_rows(ac.Q, panels, numbers[ac.SCALE], span, queries, kept.query_rows, call, numbers)
    bad_douts = pack_query_rows(ac.DOUT, panels, numbers[ac.ONE], span, queries, kept.dout_rows, call, numbers)
    for n in range(span.past - span.first):
        i, h = (span.first + n) % count, span.h + (span.first + n) // count
        lse = ac.matrix(numbers, call, ac.LSE, span.b, h)[i, 0]
        if ac.given(call, ac.DLSE):
            kept.delta[n] -= ac.matrix(numbers, call, ac.DLSE, span.b, h)[i, 0]
        kept.lse[n] = lse if lse != -np.inf else 0
        if ac.given(call, ac.SINKS):
            weight = np.exp(ac.matrix(numbers, call, ac.SINKS, 0, h)[0, 0] - (lse if lse != -np.inf else 0))
            if weight != 0:
                ac.matrix(pointer_at(0.0, 0), call, ac.DSINKS, 0, h)[0, 0] -= weight * kept.delta[n]
    keep(doubles)
    return bad_queries or bad_douts


def pack_query_rows(
    slot: int, panels: int, factor: Any, span: Any, queries: Any, packed: Any, call: Any, numbers: Any
) -> bool:
    """The rows of a slot times `factor`, or the words of two rows each; columns are padded with 0 to whole vectors.

    Return whether there are numbers that are not finite; if weights of zero may hide them, they are replaced by 0.
    """
    count, columns = ac.rows(call, ac.Q), ac.columns(call, slot)
    step, past, pairs = whole_lanes(columns, numbers), span.past - span.first, ac.in_pairs(call, numbers)
    for n in range(0, past, 2 if pairs else 1):
        h, i = span.h + (span.first + n) // count, (span.first + n) % count
        if pairs:
            low, high = ac.element_address(call, slot, span.b, h, i, 0), 0
            if n + 1 < past:
                h, i = (h, i + 1) if i + 1 < count else (h + 1, 0)
                high = ac.element_address(call, slot, span.b, h, i, 0)
            interleave_rows(columns, low, high, ahead(packed, n // 2 * step))
        else:
            row = stored_rows(slot, span.b, h, i, i + 1, queries.wide, call, numbers)
            pack_row(row, 0, factor, ahead(packed, n * step))
    if call[ac.HIDES] == 0:
        return False
    rows = panels * lanes(numbers)
    return remove_nonfinite_words(packed, rows // 2 * step) if pairs else remove_nonfinite(packed, rows * step)


@panel_pass
def add_to_delta(x: Row, y: Row, total: Sum) -> dict[str, Lanes]:
    """Skip where y is 0: a fully masked row is 0, and its cotangent must not reach the sinks."""
    return {"total": total + where(y.equals(0.0), 0.0, x * y)}


def add_rows(rows: Any, first: int, past: int, slot: int, span: Any, call: Any, numbers: Any) -> None:
    """Add packed rows to the rows [first, past) of a slot; 16-bit ones are written, as no other chunk adds to them."""
    columns = whole_lanes(ac.columns(call, slot), rows)
    b, g = (0, 0) if slot == ac.SHARED_DK or slot == ac.SHARED_DV else (span.b, span.g)
    x = ac.matrix(numbers, call, slot, b, g)
    for n in range(past - first):
        if ac.storage(call, slot, numbers) != NATIVE:
            store_row(slot, b, g, first + n, ahead(rows, n * columns), call, numbers)
        elif x.strides[1] == x.itemsize:
            numbers_there = row_pointer(x, first + n)
            for d in range(x.shape[1]):
                numbers_there[d] += rows[n * columns + d]
        else:
            for d in range(x.shape[1]):
                x[first + n, d] += rows[n * columns + d]


pack_tile, pack_query_rows, padded_rows = jit(pack_tile, pack_query_rows, padded_rows, inner=True)
add_rows, prepare_chunk = jit(add_rows, prepare_chunk, fastmath=EXACT, inner=True)
backward_chunk = jit(backward_chunk, fastmath=EXACT, inner=True, inline=True)
backward = jit(backward, fastmath=EXACT)

"""The backward pass of a block of panels of queries against one tile of keys: weights, their gradients, and products.

Used by attention/backward.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.mask_tiles import BOUNDS, EMPTY, KIND
from attnarray.kernels.numba.attention.panels import clear, find_rows
from attnarray.kernels.numba.attention.scores import HIGH, LOW, Part, dropout_factors, modify, score_panel
from attnarray.kernels.numba.attention.stored import stored_rows
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, exp, item_bytes, lanes, tile_rows, where
from attnarray.kernels.numba.vector.memory import ahead, pointer_at, row_pointer
from attnarray.kernels.numba.vector.packing import put_nan, whole_lanes, whole_tiles
from attnarray.kernels.numba.vector.pairs import lane_pair_product, packed_pair_product, pair_rows, round_rows
from attnarray.kernels.numba.vector.panel import Lane, Row, Sum, Total, panel_pass
from attnarray.kernels.numba.vector.product import lane_product, packed_product
from attnarray.kernels.numba.vector.transpose import add_to_rows, whole_squares

BLOCK = 4  # panels whose scores are held for the products over queries


class Chunk(NamedTuple):
    """Arrays of the queries of a chunk, as pointers; D and Dv are padded to W (rows) or M (panels)."""

    dout: Any  # (P, Dv, W)
    query_rows: Any  # (P W, D), times scale
    dout_rows: Any  # (P W, Dv)
    dquery: Any  # (P, D, W), of the last tiles
    all_dquery: Any  # (P, D, W), of all tiles before them, if there are many
    lse: Any  # (P, W)
    delta: Any  # (P, W)
    out: Any  # (Dv, W) of one panel


class Tile(NamedTuple):
    """A tile of keys, packed for three products, and its gradients."""

    keys: Any  # (keys / M, D, M)
    values: Any  # (keys / M, Dv, M)
    key_columns: Any  # (D / M, keys, M)
    dkeys: Any  # (keys, D)
    dvalues: Any  # (keys, Dv)


class Block(NamedTuple):
    """Panels of scores (keys, W): of a whole block, and two of one panel."""

    weights: Any  # (BLOCK, keys, W)
    dscores: Any
    slope: Any  # (keys, W)
    before: Any  # (keys, W) the scores before the modifiers of the caller
    factors: Any
    sums: Any  # (1, W)


class Seen(NamedTuple):
    """The keys [start, stop) of a tile, and whether queries and cotangents have NaN or infinities.

    Non-finite keys need no flag: a gradient of a score that is not 0 is NaN itself where its key is not finite.
    """

    start: int
    stop: int
    bad_queries: bool


@panel_pass
def differentiate(scores: Row, dweights: Row, lse: Lane, delta: Lane) -> dict[str, Lanes]:
    """p = e^(s - lse) and ds = p (dp - delta); where p is 0, dp does not matter, and where s is -inf, lse does not."""
    weights = where(scores.equals(-math.inf), 0.0, exp(scores - lse))
    dscores = where(weights.equals(0.0), 0.0, weights * (dweights - delta))
    return {"scores": weights, "dweights": dscores}


@panel_pass
def add_to_lanes(dscores: Row, sums: Sum) -> dict[str, Lanes]:
    return {"sums": sums + dscores}


@panel_pass
def sum_lanes(dscores: Row, total: Total) -> dict[str, Lanes]:
    return {"total": dscores}


@panel_pass
def drop(weights: Row, factor: Row) -> dict[str, Lanes]:
    return {"weights": where(factor.equals(0.0), 0.0, weights * factor)}


@panel_pass
def uncap(dscores: Row, slope: Row) -> dict[str, Lanes]:
    return {"dscores": where(dscores.equals(0.0), 0.0, dscores * slope)}


def panel_keys(n: int, seen: Any, queries: Any) -> Any:
    """The keys [first, past) of a tile visible to any query of panel n, counted from the start of the tile."""
    bounds = ahead(queries.bounds, BOUNDS * n)
    first = max(seen.start, bounds[LOW]) - seen.start
    past = min(seen.stop, bounds[HIGH]) - seen.start
    return (first, past) if first < past and bounds[KIND] != EMPTY else (0, 0)


def backward_block(
    p: int, past_panel: int, seen: Any, span: Any, queries: Any, kept: Any, tile: Any, block: Any, call: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """The panels [p, past_panel) against one tile of keys."""
    stride = whole_tiles(call[ac.KEYS_PER_TILE], numbers) * lanes(numbers)
    for n in range(p, past_panel):
        backward_panel(n, (n - p) * stride, seen, span, queries, kept, tile, block, call, numbers)
    for n in range(p, past_panel):
        if seen.bad_queries:  # NaN stays NaN whatever is added
            put_nan_into_keys(n, (n - p) * stride, seen, span, queries, tile, block, call, numbers)
        if ac.in_pairs(call, numbers):
            round_panel(n, ahead(block.weights, (n - p) * stride), seen, queries)
            round_panel(n, ahead(block.dscores, (n - p) * stride), seen, queries)
    wide, depth, pairs = ac.columns(call, ac.V), ac.columns(call, ac.K), ac.in_pairs(call, numbers)
    add_products(p, past_panel, seen, queries, stride, block.weights, kept.dout_rows, wide, tile.dvalues, pairs)
    add_products(p, past_panel, seen, queries, stride, block.dscores, kept.query_rows, depth, tile.dkeys, pairs)


def round_panel(n: int, panel: Any, seen: Any, queries: Any) -> None:
    """Round the rows of panel n that `add_products` reads to words, in place."""
    first, past = panel_keys(n, seen, queries)
    round_rows(first // tile_rows(panel) * tile_rows(panel), whole_tiles(past, panel), panel, panel)


def add_products(
    p: int, past_panel: int, seen: Any, queries: Any, stride: int, panels: Any, rows: Any, columns: int, total: Any,
    pairs: bool,
) -> None:  # fmt: skip
    """total[j, :] += sum over queries of panels[j, query] rows[query, :] for the keys j of a tile.

    Of the panels [p, past_panel), `stride` elements apart, those to which the key is visible take part, in runs of
    consecutive ones. `rows` and `total` have `columns` columns, padded to a multiple of W. In `pairs`, panels and rows
    are words of two queries.
    """
    tile, step = tile_rows(total), whole_lanes(columns, total)
    width = lanes(total) // 2 if pairs else lanes(total)  # of a row of a panel
    for j in range(0, seen.stop - seen.start, tile):
        run = 0
        for n in range(p, past_panel + 1):
            first, past = panel_keys(n, seen, queries) if n < past_panel else (0, 0)
            if first // tile * tile <= j < past:
                run += 1
            elif run > 0:
                start, row = ahead(panels, (n - run - p) * stride + j * width), ahead(rows, (n - run) * width * step)
                if pairs:
                    lane_pair_product(run, stride, start, row, columns, ahead(total, j * step))
                else:
                    lane_product(run, stride, start, row, columns, ahead(total, j * step))
                run = 0


def put_nan_into_keys(
    p: int, at: int, seen: Any, span: Any, queries: Any, tile: Any, block: Any, call: Any, numbers: Any
) -> None:
    """Write NaN into gradients of keys and values that depend on a non-finite query or cotangent of panel p."""
    width, count, base = lanes(numbers), ac.rows(call, ac.Q), span.first + p * lanes(numbers)
    wide, deep = whole_lanes(ac.columns(call, ac.V), numbers), whole_lanes(ac.columns(call, ac.K), numbers)
    first, past = panel_keys(p, seen, queries)
    dvalues, dkeys = ahead(tile.dvalues, first * wide), ahead(tile.dkeys, first * deep)
    for w in range(min(width, span.past - base)):
        i, h, lane = (base + w) % count, span.h + (base + w) // count, at + first * width + w
        dout = stored_rows(ac.DOUT, span.b, h, i, i + 1, queries.wide, call, numbers)
        put_nan(dout, 0, 1, ahead(block.weights, lane), 0, width, past - first, dvalues, 1, wide)
        query = stored_rows(ac.Q, span.b, h, i, i + 1, queries.wide, call, numbers)
        put_nan(query, 0, 1, ahead(block.dscores, lane), 0, width, past - first, dkeys, 1, deep)


def backward_panel(
    p: int, at: int, seen: Any, span: Any, queries: Any, kept: Any, tile: Any, block: Any, call: Any, numbers: Any
) -> None:
    """Weights and gradients of the scores of one panel, at `at` of the block, in whole groups of M keys; adds to dQ."""
    weights, dscores = ahead(block.weights, at), ahead(block.dscores, at)
    width, rows, start, wide = lanes(numbers), tile_rows(numbers), seen.start, ac.columns(call, ac.V)
    first, past = panel_keys(p, seen, queries)
    if first >= past:
        return
    part = Part(p, start, first, past)
    score_panel(part, span, queries, tile.keys, weights, block.slope, block.before, call, numbers)
    row, dout = first // rows * rows, ahead(kept.dout, p * wide * width)
    dweights = ahead(dscores, row * width)
    if ac.in_pairs(call, numbers):
        values, words = ahead(tile.values, row * (wide // 2)), wide // 2
        packed_pair_product(past - row, words, rows * words, values, dout, dweights, False, numbers[ac.ONE])
    else:
        packed_product(past - row, wide, rows * wide, ahead(tile.values, row * wide), dout, dweights, False)
    factors = block.factors
    if call[ac.DROPS] != 0:
        factors = dropout_factors(p, start, first, past, span, queries, block.factors, call, numbers)
        drop(first, past, 0, dscores, factors)
    differentiate(first, past, p, weights, dscores, kept.lse, kept.delta)
    if call[ac.DROPS] != 0:
        drop(first, past, 0, weights, factors)
    if call[ac.MODIFY] != 0:
        modify(call[ac.MODIFY_BACKWARD], part, span, queries, dscores, block.before, call)
    if ac.given(call, ac.DBIAS):
        if call[ac.SUMS_BIAS] != 0:
            sum_bias_gradient(p, start, first, past, span, dscores, block.sums, call)
        else:
            add_bias_gradient(p, start, first, past, span, queries, dscores, call, numbers)
    if numbers[ac.SOFTCAP] != 0:
        uncap(first, past, 0, dscores, block.slope)
    clear_around(row, first, past, weights)
    clear_around(row, first, past, dscores)
    depth = ac.columns(call, ac.K)
    dquery = ahead(kept.dquery, p * whole_tiles(depth, numbers) * width)
    if ac.in_pairs(call, numbers):
        low, high, pairs = first // 2, (past + 1) // 2, (seen.stop - start + 1) // 2
        pair_rows(low, high, dscores, block.factors)
        keys, words = ahead(tile.key_columns, low * rows), ahead(block.factors, low * width)
        packed_pair_product(depth, high - low, pairs * rows, keys, words, dquery, True, numbers[ac.ONE])
    else:
        keys, panel_dscores = ahead(tile.key_columns, first * rows), ahead(dscores, first * width)
        packed_product(depth, past - first, (seen.stop - start) * rows, keys, panel_dscores, dquery, True)


def clear_around(row: int, first: int, past: int, panel: Any) -> None:
    """Clear the rows [row, first), and those from `past` to the end of a group of M."""
    clear(row, first, 0, panel)
    clear(past, whole_tiles(past, panel), 0, panel)


def add_bias_gradient(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, dscores: Any, call: Any, numbers: Any
) -> None:
    """Batches and heads along which the bias is broadcast have stride 0, so they are summed over."""
    width, count = lanes(numbers), ac.rows(call, ac.Q)
    base = span.first + p * width
    if ac.column_stride(call, ac.DBIAS) == item_bytes(dscores) and base + width <= span.past:
        find_rows(ac.DBIAS, p, start, span, queries, call, numbers)
        squares = whole_squares(first, past, dscores)
        add_to_rows(first, squares, queries.rows, dscores)
        first = squares
    for w in range(min(width, span.past - base)):
        dbias = ac.matrix(numbers, call, ac.DBIAS, span.b, span.h + (base + w) // count)
        i = (base + w) % count
        for j in range(first, past):
            dbias[i, start + j] += dscores[j * width + w]


def sum_bias_gradient(
    p: int, start: int, first: int, past: int, span: Any, dscores: Any, sums: Any, call: Any
) -> None:  # fmt: skip
    """The gradient, in float64, of a bias that is broadcast along queries or keys: many scores share an entry."""
    width, count = lanes(dscores), ac.rows(call, ac.Q)
    base, doubles = span.first + p * lanes(dscores), pointer_at(0.0, 0)
    filled = min(width, span.past - base)
    same_head = base // count == (base + filled - 1) // count or call[ac.SLOTS + 8 * ac.DBIAS + 5] == 0
    if ac.column_stride(call, ac.DBIAS) == 0:
        clear(0, 1, 0, sums)
        add_to_lanes(first, past, 0, dscores, sums)
        for w in range(filled):
            dbias = ac.matrix(doubles, call, ac.DBIAS, span.b, span.h + (base + w) // count)
            dbias[(base + w) % count, 0] += sums[w]
    elif ac.row_stride(call, ac.DBIAS) == 0 and same_head:
        row = row_pointer(ac.matrix(doubles, call, ac.DBIAS, span.b, span.h + base // count), 0)
        sum_lanes(first, past, 0, dscores, ahead(row, start))
    else:
        for w in range(filled):
            dbias = ac.matrix(doubles, call, ac.DBIAS, span.b, span.h + (base + w) // count)
            for j in range(first, past):
                dbias[(base + w) % count, start + j] += dscores[j * width + w]


panel_keys, round_panel, clear_around = jit(panel_keys, round_panel, clear_around, inner=True)
add_bias_gradient, add_products = jit(add_bias_gradient, add_products, fastmath=EXACT, inner=True)
put_nan_into_keys, sum_bias_gradient = jit(put_nan_into_keys, sum_bias_gradient, fastmath=EXACT, inner=True)
backward_block = jit(backward_block, fastmath=EXACT, inner=True)
backward_panel = jit(backward_panel, fastmath=EXACT, inner=True, inline=True)

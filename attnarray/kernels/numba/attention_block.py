"""The backward pass of a block of panels of queries against one tile of keys: weights, their gradients, and products.

Used by attention_backward.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.kernels.numba import attention_call as ac
from attnarray.kernels.numba.attention_scores import HIGH, LOW, dropout_factors, find_rows, score_panel
from attnarray.kernels.numba.jit import EXACT, jit
from attnarray.kernels.numba.lanes import Lanes, exp, item_bytes, lanes, tile_rows, where
from attnarray.kernels.numba.memory import ahead
from attnarray.kernels.numba.packing import spoil, whole_lanes, whole_tiles
from attnarray.kernels.numba.panel import Lane, Row, panel_pass
from attnarray.kernels.numba.product import tile_product, tile_product_of_blocks
from attnarray.kernels.numba.turning import add_to_rows, whole_squares

BLOCK = 4  # panels whose scores are held for the products over queries


class Chunk(NamedTuple):
    """What is kept per query of a chunk, as pointers; N is D or Dv, filled up to W (rows) or M (panels)."""

    dout: Any  # (P, Dv, W)
    query_rows: Any  # (P W, D), times scale
    dout_rows: Any  # (P W, Dv)
    dquery: Any  # (P, D, W)
    lse: Any  # (P, W)
    delta: Any  # (P, W)


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
    factors: Any


class Seen(NamedTuple):
    """The keys [start, stop) of a tile, and whether NaN or infinities lie in queries and cotangents.

    Those of keys need not be known: a gradient of a score that is not 0 is NaN itself where its key is not finite.
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
def drop(weights: Row, factor: Row) -> dict[str, Lanes]:
    return {"weights": where(factor.equals(0.0), 0.0, weights * factor)}


@panel_pass
def uncap(dscores: Row, slope: Row) -> dict[str, Lanes]:
    return {"dscores": where(dscores.equals(0.0), 0.0, dscores * slope)}


@panel_pass
def clear(numbers: Row) -> dict[str, Lanes]:
    return {"numbers": numbers.constant(0.0)}


def backward_block(
    p: int, past_panel: int, seen: Any, place: Any, queries: Any, kept: Any, tile: Any, block: Any, call: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """The panels [p, past_panel) against one tile of keys."""
    width, rows, size = lanes(numbers), tile_rows(numbers), call[ac.KEYS_PER_TILE]
    first, past = size, 0
    for n in range(p, past_panel):
        first = min(first, max(seen.start, queries.bounds[4 * n + LOW]) - seen.start)
        past = max(past, min(seen.stop, queries.bounds[4 * n + HIGH]) - seen.start)
    if first >= past:
        return
    first, past = first // rows * rows, whole_tiles(past, numbers)
    for n in range(p, past_panel):
        at = (n - p) * size * width
        weights, dscores = ahead(block.weights, at), ahead(block.dscores, at)
        backward_panel(n, first, past, seen, place, queries, kept, tile, block, weights, dscores, call, numbers)
    columns = whole_lanes(ac.columns(call, ac.V), numbers), whole_lanes(ac.columns(call, ac.K), numbers)
    blocks, row = past_panel - p, p * width
    add_products(
        blocks, size, first, past, block.weights, ahead(kept.dout_rows, row * columns[0]), columns[0], tile.dvalues
    )
    add_products(
        blocks, size, first, past, block.dscores, ahead(kept.query_rows, row * columns[1]), columns[1], tile.dkeys
    )
    if seen.bad_queries:
        for n in range(min(blocks * width, place.past - place.first - row)):
            i, h = (
                (place.first + row + n) % ac.rows(call, ac.Q),
                place.h + (place.first + row + n) // ac.rows(call, ac.Q),
            )
            at = (n // width * size + first) * width + n % width
            dout, query = ac.matrix(numbers, call, ac.DOUT, place.b, h), ac.matrix(numbers, call, ac.Q, place.b, h)
            dvalues, dkeys = ahead(tile.dvalues, first * columns[0]), ahead(tile.dkeys, first * columns[1])
            spoil(dout, i, i + 1, ahead(block.weights, at), 0, width, past - first, dvalues, 1, columns[0])
            spoil(query, i, i + 1, ahead(block.dscores, at), 0, width, past - first, dkeys, 1, columns[1])


def add_products(
    blocks: int, size: int, first: int, past: int, panels: Any, rows: Any, columns: int, total: Any
) -> None:
    """total[j, :] += sum over the queries of a block of panels[j, query] rows[query, :] for the keys [first, past)."""
    width = lanes(total)
    for j in range(first, past, tile_rows(total)):
        for d in range(0, columns, width):
            tile_product_of_blocks(
                blocks, size * width, width * columns, width, ahead(panels, j * width), width, 1, ahead(rows, d),
                columns, ahead(total, j * columns + d), columns,
            )  # fmt: skip


def backward_panel(
    p: int, low: int, high: int, seen: Any, place: Any, queries: Any, kept: Any, tile: Any, block: Any, weights: Any,
    dscores: Any, call: Any, numbers: Any,
) -> None:  # fmt: skip
    """Weights and gradients of the scores of one panel, 0 outside what it sees of [low, high); adds to its dQ."""
    width, rows = lanes(numbers), tile_rows(numbers)
    depth, wide, start, stop = ac.columns(call, ac.K), ac.columns(call, ac.V), seen.start, seen.stop
    first = min(max(max(start, queries.bounds[4 * p + LOW]) - start, low), high)
    past = max(min(stop, queries.bounds[4 * p + HIGH]) - start, first)
    if first < past:
        score_panel(p, start, first, past, place, queries, tile.keys, weights, block.slope, call, numbers)
        dout = ahead(kept.dout, p * wide * width)
        for row in range(first // rows * rows, past, rows):
            tile_product(
                wide, ahead(tile.values, row * wide), 1, rows, dout, width, ahead(dscores, row * width), width, False
            )
        factors = block.factors
        if call[ac.DROPS] != 0:
            factors = dropout_factors(p, start, first, past, place, queries, block.factors, call, numbers)
            drop(first, past, 0, dscores, factors)
        differentiate(first, past, p, weights, dscores, kept.lse, kept.delta)
        if call[ac.DROPS] != 0:
            drop(first, past, 0, weights, factors)
        if ac.given(call, ac.DBIAS):
            add_bias_gradient(p, start, first, past, place, queries, dscores, call, numbers)
        if numbers[ac.SOFTCAP] != 0:
            uncap(first, past, 0, dscores, block.slope)
        dquery, weighing = ahead(kept.dquery, p * whole_tiles(depth, numbers) * width), ahead(dscores, first * width)
        for d in range(0, depth, rows):
            keys = ahead(tile.key_columns, (d // rows * (stop - start) + first) * rows)
            tile_product(past - first, keys, 1, rows, weighing, width, ahead(dquery, d * width), width, True)
    clear(low, first, 0, weights)
    clear(low, first, 0, dscores)
    clear(past, high, 0, weights)
    clear(past, high, 0, dscores)


def add_bias_gradient(
    p: int, start: int, first: int, past: int, place: Any, queries: Any, dscores: Any, call: Any, numbers: Any
) -> None:
    """Axes along which the bias is broadcast have stride 0, and so are summed over."""
    width, count = lanes(numbers), ac.rows(call, ac.Q)
    base = place.first + p * width
    if ac.column_stride(call, ac.DBIAS) == item_bytes(dscores) and base + width <= place.past:
        find_rows(ac.DBIAS, p, start, place, queries, call, numbers)
        squares = whole_squares(first, past, dscores)
        add_to_rows(first, squares, queries.rows, dscores)
        first = squares
    for w in range(min(width, place.past - base)):
        dbias = ac.matrix(numbers, call, ac.DBIAS, place.b, place.h + (base + w) // count)
        i = (base + w) % count
        for j in range(first, past):
            dbias[i, start + j] += dscores[j * width + w]


add_bias_gradient, add_products = (
    jit(add_bias_gradient, fastmath=EXACT, inner=True),
    jit(add_products, fastmath=EXACT, inner=True),
)
backward_panel = jit(backward_panel, fastmath=EXACT, inner=True)
backward_block = jit(backward_block, fastmath=EXACT, inner=True)

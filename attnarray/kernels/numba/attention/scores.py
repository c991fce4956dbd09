"""Shared by forward and backward of tiled attention: the queries of a chunk, and the scores of one panel of them.

Panels are those of attention/panels.py. The scale is multiplied into the queries.

Weights are recomputed as e^(score - lse), so a score must have the same bits as in the forward: if its terms were
added in another order, a score of 40,000 would be off by some thousandths, and all weights of its query with it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.mask_tiles import BOUNDS, FULL, KIND, mask_by_tiles, seen_in_tiles
from attnarray.kernels.numba.attention.panels import find_rows, pack_panel, pack_words
from attnarray.kernels.numba.attention.row_scores import visible
from attnarray.kernels.numba.attention.stored import stored_rows, widen_panel
from attnarray.kernels.numba.runtime.c_calls import call_with_integers
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, lanes, tanh, tile_rows, where
from attnarray.kernels.numba.vector.memory import address_of, ahead, as_bytes, pointer, pointer_at, row_pointer
from attnarray.kernels.numba.vector.packing import pack_row, row_length, stride_in_place, whole_lanes
from attnarray.kernels.numba.vector.pairs import packed_pair_product
from attnarray.kernels.numba.vector.panel import Index, Lane, Row, Scalar, panel_pass
from attnarray.kernels.numba.vector.philox import Draw, draw_factors
from attnarray.kernels.numba.vector.product import packed_product
from attnarray.kernels.numba.vector.row_products import AT_ONCE, dot_rows
from attnarray.kernels.numba.vector.transpose import add_transposed, mask_transposed, whole_squares

LOW, HIGH, FULL_LOW, FULL_HIGH = range(4)


class Queries(NamedTuple):
    """The panels of a chunk, as pointers."""

    packed: Any  # (P, D, W), times scale; or as words, see vector/pairs.py, of half as many rows
    begin: Any  # (P, W) the keys [begin, end) visible to the query by causal mask, window and lengths
    end: Any
    position: Any  # (P, W) of the query, and its head: the keys of dropout
    head: Any
    bounds: Any  # (P, 5) the keys [LOW, HIGH) visible to any lane, [FULL_LOW, FULL_HIGH) visible to all, and KIND
    rows: Any  # (W,) addresses
    decoding: Any  # scratch of `dot_as_decoded`
    wide: Any  # scratch for rows of 16-bit numbers, see attention/stored.py


class Span(NamedTuple):
    """The rows [first, past) of a chunk, in the group of heads that starts at head h and has keys g."""

    first: int
    past: int
    b: int
    g: int
    h: int


def chunk_span(panel: int, past: int, chunk: int, call: Any, like: Any) -> Any:
    """The chunk that begins with this panel, counted over all batches and heads of keys, and ends before `past`."""
    width, rows, kv_heads = lanes(like), ac.group_rows(call), ac.heads(call, ac.K)
    panels = (rows + width - 1) // width
    head = panel // panels
    first = (panel - head * panels) * width
    stop = min(past - head * panels, panels, panel - head * panels + chunk)
    b, g = head // kv_heads, head % kv_heads
    return Span(first, min(rows, stop * width), b, g, ac.heads(call, ac.Q) // kv_heads * g)


def seen_keys(panels: int, queries: Any, call: Any) -> Any:
    """The keys [low, high) visible to any query of a chunk."""
    low, high = ac.rows(call, ac.K), 0
    for p in range(panels):
        low, high = min(low, queries.bounds[BOUNDS * p + LOW]), max(high, queries.bounds[BOUNDS * p + HIGH])
    return low, high


@panel_pass
def hide(scores: Row, key: Index, begin: Lane, end: Lane) -> dict[str, Lanes]:
    return {"scores": where((key >= begin) & (key < end), scores, -math.inf)}


@panel_pass
def cap(scores: Row, slope: Row, bound: Scalar) -> dict[str, Lanes]:
    """c tanh(s) for s = score / c, and the derivative of tanh."""
    capped, slope = tanh(scores)
    return {"scores": capped * bound, "slope": slope}


def visible_keys(call: Any, b: int, i: int) -> Any:
    """The keys [begin, end) visible to query i by causal mask, window and lengths."""
    return visible(i + ac.offset(call, b), call[ac.LEFT], call[ac.RIGHT], ac.length(call, b), ac.rows(call, ac.K))


def panel_work(call_integers: Any, call_numbers: Any, count: int, work: int) -> None:
    """For each of `count` panels the number of scores that must be computed, taken at its first and last row."""
    call, width = pointer(call_integers), lanes(call_numbers)
    kv_heads, queries, rows = ac.heads(call, ac.K), ac.rows(call, ac.Q), ac.group_rows(call)
    panels = (rows + width - 1) // width
    for n in range(count):
        first, b = n % panels * width, n // panels // kv_heads
        last = min(first + width, rows) - 1
        begin, end = visible_keys(call, b, first % queries)
        other_begin, other_end = visible_keys(call, b, last % queries)
        visible = max(end, other_end) - min(begin, other_begin)
        if ac.given(call, ac.TABLE):
            h = ac.heads(call, ac.Q) // kv_heads * (n // panels % kv_heads) + first // queries
            visible = min(visible, seen_in_tiles(b, h, first % queries, call))
        pointer_at(n, work)[n] = (visible + 2) * width


def prepare_queries(span: Any, queries: Any, call: Any, numbers: Any) -> None:
    """Fill `queries` for one chunk. Lanes beyond the last row are fully masked."""
    width, count, depth = lanes(numbers), ac.rows(call, ac.Q), ac.columns(call, ac.Q)
    factor = query_factor(numbers)
    past = span.past - span.first
    panels = (past + width - 1) // width
    for p in range(panels):
        bounds = ahead(queries.bounds, BOUNDS * p)
        bounds[KIND] = FULL
        bounds[LOW], bounds[HIGH], bounds[FULL_LOW], bounds[FULL_HIGH] = ac.rows(call, ac.K), 0, 0, ac.rows(call, ac.K)
    h, i = span.h + span.first // count, span.first % count
    for n in range(past):
        begin, end = visible_keys(call, span.b, i)
        queries.begin[n], queries.end[n] = begin, end
        queries.position[n], queries.head[n] = i + ac.offset(call, span.b) + call[ac.FIRST_KEY], h
        bounds = ahead(queries.bounds, BOUNDS * (n // width))
        bounds[FULL_LOW], bounds[FULL_HIGH] = max(bounds[FULL_LOW], begin), min(bounds[FULL_HIGH], end)
        if begin < end:
            bounds[LOW], bounds[HIGH] = min(bounds[LOW], begin), max(bounds[HIGH], end)
        h, i = (h, i + 1) if i + 1 < count else (h + 1, 0)
    for n in range(past, panels * width):
        queries.begin[n], queries.end[n] = 0, 0
        queries.position[n], queries.head[n] = queries.position[past - 1], queries.head[past - 1]
        queries.bounds[BOUNDS * (panels - 1) + FULL_HIGH] = 0
    for p in range(panels):
        packed = ahead(queries.packed, p * depth * width)
        if ac.in_pairs(call, numbers):
            pack_words(ac.Q, p, span, queries, packed, call, numbers)
        else:
            pack_panel(ac.Q, p, factor, span, queries, packed, call, numbers)


class Part(NamedTuple):
    """Rows [first, past) of the scores of panel p against the keys from `start` on."""

    p: int
    start: int
    first: int
    past: int


def score_panel(
    part: Any, span: Any, queries: Any, keys: Any, scores: Any, slope: Any, before: Any, call: Any, numbers: Any
) -> None:
    """A part of `scores`; `keys` are packed. `before` is for the scores before the modifiers of the caller."""
    p, start, first, past = part
    width, tile, depth = lanes(scores), tile_rows(scores), ac.columns(call, ac.Q)
    row = first // tile * tile
    packed, total = ahead(queries.packed, p * depth * width), ahead(scores, row * width)
    if call[ac.DECODED] != 0:
        dot_as_decoded(p, start, first, past, span, queries, scores, call, numbers)
    elif ac.in_pairs(call, numbers):
        words, factor = depth // 2, query_factor(numbers)
        packed_pair_product(past - row, words, tile * words, ahead(keys, row * words), packed, total, False, factor)
    else:
        packed_product(past - row, depth, tile * depth, ahead(keys, row * depth), packed, total, False)
    if numbers[ac.SOFTCAP] != 0:
        cap(first, past, 0, scores, slope, numbers[ac.SOFTCAP])
    if ac.given(call, ac.BIAS):
        add_bias(p, start, first, past, span, queries, scores, call, numbers)
    if call[ac.MODIFY] != 0:
        modify(call[ac.MODIFY], part, span, queries, scores, before, call)
    if ac.given(call, ac.MASK):
        apply_mask(p, start, first, past, span, queries, scores, call, numbers)
    if ac.given(call, ac.TABLE):
        mask_by_tiles(p, start, first, past, span, queries, scores, call, numbers)
    bounds = ahead(queries.bounds, BOUNDS * p)
    hide(first, min(bounds[FULL_LOW] - start, past), p, scores, start, queries.begin, queries.end)
    hide(max(bounds[FULL_HIGH] - start, first), past, p, scores, start, queries.begin, queries.end)


def modify(function: int, part: Any, span: Any, queries: Any, panel: Any, before: Any, call: Any) -> None:
    """Call the C function of the modifiers on a part of the scores, or of their gradients."""
    at = part.p * lanes(panel)
    positions, heads = address_of(ahead(queries.position, at)), address_of(ahead(queries.head, at))
    panels = address_of(panel), address_of(before), positions, heads
    call_with_integers(function, (part.first, part.past, *panels, part.start, span.b, call[ac.CAPTURED]))


def decode_scratch(call: Any, like: Any) -> Any:
    """The numbers that `dot_as_decoded` needs."""
    dots = whole_lanes(AT_ONCE, like)
    return (AT_ONCE + 1) * whole_lanes(ac.columns(call, ac.K), like) + dots if call[ac.DECODED] != 0 else 0


def dot_as_decoded(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, scores: Any, call: Any, numbers: Any
) -> None:
    """The dot products of panel p with some keys, with the same bits as in attention/decode.py."""
    memory = queries.decoding
    width, count, base = lanes(scores), ac.rows(call, ac.Q), span.first + p * lanes(scores)
    step, length = whole_lanes(ac.columns(call, ac.K), scores), row_length(ac.columns(call, ac.K), scores)
    factor = query_factor(numbers)
    source = stored_rows(ac.K, span.b, span.g, start + first, start + past, queries.wide, call, numbers)
    beyond = ahead(queries.wide, (past - first) * ac.columns(call, ac.K))
    packed, stride = ahead(memory, step), stride_in_place(source, numbers)
    dots, key_step = ahead(packed, AT_ONCE * step), stride if stride >= 0 else step
    for j in range(first, past, AT_ONCE):
        some, keys = min(past - j, AT_ONCE), row_pointer(source, j - first) if stride >= 0 else packed
        for m in range(some if stride < 0 else 0):
            pack_row(source, j - first + m, 1, ahead(packed, m * step))
        for w in range(min(width, span.past - base)):
            h, i = span.h + (base + w) // count, (base + w) % count
            pack_row(stored_rows(ac.Q, span.b, h, i, i + 1, beyond, call, numbers), 0, factor, memory)
            dot_rows(some, length, memory, keys, key_step, dots)
            for m in range(some):
                scores[(j + m) * width + w] = dots[m]


def query_factor(numbers: Any) -> Any:
    """The factor of the queries: the scale, divided by the softcap if there is one."""
    return numbers[ac.SCALE] / numbers[ac.SOFTCAP] if numbers[ac.SOFTCAP] != 0 else numbers[ac.SCALE]


def add_bias(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, scores: Any, call: Any, numbers: Any
) -> None:
    """A bias of -inf masks a score, even NaN."""
    width, done = lanes(scores), first
    find_rows(ac.BIAS, p, start + first, span, queries, call, numbers)
    stride = widen_panel(ac.BIAS, past - first, queries.rows, queries.wide, call, numbers)
    if stride == item_bytes(scores):
        done = whole_squares(first, past, scores)
        add_transposed(0, done - first, queries.rows, ahead(scores, first * width))
    for w in range(min(width, span.past - span.first - p * width)):
        for j in range(done, past):
            added = pointer_at(numbers[0], queries.rows[w] + (j - first) * stride)[0]
            score = scores[j * width + w] + added
            scores[j * width + w] = score if added != -np.inf else added


def apply_mask(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, scores: Any, call: Any, numbers: Any
) -> None:
    width, count = lanes(scores), ac.rows(call, ac.Q)
    base = span.first + p * width
    if ac.column_stride(call, ac.MASK) == 1:
        find_rows(ac.MASK, p, start, span, queries, call, numbers)
        squares = whole_squares(first, past, scores)
        mask_transposed(first, squares, queries.rows, scores)
        first = squares
    for w in range(min(width, span.past - base)):
        mask = ac.matrix(as_bytes(numbers), call, ac.MASK, span.b, span.h + (base + w) // count)
        i = (base + w) % count
        for j in range(first, past):
            if mask[i, start + j] == 0:
                scores[j * width + w] = -np.inf


def dropout_factors(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, factors: Any, call: Any, numbers: Any
) -> Any:
    """The dropout factors of the weights, as a panel with the rows of the scores."""
    width, count = lanes(numbers), ac.rows(call, ac.Q)
    if not ac.given(call, ac.KEEP):
        key = start + call[ac.FIRST_KEY]
        block = (key + first) // 4
        draw_factors(
            0, (key + past + 3) // 4 - block, p, factors, ahead(factors, width), ahead(factors, 2 * width),
            ahead(factors, 3 * width), block, queries.position, queries.head,
            Draw(span.b, call[ac.SEED_LOW], call[ac.SEED_HIGH], call[ac.THRESHOLD], numbers[ac.KEPT]),
        )  # fmt: skip
        return ahead(factors, (key - 4 * block) * width)
    base = span.first + p * width
    for w in range(width):
        r = min(base + w, span.past - 1)
        keep = ac.matrix(as_bytes(numbers), call, ac.KEEP, span.b, span.h + r // count)
        for j in range(first, past):
            factors[j * width + w] = numbers[ac.KEPT] if keep[r % count, start + j] != 0 else 0
    return factors


chunk_span, seen_keys, decode_scratch, visible_keys = jit(
    chunk_span, seen_keys, decode_scratch, visible_keys, inner=True
)
apply_mask, modify = jit(apply_mask, modify, inner=True)
query_factor, dot_as_decoded = jit(query_factor, dot_as_decoded, fastmath=EXACT, inner=True)
prepare_queries, add_bias, dropout_factors = jit(prepare_queries, add_bias, dropout_factors, fastmath=EXACT, inner=True)
score_panel = jit(score_panel, fastmath=EXACT, inner=True)
panel_work = jit(panel_work)

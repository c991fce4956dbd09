"""Attention of few queries over many keys, as in decoding with a cache: each block of keys is read once, by one thread.

Reference: attention/engine.py, `attention`. All heads of a group read a tile of keys and values while it is cached. A
unit of work is one block of keys of one head of keys; its output and its log-sum-exp are merged with those of the other
blocks (as `merge_partials` does). Blocks do not depend on the number of threads, and so the result does not either.

Scratch per thread: the scores of one tile for one query; per unit: its outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.forward import exponentiate, find_max
from attnarray.kernels.numba.attention.row_scores import add_bias, cap, hide
from attnarray.kernels.numba.attention.scores import query_factor, visible_keys
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, lanes, where
from attnarray.kernels.numba.vector.memory import ahead, as_bytes, keep, pointer, pointer_at, row_pointer, scratch
from attnarray.kernels.numba.vector.packing import (
    pack_row,
    put_nan,
    remove_nonfinite,
    row_length,
    stride_in_place,
    whole_lanes,
)
from attnarray.kernels.numba.vector.panel import Lane, Row, Scalar, panel_pass
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, dot_rows

BLOCK = 512  # keys of a unit
TILE = 256  # keys whose rows stay in the cache for all queries of a group


class Scratch(NamedTuple):
    """Scratch of a thread, as pointers."""

    queries: Any  # (rows, D)
    scores: Any  # (TILE,) of one query
    slopes: Any  # (TILE,)
    sums: Any  # (3, W)
    added: Any  # (Dv,)
    keys: Any  # (TILE, D) a copy, where keys cannot be read in place
    values: Any  # (TILE, Dv) likewise
    finite_values: Any  # (TILE, Dv) with 0 for NaN and infinities


@panel_pass
def combine(out: Row, added: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"out": out * factor + added}


@panel_pass
def combine_hiding(out: Row, added: Row, factor: Scalar) -> dict[str, Lanes]:
    """A factor of zero masks NaN and infinities, as a weight of zero does."""
    return {"out": where(factor.equals(0.0), 0.0, out * factor) + added}


@panel_pass
def find_nonfinite(numbers: Row, found: Lane) -> dict[str, Lanes]:
    return {"found": found + numbers * 0.0}


def decode(first: int, step: int, units: int, call_integers: Any, call_numbers: Any, partials: int) -> None:
    """Every `step`-th unit from `first` on; `partials` (units, rows, Dv + 2) receives outputs, maxima and sums."""
    call, numbers = pointer(call_integers), pointer(call_numbers)
    rows, kv_heads, width = ac.group_rows(call), ac.heads(call, ac.K), lanes(numbers)
    depth, wide = whole_lanes(ac.columns(call, ac.K), numbers), whole_lanes(ac.columns(call, ac.V), numbers)
    floats = np.empty(16 + rows * depth + 2 * TILE + 3 * width + wide + TILE * (depth + 2 * wide), call_numbers.dtype)
    queries = scratch(floats)
    scores = ahead(queries, rows * depth)
    sums = ahead(scores, 2 * TILE)
    added = ahead(sums, 3 * width)
    key_memory = ahead(added, wide)
    value_memory = ahead(key_memory, TILE * depth)
    finite_values = ahead(value_memory, TILE * wide)
    memory = Scratch(queries, scores, ahead(scores, TILE), sums, added, key_memory, value_memory, finite_values)
    blocks = (ac.rows(call, ac.K) + BLOCK - 1) // BLOCK
    for unit in range(first, units, step):
        head = unit // blocks
        out = ahead(pointer_at(call_numbers[0], partials), unit * rows * (wide + 2))
        decode_block(head // kv_heads, head % kv_heads, unit % blocks, memory, out, call, numbers)
    keep(floats)


def decode_block(b: int, g: int, block: int, memory: Any, out: Any, call: Any, numbers: Any) -> None:
    """One block of keys of one head of keys, tile by tile."""
    count, group = ac.rows(call, ac.Q), ac.heads(call, ac.Q) // ac.heads(call, ac.K)
    depth, wide = whole_lanes(ac.columns(call, ac.K), numbers), whole_lanes(ac.columns(call, ac.V), numbers)
    factor = query_factor(numbers)
    for r in range(group * count):
        query = ac.matrix(numbers, call, ac.Q, b, group * g + r // count)
        pack_row(query, r % count, factor, ahead(memory.queries, r * depth))
        for d in range(wide):
            out[r * (wide + 2) + d] = 0
        out[r * (wide + 2) + wide], out[r * (wide + 2) + wide + 1] = -np.inf, 0
    past = min((block + 1) * BLOCK, ac.rows(call, ac.K))
    key_matrix, value_matrix = ac.matrix(numbers, call, ac.K, b, g), ac.matrix(numbers, call, ac.V, b, g)
    key_stride, value_stride = stride_in_place(key_matrix, numbers), stride_in_place(value_matrix, numbers)
    for start in range(block * BLOCK, past, TILE):
        stop = min(start + TILE, past)
        keys, values = memory.keys, memory.values
        if key_stride >= 0:
            keys = row_pointer(key_matrix, start)
        else:
            pack_each_row(key_matrix, start, stop, keys)
        if value_stride >= 0:
            values = row_pointer(value_matrix, start)
        else:
            pack_each_row(value_matrix, start, stop, values)
        key_step, value_step = (key_stride if key_stride >= 0 else depth), (value_stride if value_stride >= 0 else wide)
        for r in range(group * count):
            begin, end = visible_keys(call, b, r % count)
            low, high = max(begin, start), min(end, stop)
            if low < high:
                query, result = ahead(memory.queries, r * depth), ahead(out, r * (wide + 2))
                seen = ahead(keys, (low - start) * key_step)
                dot_rows(high - low, row_length(ac.columns(call, ac.K), numbers), query, seen, key_step, memory.scores)
                finish_scores(b, group * g + r // count, r % count, low, high, memory, call, numbers)
                scale = update_softmax(high - low, memory, result, wide)
                seen = ahead(values, (low - start) * value_step)
                add_values(b, g, low, high, seen, value_step, memory, call, numbers)
                if call[ac.HIDES] != 0:
                    combine_hiding(0, wide // lanes(numbers), 0, result, memory.added, scale)
                else:
                    combine(0, wide // lanes(numbers), 0, result, memory.added, scale)


def pack_each_row(x: Any, start: int, stop: int, memory: Any) -> None:
    for row in range(start, stop):
        pack_row(x, row, 1, ahead(memory, (row - start) * whole_lanes(x.shape[1], memory)))


def finish_scores(b: int, h: int, i: int, low: int, high: int, memory: Any, call: Any, numbers: Any) -> None:
    """From the dot products of query i with the keys [low, high) to its scores."""
    scores, count, one = memory.scores, high - low, numbers[ac.ONE]
    if numbers[ac.SOFTCAP] != 0:
        cap(count, scores, memory.slopes, one, numbers[ac.SOFTCAP])
    if ac.given(call, ac.BIAS):
        bias = ac.matrix(numbers, call, ac.BIAS, b, h)
        if ac.column_stride(call, ac.BIAS) == item_bytes(scores):
            add_bias(count, scores, ahead(row_pointer(bias, i), low))
        else:
            for j in range(low, high):
                scores[j - low] = scores[j - low] + bias[i, j] if bias[i, j] != -np.inf else bias[i, j]
    if ac.given(call, ac.MASK):
        mask = ac.matrix(as_bytes(numbers), call, ac.MASK, b, h)
        if ac.column_stride(call, ac.MASK) == 1:
            hide(count, scores, ahead(row_pointer(mask, i), low))
        else:
            for j in range(low, high):
                if mask[i, j] == 0:
                    scores[j - low] = -np.inf


def update_softmax(count: int, memory: Any, result: Any, wide: int) -> Any:
    """Exponentials of the scores in place; return the factor that rescales the sums so far."""
    width = lanes(result)
    lowest = -np.inf
    row_max, shifts, row_sums = memory.sums, ahead(memory.sums, width), ahead(memory.sums, 2 * width)
    vectors = (count + width - 1) // width
    for n in range(count, vectors * width):
        memory.scores[n] = lowest
    for w in range(width):
        row_max[w] = lowest
    find_max(0, vectors, 0, memory.scores, row_max)
    before = result[wide]
    highest = before
    for w in range(width):
        highest = max(highest, row_max[w])
    shift = highest if highest != -np.inf else result[wide + 1] * 0
    for w in range(width):
        shifts[w], row_sums[w] = shift, 0
    exponentiate(0, vectors, 0, memory.scores, shifts, row_sums)
    factor = np.exp(before - shift)
    row_sum = float(result[wide + 1]) * float(factor)
    for w in range(width):
        row_sum += float(row_sums[w])
    result[wide], result[wide + 1] = highest, row_sum
    return factor


def has_nonfinite(wide: int, memory: Any) -> Any:
    """Whether NaN or an infinity is among the sums: 0 times a finite number is 0."""
    width = lanes(memory.added)
    for w in range(width):
        memory.sums[w] = 0
    find_nonfinite(0, wide // width, 0, memory.added, memory.sums)
    total = memory.sums[0]
    for w in range(1, width):
        total += memory.sums[w]
    return total != 0


def add_values(
    b: int, g: int, low: int, high: int, values: Any, stride: int, memory: Any, call: Any, numbers: Any
) -> None:
    """memory.added = sum_j weights_j values_j; a weight of zero masks NaN and infinities, see `put_nan`."""
    columns = ac.columns(call, ac.V)
    length, wide = row_length(columns, numbers), whole_lanes(columns, numbers)
    for d in range(wide):
        memory.added[d] = 0
    add_weighted_rows(high - low, length, memory.scores, values, stride, memory.added)
    if call[ac.HIDES] != 0 and has_nonfinite(wide, memory):
        source = ac.matrix(numbers, call, ac.V, b, g)
        for j in range(low, high):
            pack_row(source, j, 1, ahead(memory.finite_values, (j - low) * wide))
        remove_nonfinite(memory.finite_values, (high - low) * wide)
        for d in range(wide):
            memory.added[d] = 0
        add_weighted_rows(high - low, length, memory.scores, memory.finite_values, wide, memory.added)
        put_nan(source, low, high, memory.scores, 1, 0, 1, memory.added, 1, 0)


def merge(call_integers: Any, call_numbers: Any, partials: int) -> None:
    """Outputs and lse from those of the blocks of keys, and the sinks."""
    call, numbers = pointer(call_integers), pointer(call_numbers)
    count, heads, kv_heads = ac.rows(call, ac.Q), ac.heads(call, ac.Q), ac.heads(call, ac.K)
    blocks, wide = (ac.rows(call, ac.K) + BLOCK - 1) // BLOCK, whole_lanes(ac.columns(call, ac.V), numbers)
    group, length = heads // kv_heads, wide + 2
    for n in range(ac.batches(call, ac.Q) * heads * count):
        b, h, i = n // count // heads, n // count % heads, n % count
        row = ((b * kv_heads + h // group) * blocks * group + h % group) * count + i
        parts, stride = ahead(pointer_at(numbers[ac.SCALE], partials), row * length), group * count * length
        out, lse = ac.matrix(numbers, call, ac.OUT, b, h), ac.matrix(numbers, call, ac.LSE, b, h)
        sink = numbers[ac.SCALE] * 0 - np.inf  # in float64, and so are the sums
        if ac.given(call, ac.SINKS):
            sink = ac.matrix(numbers, call, ac.SINKS, 0, h)[0, 0]
        row_max = sink
        for k in range(blocks):
            row_max = max(row_max, parts[k * stride + wide])
        shift = row_max if row_max != -np.inf else 0.0
        row_sum = float(np.exp(sink - shift))
        for d in range(out.shape[1]):
            out[i, d] = 0
        for k in range(blocks):
            part = ahead(parts, k * stride)
            factor = np.exp(part[wide] - shift)
            row_sum += float(part[wide + 1]) * float(factor)
            if factor != 0 or call[ac.HIDES] == 0:
                for d in range(out.shape[1]):
                    out[i, d] += part[d] * factor
        inverse = 1.0 / row_sum if row_sum != 0 else 0.0
        for d in range(out.shape[1]):
            out[i, d] = out[i, d] * inverse if row_sum != 0 else 0
        lse[i, 0] = shift + np.log(row_sum)


pack_each_row = jit(pack_each_row, inner=True)
finish_scores, update_softmax = jit(finish_scores, update_softmax, fastmath=EXACT, inner=True)
has_nonfinite, add_values = jit(has_nonfinite, add_values, fastmath=EXACT, inner=True)
decode_block = jit(decode_block, fastmath=EXACT, inner=True)
decode, merge = jit(decode, merge, fastmath=EXACT)

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
from attnarray.kernels.numba.attention.stored import store_row, stored_rows
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, lanes, where
from attnarray.kernels.numba.vector.memory import (
    address_of,
    ahead,
    as_bytes,
    keep,
    pointer,
    pointer_at,
    row_pointer,
    scratch,
)  # fmt: skip
from attnarray.kernels.numba.vector.packing import pack_row, put_nan, remove_nonfinite, row_length, whole_lanes
from attnarray.kernels.numba.vector.panel import Lane, Row, Scalar, panel_pass
from attnarray.kernels.numba.vector.row_products import add_weighted_rows, dot_rows, row_lanes
from attnarray.kernels.numba.vector.sixteen import (
    BFLOAT16,
    BFLOAT16_BITS,
    FLOAT16,
    FLOAT16_BITS,
    NATIVE,
    SIXTEEN_BITS,
    widen_row,
)  # fmt: skip

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
    row: Any  # a row of 16-bit numbers, widened


class Rows(NamedTuple):
    """Rows of keys or values that products read: at an address, `step` elements apart; how they are stored."""

    address: int
    step: int
    storage: int


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
    others = 3 * width + wide + TILE * (depth + 2 * wide) + max(depth, wide, TILE)
    floats = np.empty(16 + rows * depth + 2 * TILE + others, call_numbers.dtype)
    queries = scratch(floats)
    scores = ahead(queries, rows * depth)
    sums = ahead(scores, 2 * TILE)
    added = ahead(sums, 3 * width)
    key_memory = ahead(added, wide)
    value_memory = ahead(key_memory, TILE * depth)
    finite_values = ahead(value_memory, TILE * wide)
    row = ahead(finite_values, TILE * wide)
    memory = Scratch(queries, scores, ahead(scores, TILE), sums, added, key_memory, value_memory, finite_values, row)
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
        query = stored_rows(ac.Q, b, group * g + r // count, r % count, r % count + 1, memory.row, call, numbers)
        pack_row(query, 0, factor, ahead(memory.queries, r * depth))
        for d in range(wide):
            out[r * (wide + 2) + d] = 0
        out[r * (wide + 2) + wide], out[r * (wide + 2) + wide + 1] = -np.inf, 0
    past = min((block + 1) * BLOCK, ac.rows(call, ac.K))
    for start in range(block * BLOCK, past, TILE):
        stop = min(start + TILE, past)
        keys = readable_rows(ac.K, b, g, start, stop, memory.keys, memory, call, numbers)
        values = readable_rows(ac.V, b, g, start, stop, memory.values, memory, call, numbers)
        for r in range(group * count):
            begin, end = visible_keys(call, b, r % count)
            low, high = max(begin, start), min(end, stop)
            if low < high:
                query, result = ahead(memory.queries, r * depth), ahead(out, r * (wide + 2))
                dot_keys(high - low, ac.columns(call, ac.K), query, beyond(keys, low - start, numbers), memory.scores)
                finish_scores(b, group * g + r // count, r % count, low, high, memory, call, numbers)
                scale = update_softmax(high - low, memory, result, wide)
                add_values(b, g, low, high, beyond(values, low - start, numbers), memory, call, numbers)
                if call[ac.HIDES] != 0:
                    combine_hiding(0, wide // lanes(numbers), 0, result, memory.added, scale)
                else:
                    combine(0, wide // lanes(numbers), 0, result, memory.added, scale)


def readable_rows(
    slot: int, b: int, g: int, start: int, stop: int, packed: Any, memory: Any, call: Any, numbers: Any
) -> Any:
    """The rows [start, stop) of a slot: in place, or copied to `packed` where vectors cannot read them there."""
    storage, columns = ac.storage(call, slot, numbers), ac.columns(call, slot)
    size = item_bytes(numbers) if storage == NATIVE else SIXTEEN_BITS
    row_stride = ac.row_stride(call, slot)
    dense = ac.column_stride(call, slot) == size and row_stride % size == 0 and row_stride >= 0
    if dense and columns % row_lanes(numbers) == 0:
        return Rows(ac.element_address(call, slot, b, g, start, 0), row_stride // size, storage)
    length = whole_lanes(columns, numbers)
    for row in range(start, stop):
        source = stored_rows(slot, b, g, row, row + 1, memory.row, call, numbers)
        pack_row(source, 0, 1, ahead(packed, (row - start) * length))
    return Rows(address_of(packed), length, NATIVE)


def beyond(rows: Any, count: int, numbers: Any) -> Any:
    """All rows after the first `count`."""
    size = item_bytes(numbers) if rows.storage == NATIVE else SIXTEEN_BITS
    return Rows(rows.address + count * rows.step * size, rows.step, rows.storage)


def dot_keys(count: int, columns: int, query: Any, keys: Any, scores: Any) -> None:
    """The dot products of a query with some keys."""
    length, address = row_length(columns, scores), keys.address
    if keys.storage == BFLOAT16:
        dot_rows(count, length, query, pointer_at(BFLOAT16_BITS, address), keys.step, scores)
    elif keys.storage == FLOAT16:
        dot_rows(count, length, query, pointer_at(FLOAT16_BITS, address), keys.step, scores)
    else:
        dot_rows(count, length, query, pointer_at(query[0], address), keys.step, scores)


def weigh_values(count: int, length: int, values: Any, memory: Any) -> None:
    """memory.added += sum_j weights_j values_j."""
    weights, address, total = memory.scores, values.address, memory.added
    if values.storage == BFLOAT16:
        add_weighted_rows(count, length, weights, pointer_at(BFLOAT16_BITS, address), values.step, total)
    elif values.storage == FLOAT16:
        add_weighted_rows(count, length, weights, pointer_at(FLOAT16_BITS, address), values.step, total)
    else:
        add_weighted_rows(count, length, weights, pointer_at(total[0], address), values.step, total)


def finish_scores(b: int, h: int, i: int, low: int, high: int, memory: Any, call: Any, numbers: Any) -> None:
    """From the dot products of query i with the keys [low, high) to its scores."""
    scores, count, one = memory.scores, high - low, numbers[ac.ONE]
    if numbers[ac.SOFTCAP] != 0:
        cap(count, scores, memory.slopes, one, numbers[ac.SOFTCAP])
    if ac.given(call, ac.BIAS):
        address, stride = ac.element_address(call, ac.BIAS, b, h, i, low), ac.column_stride(call, ac.BIAS)
        storage = ac.storage(call, ac.BIAS, numbers)
        if storage != NATIVE:
            widen_row(storage, count, address, stride, memory.row)
            add_bias(count, scores, memory.row)
        elif stride == item_bytes(scores):
            add_bias(count, scores, pointer_at(one, address))
        else:
            for n in range(count):
                added = pointer_at(one, address + n * stride)[0]
                scores[n] = scores[n] + added if added != -np.inf else added
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


def add_values(b: int, g: int, low: int, high: int, values: Any, memory: Any, call: Any, numbers: Any) -> None:
    """memory.added = sum_j weights_j values_j; a weight of zero masks NaN and infinities, see `put_nan`."""
    columns = ac.columns(call, ac.V)
    length, wide = row_length(columns, numbers), whole_lanes(columns, numbers)
    for d in range(wide):
        memory.added[d] = 0
    weigh_values(high - low, length, values, memory)
    if call[ac.HIDES] != 0 and has_nonfinite(wide, memory):
        for j in range(low, high):
            source = stored_rows(ac.V, b, g, j, j + 1, memory.row, call, numbers)
            pack_row(source, 0, 1, ahead(memory.finite_values, (j - low) * wide))
        remove_nonfinite(memory.finite_values, (high - low) * wide)
        for d in range(wide):
            memory.added[d] = 0
        weigh_values(high - low, length, Rows(address_of(memory.finite_values), wide, NATIVE), memory)
        for j in range(low, high):
            source = stored_rows(ac.V, b, g, j, j + 1, memory.row, call, numbers)
            put_nan(source, 0, 1, ahead(memory.scores, j - low), 1, 0, 1, memory.added, 1, 0)


def merge(call_integers: Any, call_numbers: Any, partials: int) -> None:
    """Outputs and lse from those of the blocks of keys, and the sinks."""
    call, numbers = pointer(call_integers), pointer(call_numbers)
    count, heads, kv_heads = ac.rows(call, ac.Q), ac.heads(call, ac.Q), ac.heads(call, ac.K)
    columns, wide = ac.columns(call, ac.V), whole_lanes(ac.columns(call, ac.V), numbers)
    blocks, group, length = (ac.rows(call, ac.K) + BLOCK - 1) // BLOCK, heads // kv_heads, wide + 2
    floats = np.empty(wide, call_numbers.dtype)
    out = pointer(floats)
    for n in range(ac.batches(call, ac.Q) * heads * count):
        b, h, i = n // count // heads, n // count % heads, n % count
        row = ((b * kv_heads + h // group) * blocks * group + h % group) * count + i
        parts, stride = ahead(pointer_at(numbers[ac.SCALE], partials), row * length), group * count * length
        sink = numbers[ac.SCALE] * 0 - np.inf  # in float64, and so are the sums
        if ac.given(call, ac.SINKS):
            sink = ac.matrix(numbers, call, ac.SINKS, 0, h)[0, 0]
        row_max = sink
        for k in range(blocks):
            row_max = max(row_max, parts[k * stride + wide])
        shift = row_max if row_max != -np.inf else 0.0
        row_sum = float(np.exp(sink - shift))
        for d in range(columns):
            out[d] = 0
        for k in range(blocks):
            part = ahead(parts, k * stride)
            factor = np.exp(part[wide] - shift)
            row_sum += float(part[wide + 1]) * float(factor)
            if factor != 0 or call[ac.HIDES] == 0:
                for d in range(columns):
                    out[d] += part[d] * factor
        inverse = 1.0 / row_sum if row_sum != 0 else 0.0
        for d in range(columns):
            out[d] = out[d] * inverse if row_sum != 0 else 0
        store_row(ac.OUT, b, h, i, out, call, numbers)
        ac.matrix(numbers, call, ac.LSE, b, h)[i, 0] = shift + np.log(row_sum)
    keep(floats)


readable_rows, beyond = jit(readable_rows, beyond, inner=True)
dot_keys, weigh_values = jit(dot_keys, weigh_values, fastmath=EXACT, inner=True)
finish_scores, update_softmax = jit(finish_scores, update_softmax, fastmath=EXACT, inner=True)
has_nonfinite, add_values = jit(has_nonfinite, add_values, fastmath=EXACT, inner=True)
decode_block = jit(decode_block, fastmath=EXACT, inner=True)
decode, merge = jit(decode, merge, fastmath=EXACT)

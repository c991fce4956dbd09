"""Panels of queries against the rows of arrays: their addresses, packing and unpacking.

Lane w of panel p is row r = W p + w of the chunk; the G heads that share a head of keys are one matrix of G * T rows,
of which row r is query r % T of head r // T.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.stored import store_row, widen_panel
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, lanes
from attnarray.kernels.numba.vector.memory import address_of, ahead, pointer_at
from attnarray.kernels.numba.vector.panel import Row, Scalar, panel_pass
from attnarray.kernels.numba.vector.sixteen import NATIVE
from attnarray.kernels.numba.vector.transpose import load_transposed, store_transposed, whole_squares


@panel_pass
def clear(numbers: Row) -> dict[str, Lanes]:
    return {"numbers": numbers.constant(0.0)}


@panel_pass
def add_rows_to(numbers: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + numbers}


@panel_pass
def move(numbers: Row, total: Row) -> dict[str, Lanes]:
    return {"total": numbers, "numbers": numbers.constant(0.0)}


@panel_pass
def multiply(numbers: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"numbers": numbers * factor}


def find_rows(slot: int, p: int, start: int, span: Any, queries: Any, call: Any, like: Any) -> None:
    """Write the addresses of the rows of a panel at key `start` to `queries.rows`; empty lanes get the last one."""
    count, r = ac.rows(call, ac.Q), span.first + p * lanes(like)
    h, i = span.h + r // count, r % count
    for w in range(lanes(like)):
        queries.rows[w] = ac.element_address(call, slot, span.b, h, i, start)
        if r < span.past - 1:
            r, i = r + 1, i + 1
            if i == count:
                h, i = h + 1, 0


def pack_panel(slot: int, p: int, factor: Any, span: Any, queries: Any, packed: Any, call: Any, numbers: Any) -> None:
    """Rows of a slot times `factor` as the panel (N, W) of queries p; lanes beyond the last row are undefined."""
    width, columns, done = lanes(numbers), ac.columns(call, slot), 0
    find_rows(slot, p, 0, span, queries, call, numbers)
    stride = widen_panel(slot, columns, queries.rows, queries.wide, call, numbers)
    if stride == item_bytes(numbers):
        done = whole_squares(0, columns, numbers)
        load_transposed(0, done, queries.rows, packed)
        multiply(0, done, 0, packed, factor)
    if done < columns:
        clear(done, columns, 0, packed)
        for w in range(min(width, span.past - span.first - p * width)):
            for n in range(done, columns):
                packed[n * width + w] = pointer_at(numbers[0], queries.rows[w] + n * stride)[0] * factor


def pack_words(slot: int, p: int, span: Any, queries: Any, packed: Any, call: Any, numbers: Any) -> None:
    """Rows of bfloat16 numbers as the panel (N / 2, W) of words of queries p."""
    width, words = lanes(numbers), ac.columns(call, slot) // 2
    find_rows(slot, p, 0, span, queries, call, numbers)
    done = whole_squares(0, words, numbers)
    load_transposed(0, done, queries.rows, packed)
    for w in range(width):
        for n in range(done, words):
            packed[n * width + w] = pointer_at(numbers[0], queries.rows[w])[n]


def unpack_panel(slot: int, p: int, span: Any, queries: Any, packed: Any, call: Any, numbers: Any) -> None:
    """The panel (N, W) of queries p as rows of a slot."""
    width, count, columns = lanes(numbers), ac.rows(call, slot), ac.columns(call, slot)
    first, transposed, done = span.first + p * width, 0, 0
    filled, native = min(width, span.past - first), ac.storage(call, slot, numbers) == NATIVE
    stride = ac.column_stride(call, slot) if native else item_bytes(numbers)
    find_rows(slot, p, 0, span, queries, call, numbers)
    if not native:
        for w in range(width):
            queries.rows[w] = address_of(ahead(queries.wide, w * columns))
    if stride == item_bytes(numbers):
        transposed = filled // (width // 2) * (width // 2) if native else width
        done = whole_squares(0, columns, numbers) if transposed > 0 else 0
        store_transposed(0, done, queries.rows, packed, transposed)
    for w in range(filled):
        for n in range(done if w < transposed else 0, columns):
            pointer_at(numbers[0], queries.rows[w] + n * stride)[0] = packed[n * width + w]
        if not native:
            h, i = span.h + (first + w) // count, (first + w) % count
            store_row(slot, span.b, h, i, ahead(queries.wide, w * columns), call, numbers)


find_rows = jit(find_rows, inner=True)
pack_panel, unpack_panel = jit(pack_panel, unpack_panel, fastmath=EXACT, inner=True)
pack_words = jit(pack_words, inner=True)

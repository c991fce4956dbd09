"""Panels of queries against the rows of arrays: their addresses, packing and unpacking.

Lane w of panel p is row r = W p + w of the chunk; the G heads that share a head of keys are one matrix of G * T rows,
of which row r is query r % T of head r // T.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, item_bytes, lanes
from attnarray.kernels.numba.vector.panel import Row, Scalar, panel_pass
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
    width, count, columns = lanes(numbers), ac.rows(call, slot), ac.columns(call, slot)
    first, done = span.first + p * width, 0
    if ac.column_stride(call, slot) == item_bytes(numbers):
        find_rows(slot, p, 0, span, queries, call, numbers)
        done = whole_squares(0, columns, numbers)
        load_transposed(0, done, queries.rows, packed)
        multiply(0, done, 0, packed, factor)
    if done < columns:
        clear(done, columns, 0, packed)
        for r in range(first, min(first + width, span.past)):
            x = ac.matrix(numbers, call, slot, span.b, span.h + r // count)
            for n in range(done, columns):
                packed[n * width + r - first] = x[r % count, n] * factor


def unpack_panel(slot: int, p: int, span: Any, queries: Any, packed: Any, call: Any, numbers: Any) -> None:
    """The panel (N, W) of queries p as rows of a slot."""
    width, count, columns = lanes(numbers), ac.rows(call, slot), ac.columns(call, slot)
    first, transposed, done = span.first + p * width, 0, 0
    past = min(first + width, span.past)
    if ac.column_stride(call, slot) == item_bytes(numbers):
        transposed, done = (past - first) // (width // 2) * (width // 2), whole_squares(0, columns, numbers)
        if transposed > 0:
            find_rows(slot, p, 0, span, queries, call, numbers)
            store_transposed(0, done, queries.rows, packed, transposed)
    for r in range(first, past):
        start = done if r - first < transposed else 0
        if start < columns:
            x = ac.matrix(numbers, call, slot, span.b, span.h + r // count)
            for n in range(start, columns):
                x[r % count, n] = packed[n * width + r - first]


find_rows = jit(find_rows, inner=True)
pack_panel, unpack_panel = jit(pack_panel, unpack_panel, fastmath=EXACT, inner=True)

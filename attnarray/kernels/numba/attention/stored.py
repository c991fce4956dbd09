"""Rows of arrays as numbers of the dtype of a call: read and written in place, or 16-bit ones through scratch memory.

So a 16-bit array is never converted as a whole: its rows are widened when a tile or a panel is packed.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.lanes import item_bytes, lanes
from attnarray.kernels.numba.vector.memory import address_of, ahead, matrix_at, pointer_at
from attnarray.kernels.numba.vector.packing import pack_columns, whole_tiles
from attnarray.kernels.numba.vector.pairs import interleave, interleave_zeros, remove_nonfinite_words
from attnarray.kernels.numba.vector.sixteen import BFLOAT16_BITS, NATIVE, narrow_row, widen_row


def stored_rows(slot: int, b: int, h: int, first: int, past: int, memory: Any, call: Any, like: Any) -> Any:
    """The rows [first, past) of a slot as a matrix; `memory` has room for as many numbers."""
    columns, start = ac.columns(call, slot), ac.element_address(call, slot, b, h, first, 0)
    row_stride, column_stride = ac.row_stride(call, slot), ac.column_stride(call, slot)
    storage = ac.storage(call, slot, like)
    if storage == NATIVE:
        return matrix_at(like, start, past - first, columns, row_stride, column_stride)
    for n in range(past - first):
        widen_row(storage, columns, start + n * row_stride, column_stride, ahead(memory, n * columns))
    size = item_bytes(like)
    return matrix_at(like, address_of(memory), past - first, columns, columns * size, size)


def widen_panel(slot: int, count: int, rows: Any, memory: Any, call: Any, like: Any) -> int:
    """Widen `count` numbers of each row of a panel, whose addresses are in `rows`, to `memory`, and point `rows` there.

    Return the stride of the numbers of a row in bytes; where they are not widened, that of the slot.
    """
    storage, stride = ac.storage(call, slot, like), ac.column_stride(call, slot)
    if storage == NATIVE:
        return stride
    for w in range(lanes(like)):
        row = ahead(memory, w * count)
        widen_row(storage, count, rows[w], stride, row)
        rows[w] = address_of(row)
    return item_bytes(like)


def store_row(slot: int, b: int, h: int, i: int, row: Any, call: Any, like: Any) -> None:
    """Write a row of numbers, which may be overwritten."""
    columns, address = ac.columns(call, slot), ac.element_address(call, slot, b, h, i, 0)
    storage, stride = ac.storage(call, slot, like), ac.column_stride(call, slot)
    if storage != NATIVE:
        narrow_row(storage, columns, row, address, stride)
    else:
        for n in range(columns):
            pointer_at(like[0], address + n * stride)[0] = row[n]


def word_rows(slot: int, b: int, h: int, first: int, past: int, call: Any, like: Any) -> Any:
    """The rows [first, past) of a slot as a matrix of words, which hold two bfloat16 numbers each."""
    start, size = ac.element_address(call, slot, b, h, first, 0), item_bytes(like)
    return matrix_at(like, start, past - first, ac.columns(call, slot) // 2, ac.row_stride(call, slot), size)


def interleave_rows(count: int, low: int, high: int, words: Any) -> None:
    """Words of two rows of bfloat16 numbers at these addresses; of one row if the second is 0."""
    if high != 0:
        interleave(count, pointer_at(BFLOAT16_BITS, low), pointer_at(BFLOAT16_BITS, high), words)
    else:
        interleave_zeros(count, pointer_at(BFLOAT16_BITS, low), words)


def pack_paired_columns(
    slot: int, b: int, g: int, start: int, stop: int, memory: Any, packed: Any, call: Any, like: Any
) -> bool:  # fmt: skip
    """Rows [start, stop) as `pack_columns` packs them, in words of two rows; return whether any number is not finite.

    If weights of zero may hide numbers, those that are not finite are replaced by 0.
    """
    columns, pairs, size = ac.columns(call, slot), (stop - start + 1) // 2, item_bytes(like)
    for k in range(pairs):
        row = start + 2 * k
        high = ac.element_address(call, slot, b, g, row + 1, 0) if row + 1 < stop else 0
        interleave_rows(columns, ac.element_address(call, slot, b, g, row, 0), high, ahead(memory, k * columns))
    pack_columns(matrix_at(like, address_of(memory), pairs, columns, columns * size, size), 0, pairs, packed)
    return call[ac.HIDES] != 0 and remove_nonfinite_words(packed, pairs * whole_tiles(columns, like))


def rows_scratch(keys: int, call: Any, like: Any) -> int:
    """The numbers of scratch memory that the rows of a tile of keys, and one more, or those of a panel need."""
    widest = max(ac.columns(call, ac.K), ac.columns(call, ac.V))
    if ac.storage(call, ac.Q, like) == NATIVE and ac.storage(call, ac.BIAS, like) == NATIVE:
        return 0
    return max((keys + 1) * widest, lanes(like) * max(widest, keys))


stored_rows, widen_panel, store_row, rows_scratch = jit(stored_rows, widen_panel, store_row, rows_scratch, inner=True)
word_rows, interleave_rows, pack_paired_columns = jit(word_rows, interleave_rows, pack_paired_columns, inner=True)

"""A mask in tiles: which tiles of keys a panel of queries sees, and the bits of those that it sees in part.

The table has for each tile of queries and keys a number: 0 is empty, 1 is full, any other is that of a tile of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.lanes import lanes
from attnarray.kernels.numba.vector.memory import as_bytes, pointer_at
from attnarray.kernels.numba.vector.transpose import mask_transposed, whole_squares

EMPTY, FULL, PARTIAL = range(3)
BOUNDS = 5  # numbers of each panel in `Queries.bounds`, of which this is the last
KIND = 4


def find_kinds(panels: int, start: int, span: Any, queries: Any, call: Any, like: Any) -> bool:
    """Write for each panel of a chunk the kind of the tile of keys at `start`; return whether one is not empty."""
    if not ac.given(call, ac.TABLE):
        return True
    seen = False
    for p in range(panels):
        kind = panel_kind(p, start, span, call, like)
        queries.bounds[BOUNDS * p + KIND] = kind
        seen = seen or kind != EMPTY
    return seen


def panel_kind(p: int, start: int, span: Any, call: Any, like: Any) -> Any:
    """PARTIAL also where the queries of the panel have different tiles."""
    size, count = ac.rows(call, ac.TILES), ac.rows(call, ac.Q)
    r = span.first + p * lanes(like)
    last, column = min(r + lanes(like), span.past) - 1, start // size
    number = tile_number(span.b, span.h + r // count, r % count // size, column, call)
    r = (r // count) * count + min((r % count // size + 1) * size, count)  # the first row of the next tile
    while r <= last:
        if tile_number(span.b, span.h + r // count, r % count // size, column, call) != number:
            return PARTIAL
        r = (r // count) * count + min((r % count // size + 1) * size, count)
    return min(number, PARTIAL)


def tile_number(b: int, h: int, row: int, column: int, call: Any) -> Any:
    return pointer_at(call[0], ac.element_address(call, ac.TABLE, b, h, row, column))[0]


def mask_by_tiles(
    p: int, start: int, first: int, past: int, span: Any, queries: Any, scores: Any, call: Any, numbers: Any
) -> None:
    """Hide what the tile of keys at `start` does not allow of a panel of scores."""
    if queries.bounds[BOUNDS * p + KIND] == FULL:
        return
    width, size, count = lanes(scores), ac.rows(call, ac.TILES), ac.rows(call, ac.Q)
    r = span.first + p * width
    h, i = span.h + r // count, r % count
    for w in range(width):
        number = tile_number(span.b, h, i // size, start // size, call)
        queries.rows[w] = ac.element_address(call, ac.TILES, 0, number, i % size, start % size)
        if r < span.past - 1:
            r, i = r + 1, i + 1
            if i == count:
                h, i = h + 1, 0
    squares = whole_squares(first, past, scores)
    mask_transposed(first, squares, queries.rows, scores)
    for w in range(width):
        for j in range(squares, past):
            if pointer_at(as_bytes(numbers)[0], queries.rows[w] + j)[0] == 0:
                scores[j * width + w] = -np.inf


def seen_in_tiles(b: int, h: int, i: int, call: Any) -> Any:
    """How many keys are in tiles that query i sees."""
    size, seen = ac.rows(call, ac.TILES), 0
    for column in range(ac.columns(call, ac.TABLE)):
        seen += size if tile_number(b, h, i // size, column, call) != EMPTY else 0
    return seen


tile_number = jit(tile_number, inner=True)
panel_kind, seen_in_tiles, mask_by_tiles = jit(panel_kind, seen_in_tiles, mask_by_tiles, inner=True)
find_kinds = jit(find_kinds, inner=True)

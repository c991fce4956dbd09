"""Blocks, threads and shared memory of a launch: plain arithmetic, without a GPU.

`plan` functions of the kernels compute these from shapes alone.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

WARP = 32
MOST_THREADS = 512  # of a row: the bound that kernels along rows are compiled for
MOST_BLOCKS = 2**31 - 1  # along x
MOST_BLOCKS_ALONG_Y = 65535

HELD_BYTES = 32  # of the numbers of a row that a thread holds in registers, as computed; COUNT in sources/rows.cuh
CHUNK_BYTES = 16  # that are read and written at once
REDUCED = 4 * WARP  # numbers in shared memory for sums over several warps
BLOCK = 256  # threads of a block by default


class Grid(NamedTuple):
    """A launch: blocks (x, y, z), threads of a block (x, y, z), bytes of shared memory of a block."""

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    shared: int = 0

    @property
    def is_empty(self) -> bool:
        return 0 in self.blocks


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def threads_of_row(width: int, itemsize: int, most: int = MOST_THREADS) -> int:
    """The threads that share a row: as few warps as hold it in registers, a power of two."""
    threads = WARP
    while threads < most and threads * HELD_BYTES < width * itemsize:
        threads *= 2
    return threads


@functools.lru_cache(maxsize=1024)
def plan_rows(rows: int, width: int, itemsize: int, most: int = MOST_THREADS) -> Grid:
    """Rows of `width` numbers: a warp for each short one, several to a block, else a whole block for each.

    `itemsize` is that of the numbers as computed.
    """
    across = threads_of_row(width, itemsize, most)
    together = BLOCK // WARP if across == WARP else 1
    blocks = min(ceil_div(rows, together), MOST_BLOCKS)
    return Grid((blocks, 1, 1), (across, together, 1), 0 if across == WARP else REDUCED * itemsize)


def plan_held(rows: int, row_bytes: int, thread_bytes: int, most: int, itemsize: int) -> Grid:
    """Rows of which a thread holds `thread_bytes`: as few warps as hold a row, and four rows to a block of one warp."""
    across = WARP
    while across < most and across * thread_bytes < row_bytes:
        across *= 2
    together = 4 if across == WARP else 1
    # A block for each, as no memory has room for more than MOST_BLOCKS of such rows.
    return Grid((ceil_div(rows, together), 1, 1), (across, together, 1), 0 if across == WARP else REDUCED * itemsize)


def plan_numbers(count: int, stored: int) -> Grid:
    """`count` numbers of `stored` bytes, two chunks to a thread."""
    each = BLOCK * 2 * CHUNK_BYTES // stored
    return Grid((min(ceil_div(count, each), MOST_BLOCKS), 1, 1), (BLOCK, 1, 1))


def plan_columns(width: int, itemsize: int) -> Grid:
    """The sums of `width` columns: 32 to a block, 32 strips of rows."""
    return Grid((ceil_div(width, WARP), 1, 1), (WARP, WARP, 1), WARP * WARP * itemsize)

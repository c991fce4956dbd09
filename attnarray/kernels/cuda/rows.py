"""Kernels along rows come in pairs: one for any rows, and one for aligned rows that threads hold in registers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from attnarray.kernels.cuda.arrays import Stored
from attnarray.kernels.cuda.grid import (
    CHUNK_BYTES,
    HELD_BYTES,
    MOST_THREADS,
    REDUCED,
    WARP,
    Grid,
    ceil_div,
    plan_held,
    plan_rows,
)
from attnarray.kernels.cuda.loader import Kernel, launch, shared_bytes, warmup

# Chunks of a row that a thread holds, by itemsize: of a kernel that holds one array (HELD_ONE in rows.cuh),
# of one that holds two (HELD_TWO), and of one that holds two and sums of both.
ONE, TWO, SUMS = {2: 4, 4: 8, 8: 4}, {2: 2, 4: 2, 8: 2}, {2: 2, 4: 4, 8: 4}

WIDE = 1024  # threads of a wide row: WIDE in rows.cuh

# Row length beyond which a row has more threads: fewer rows at a time stay in the L2 cache for the next pass.
LONG = 16384


class RowKernel(NamedTuple):
    """Both kernels of a function; of the second: the chunks of a row that a thread holds, the maximum threads of a row.

    With `spans`, rows may be longer than these hold. The first kernel uses as many threads for LONG rows.
    """

    any: Kernel
    held: Kernel
    chunks: dict[int, int]
    threads: int
    spans: bool


def row_kernel(
    source: str, name: str, parameters: str, chunks: dict[int, int], threads: int = MOST_THREADS, spans: bool = False
) -> RowKernel:
    one, held = (Kernel(source, full, parameters) for full in (name, f"{name}_held"))
    return RowKernel(one, held, chunks, threads, spans)


def are_held(kernel: RowKernel, how: Stored, width: int, arrays: Iterable[Any]) -> bool:
    """Whether rows are too long for a warp of the first kernel, not too long for the second, and aligned."""
    most = kernel.threads * kernel.chunks[how.stored_itemsize] * CHUNK_BYTES
    return (
        width * how.itemsize > WARP * HELD_BYTES
        and (kernel.spans or width * how.stored_itemsize <= most)
        and width * how.stored_itemsize % CHUNK_BYTES == 0
        and are_aligned(arrays)
    )


def are_aligned(arrays: Iterable[Any]) -> bool:
    return all(array is None or array.data.ptr % CHUNK_BYTES == 0 for array in arrays)


def launch_rows(kernel: RowKernel, how: Stored, count: int, width: int, *arguments: Any) -> None:
    """Launch a kernel whose parameters end with `count` and `width` of the rows."""
    arrays = (value for letter, value in zip(kernel.any.parameters, arguments, strict=False) if letter == "p")
    if are_held(kernel, how, width, arrays):
        launch(kernel.held, how.name, held_grid(kernel, how, count, width), *arguments, count, width)
    else:
        most = kernel.threads if how.itemsize == 4 and width > LONG else MOST_THREADS
        launch(kernel.any, how.name, plan_rows(count, width, how.itemsize, most), *arguments, count, width)


def held_grid(kernel: RowKernel, how: Stored, count: int, width: int) -> Grid:
    size = how.stored_itemsize
    return plan_held(count, width * size, kernel.chunks[size] * CHUNK_BYTES, kernel.threads, how.itemsize)


def wide_grid(how: Stored, width: int, arrays: Iterable[Any], copied: int) -> Grid | None:
    """One block of the threads of a wide row, which hold an array in registers and `copied` in shared memory.

    None if a row does not fit, or is not aligned.
    """
    chunks, row_bytes, arrays = ONE[how.stored_itemsize], width * how.stored_itemsize, tuple(arrays)
    grid = with_copies(Grid((1, 1, 1), (WIDE, 1, 1)), how.itemsize, copied * chunks)
    fits = row_bytes <= WIDE * chunks * CHUNK_BYTES and grid.shared <= shared_bytes(int(arrays[0].data.device_id))
    return grid if fits and row_bytes % CHUNK_BYTES == 0 and are_aligned(arrays) else None


def with_copies(grid: Grid, itemsize: int, chunks: int) -> Grid:
    """Shared memory for the chunks that each thread of a held kernel prefetches."""
    across, together, _ = grid.threads
    return grid._replace(shared=REDUCED * itemsize + chunks * CHUNK_BYTES * across * together)


def few_blocks(grid: Grid, at_once: int, processors: int) -> Grid:
    """At most as many blocks as run at once, `at_once` threads on a multiprocessor, with equal shares of the rows."""
    across, together, _ = grid.threads
    rounds = ceil_div(grid.blocks[0], processors * max(at_once // (across * together), 1))
    return grid._replace(blocks=(ceil_div(grid.blocks[0], max(rounds, 1)), 1, 1))


def load(kernels: tuple[RowKernel, ...], dtype: str) -> None:
    """Compile and load both kernels of each on the current device."""
    warmup(tuple(kernel for pair in kernels for kernel in (pair.any, pair.held)), dtype)

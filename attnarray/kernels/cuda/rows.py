"""Kernels along rows come in two: one for any rows, and one for aligned rows that their threads hold as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from attnarray.kernels.cuda.arrays import Stored
from attnarray.kernels.cuda.grid import CHUNK_BYTES, HELD_BYTES, MOST_THREADS, WARP, Grid, plan_held, plan_rows
from attnarray.kernels.cuda.loader import Kernel, launch, warmup

# Chunks of a row that a thread holds, by the bytes of a number: of a kernel that holds one array (OF_ONE in rows.cuh),
# of one that holds two (OF_TWO), and of one that holds two and sums of both.
ONE, TWO, SUMS = {2: 4, 4: 8, 8: 4}, {2: 2, 4: 2, 8: 2}, {2: 2, 4: 4, 8: 4}

LONG = (
    16384  # numbers of a row beyond which few rows at a time leave each in the level-2 cache for the next pass over it
)


class RowKernel(NamedTuple):
    """Both kernels of a function; of the second: the chunks of a row that a thread holds, the most threads of a row.

    With `spans`, rows may be longer than what these hold. The first kernel takes as many threads for LONG rows.
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
        and all(array is None or array.data.ptr % CHUNK_BYTES == 0 for array in arrays)
    )


def launch_rows(kernel: RowKernel, how: Stored, count: int, width: int, *arguments: Any) -> None:
    """Launch a kernel whose parameters end by `count` and `width`, those of the rows."""
    arrays = (value for letter, value in zip(kernel.any.parameters, arguments, strict=False) if letter == "p")
    if are_held(kernel, how, width, arrays):
        launch(kernel.held, how.name, held_grid(kernel, how, count, width), *arguments, count, width)
    else:
        most = kernel.threads if how.itemsize == 4 and width > LONG else MOST_THREADS
        launch(kernel.any, how.name, plan_rows(count, width, how.itemsize, most), *arguments, count, width)


def held_grid(kernel: RowKernel, how: Stored, count: int, width: int) -> Grid:
    size = how.stored_itemsize
    return plan_held(count, width * size, kernel.chunks[size] * CHUNK_BYTES, kernel.threads, how.itemsize)


def load(kernels: tuple[RowKernel, ...], dtype: str) -> None:
    """Compile and load both of each on the current device."""
    warmup(tuple(kernel for pair in kernels for kernel in (pair.any, pair.held)), dtype)

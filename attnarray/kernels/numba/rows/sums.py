"""Sums of many rows into few, in float32 and float64: for the gradients of embeddings and graphs.

A row that has been added to `LONGEST` times is moved to its row in float64, and starts again at zero. The entries after
which that happens are marked beforehand, so that rows to which fewer are added, nearly all, cost nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.basics import move
from attnarray.kernels.numba.vector.memory import ahead, is_null, pointer_at

LONGEST = 32  # float32 numbers that are added before they are moved, a power of two


class LongSums(NamedTuple):
    """For entries that are added to some rows: marks, 1 after every `LONGEST` of a row, and the rows in float64."""

    marks: Any  # (E,) bytes
    rows: Any  # in the shape of the sums, float64

    @property
    def addresses(self) -> tuple[int, int]:
        """The addresses of both, for compiled code."""
        return address(self.marks), address(self.rows)

    def combined(self, sums: Any) -> Any:
        """The sums in float32, with those in float64 added."""
        np.add(sums, self.rows, out=sums, casting="same_kind")
        return sums


NONE = 0, 0  # addresses where no row is long


def long_sums(indices: Any, count: int, sums: Any, what: str) -> LongSums | None:
    """Marks and float64 rows for entries that are added to `count` rows; None where no row of `sums` needs them.

    Declined if a row is not from 0 to count - 1: `indices` may have changed since they were checked.
    """
    counts = np.zeros(count, np.uint8)
    found = count_long(indices.size, address(indices), count, address(counts))
    if found < 0:
        raise Declined(f"{what} is not from 0 to {count - 1}")
    if not found or sums.dtype != np.float32:
        return None
    counts.fill(0)
    marks = np.empty(indices.size, np.uint8)
    mark(indices.size, address(indices), address(counts), address(marks))
    return LongSums(marks, np.zeros(sums.shape))


def addresses(long: LongSums | None) -> tuple[int, int]:
    """The addresses of `LongSums`, 0 without one."""
    return NONE if long is None else long.addresses


def combined(sums: Any, long: LongSums | None) -> Any:
    """All sums, in the array `sums`."""
    return sums if long is None else long.combined(sums)


def warmup() -> None:
    """Compile the kernels."""
    count_long(0, 0, 0, 0)
    mark(0, 0, 0, 0)


def count_long(size: int, indices: int, count: int, counts: int) -> int:
    """How many marks `size` entries need, or -1 if a row is not one of `count`. `counts` holds a zero for each row."""
    row, row_counts = pointer_at(size, indices), pointer_at(np.uint8(0), counts)
    outside, found = 0, 0
    for n in range(size):
        outside |= row[n] | (count - 1 - row[n])
    if outside < 0:
        return -1
    for n in range(size):
        some = row_counts[row[n]] + 1
        found += some // LONGEST
        row_counts[row[n]] = some % LONGEST
    return found


def mark(size: int, indices: int, counts: int, marks: int) -> None:
    """Fill `marks`. `counts` holds a zero for each row."""
    row, row_counts, mark = pointer_at(size, indices), pointer_at(np.uint8(0), counts), pointer_at(np.uint8(0), marks)
    for n in range(size):
        some = row_counts[row[n]] + 1
        mark[n] = some // LONGEST
        row_counts[row[n]] = some % LONGEST


def past_mark(first: int, past: int, marks: Any) -> int:
    """The entry after the first marked one of [first, past), or `past`: up to there entries need not be looked at."""
    if not is_null(marks):
        for n in range(first, past):
            if marks[n] != 0:
                return n + 1
    return past


def move_marked(n: int, columns: int, sums: Any, at: int, marks: Any, rows: Any) -> None:
    """After entry n was added to the `columns` numbers from `at` on: move them to float64 if it is marked."""
    if not is_null(marks) and marks[n] != 0:
        move(columns, ahead(sums, at), ahead(rows, at))


count_long, mark = jit(count_long, mark)
past_mark, move_marked = jit(past_mark, move_marked, inner=True)

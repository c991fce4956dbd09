"""Cross-entropy along rows of logits, forward and backward: each row is read from memory once.

Reference: ops/loss.py. Parallel over the rows. Scratch: none. Ignored rows are not read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels.numba.rows.softmax import add_exponentials, find_largest
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, exp, multiply_add
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, place, row_pass

IGNORED = -1
FORWARD, BACKWARD = 0.4, 0.5  # nanoseconds for each logit


def cross_entropy_forward(x: Any, classes: Any, ignore_index: int, label_smoothing: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    real, number = ra.computed_in(x), x.shape[0]
    rows, places = ra.rows_along(x, 1, real), _places(classes, ignore_index)
    losses, largest, total = np.empty(number, real), np.empty((number, 1), real), np.empty((number, 1), real)
    split_rows(
        lose, number, ra.nanoseconds(x.size, FORWARD, real), x.shape[1], rows.address, rows.apart, places,
        losses, largest, total, real.type(label_smoothing), real.type(-math.inf),
    )  # fmt: skip
    return losses, largest, total


def cross_entropy_backward(
    g: Any, x: Any, classes: Any, largest: Any, total: Any, ignore_index: int, label_smoothing: float
) -> Any:
    """See the reference."""
    real, number = ra.computed_in(x), x.shape[0]
    rows, places, dx = ra.rows_along(x, 1, real), _places(classes, ignore_index), ra.results_along(x, 1, real)
    per_row = [np.require(numbers, real, ["C", "A"]) for numbers in (g, largest, total)]
    split_rows(
        differentiate, number, ra.nanoseconds(x.size, BACKWARD, real), x.shape[1], rows.address, rows.apart,
        dx.address, dx.apart, places, *(numbers.ctypes.data for numbers in per_row), real.type(label_smoothing),
    )  # fmt: skip
    return ra.in_shape_of(x, 1, dx)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    number, numbers, places = np.dtype(dtype).type(0), np.zeros((0, 1), dtype), np.zeros(0, np.int64)
    lose(0, 0, 0, 0, 0, places, numbers[:, 0].copy(), numbers, numbers, number, number)
    differentiate(0, 0, 0, 0, 0, 0, 0, places, 0, 0, 0, number)


def _places(classes: Any, ignore_index: int) -> Any:
    """The classes as integers of one type, and IGNORED for rows that do not count."""
    return np.where(classes == ignore_index, np.int64(IGNORED), classes)


@row_pass(vectors=2)
def add_differences(x: Row, shift: Scalar, total: Sum) -> dict[str, Lanes]:
    return {"total": total + (x - shift)}


@row_pass(vectors=1)
def subtract_target(x: Row, dx: Row, shift: Scalar, inverse: Scalar, target: Scalar, g: Scalar) -> dict[str, Lanes]:
    """dx = (p - q) g."""
    return {"dx": (multiply_add(exp(x - shift), inverse, target * -1.0)) * g}


@row_pass(vectors=2)
def clear(dx: Row) -> dict[str, Lanes]:
    return {"dx": dx.constant(0.0)}


def lose(
    first: int, past: int, count: int, x: int, x_apart: int, classes: Any, losses: Any, largest: Any, total: Any,
    smoothing: Any, lowest: Any,
) -> None:  # fmt: skip
    for n in range(first, past):
        t, row = classes[n], place(smoothing, x + n * x_apart)
        if t < 0:
            losses[n], largest[n, 0], total[n, 0] = 0, 0, count
            continue
        highest = find_largest(count, row)
        shift = highest if highest != lowest else 0.0
        some = add_exponentials(count, row, shift)
        some = some if some != 0 else 1.0
        loss = (smoothing - 1.0) * (row[t] - shift) + math.log(some)
        if smoothing != 0:
            loss -= smoothing / count * add_differences(count, row, shift)
        losses[n], largest[n, 0], total[n, 0] = loss, shift, some


def differentiate(
    first: int, past: int, count: int, x: int, x_apart: int, dx: int, dx_apart: int, classes: Any, g: int,
    largest: int, total: int, smoothing: Any,
) -> None:  # fmt: skip
    others = smoothing / count
    for n in range(first, past):
        t, result = classes[n], place(smoothing, dx + n * dx_apart)
        if t < 0:
            clear(count, result)
            continue
        row, factor = place(smoothing, x + n * x_apart), place(smoothing, g)[n]
        shift, inverse = place(smoothing, largest)[n], 1.0 / place(smoothing, total)[n]
        subtract_target(count, row, result, shift, inverse, others, factor)
        if t < count:  # targets may have changed since they were checked
            target = others + (1.0 - smoothing)
            subtract_target(1, ahead(row, t), ahead(result, t), shift, inverse, target, factor)


lose, differentiate = jit(lose, fastmath=EXACT), jit(differentiate, fastmath=EXACT)

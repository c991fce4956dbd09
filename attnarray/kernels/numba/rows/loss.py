"""Cross-entropy along rows of logits, forward and backward: each row is read from memory once.

Reference: ops/loss.py. Parallel over the rows. Scratch: none. Ignored rows are not read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.rows.softmax import add_exponentials, find_max
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Integers, Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes, exp, multiply_add
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

IGNORED = -1
FORWARD, BACKWARD = 0.4, 0.5  # nanoseconds for each logit


def cross_entropy_forward(x: Any, classes: Any, ignore_index: int, label_smoothing: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    real, number = ra.compute_dtype(x), x.shape[0]
    rows, indices = ra.rows_along(x, 1, real), _class_indices(classes, ignore_index)
    losses, row_max, row_sum = np.empty(number, real), np.empty((number, 1), real), np.empty((number, 1), real)
    call = Loss(x.shape[1], rows.address, rows.step, indices, row_max, row_sum, label_smoothing, losses)
    split_rows(cross_entropy, number, ra.nanoseconds(x.size, FORWARD, real), *pack(call, real))
    return losses, row_max, row_sum


def cross_entropy_backward(
    g: Any, x: Any, classes: Any, row_max: Any, row_sum: Any, ignore_index: int, label_smoothing: float
) -> Any:
    """See the reference."""
    real, number = ra.compute_dtype(x), x.shape[0]
    rows, indices, dx = ra.rows_along(x, 1, real), _class_indices(classes, ignore_index), ra.results_along(x, 1, real)
    g, row_max, row_sum = (np.require(numbers, real, ["C", "A"]) for numbers in (g, row_max, row_sum))
    given = x.shape[1], rows.address, rows.step, indices, row_max, row_sum, label_smoothing
    call = Loss(*given, dx=dx.address, dx_step=dx.step, g=g)
    split_rows(differentiate, number, ra.nanoseconds(x.size, BACKWARD, real), *pack(call, real))
    return ra.reshape_like(x, 1, dx)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    cross_entropy(0, 0, *pack(empty_call(Loss), dtype))
    differentiate(0, 0, *pack(empty_call(Loss), dtype))


class Loss(NamedTuple):
    """A call on logits."""

    width: int
    x: Numbers
    x_step: int
    classes: Integers
    row_max: Numbers
    row_sum: Numbers
    smoothing: Number
    losses: Numbers = None
    dx: Numbers = None
    dx_step: int = 0
    g: Numbers = None


def _class_indices(classes: Any, ignore_index: int) -> Any:
    """The classes as integers of one type, and IGNORED for ignored rows."""
    return np.where(classes == ignore_index, np.int64(IGNORED), classes)


@row_pass(vectors=2)
def add_differences(x: Row, shift: Scalar, row_sum: Sum) -> dict[str, Lanes]:
    return {"row_sum": row_sum + (x - shift)}


@row_pass(vectors=1)
def subtract_target(x: Row, dx: Row, shift: Scalar, inverse: Scalar, target: Scalar, g: Scalar) -> dict[str, Lanes]:
    """dx = (p - q) g."""
    return {"dx": (multiply_add(exp(x - shift), inverse, target * -1.0)) * g}


def cross_entropy(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The losses of the rows [first, past)."""
    c = unpack(Loss, integers, numbers)
    for n in range(first, past):
        t, row = c.classes[n], ahead(c.x, n * c.x_step)
        if t < 0:
            c.losses[n], c.row_max[n], c.row_sum[n] = 0, 0, c.width
            continue
        highest = find_max(c.width, row)
        shift = highest if highest != -math.inf else 0.0
        some = add_exponentials(c.width, row, shift)
        some = some if some != 0 else 1.0
        loss = (c.smoothing - 1.0) * (row[t] - shift) + math.log(some)
        if c.smoothing != 0:
            loss -= c.smoothing / c.width * add_differences(c.width, row, shift)
        c.losses[n], c.row_max[n], c.row_sum[n] = loss, shift, some


def differentiate(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients of the rows [first, past)."""
    c = unpack(Loss, integers, numbers)
    others = c.smoothing / c.width
    for n in range(first, past):
        t, result = c.classes[n], ahead(c.dx, n * c.dx_step)
        if t < 0:
            fill(c.width, result, 0.0)
            continue
        row, factor = ahead(c.x, n * c.x_step), c.g[n]
        shift, inverse = c.row_max[n], 1.0 / c.row_sum[n]
        subtract_target(c.width, row, result, shift, inverse, others, factor)
        if t < c.width:  # targets may have changed since they were checked
            target = others + (1.0 - c.smoothing)
            subtract_target(1, ahead(row, t), ahead(result, t), shift, inverse, target, factor)


cross_entropy, differentiate = jit(cross_entropy, differentiate, fastmath=EXACT)

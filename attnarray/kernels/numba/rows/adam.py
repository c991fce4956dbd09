"""A step of Adam: parameters, gradients and both moments are read once, and what becomes of them is written once.

Reference: optim/adam.py. Parallel over the numbers. Scratch: none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add, sqrt
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, Scalar, place, row_pass

EACH = 0.7  # nanoseconds for each number


def adam_step(p: Any, g: Any, m: Any, v: Any, numbers: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.computed_in(p)
    for array in (g, m, v):
        ra.computed_in(array)
    given = [ra.flat(array, real) for array in (p, g, m, v)]
    results = [np.empty(p.shape, real) for _ in range(3)]
    beta1, beta2, rate, shrink, eps = numbers
    split_rows(
        advance, p.size, ra.nanoseconds(p.size, EACH, real), *(array.ctypes.data for array in (*given, *results)),
        *(real.type(number) for number in (beta1, 1 - beta1, beta2, 1 - beta2, rate, shrink, eps)),
    )  # fmt: skip
    new, first, second = results
    return new.astype(p.dtype, copy=False), first.astype(m.dtype, copy=False), second.astype(v.dtype, copy=False)


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    advance(0, 0, *[0] * 7, *[np.dtype(dtype).type(0)] * 7)


@row_pass(vectors=1)
def step(
    p: Row, g: Row, m: Row, v: Row, new: Row, first: Row, second: Row, beta1: Scalar, rest1: Scalar, beta2: Scalar,
    rest2: Scalar, rate: Scalar, shrink: Scalar, eps: Scalar,
) -> dict[str, Lanes]:  # fmt: skip
    mean, square = multiply_add(m, beta1, g * rest1), multiply_add(v, beta2, g * g * rest2)
    return {"new": p * shrink - rate * mean / (sqrt(square) + eps), "first": mean, "second": square}


def advance(
    start: int, past: int, p: int, g: int, m: int, v: int, new: int, first: int, second: int, beta1: Any, rest1: Any,
    beta2: Any, rest2: Any, rate: Any, shrink: Any, eps: Any,
) -> None:  # fmt: skip
    step(
        past - start, ahead(place(rate, p), start), ahead(place(rate, g), start), ahead(place(rate, m), start),
        ahead(place(rate, v), start), ahead(place(rate, new), start), ahead(place(rate, first), start),
        ahead(place(rate, second), start), beta1, rest1, beta2, rest2, rate, shrink, eps,
    )  # fmt: skip


advance = jit(advance, fastmath=EXACT)

"""A step of Adam: parameters, gradients and both moments are read once, and the new ones are written once.

Reference: optim/adam.py. Parallel over the numbers. Scratch: none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add, sqrt
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import row_pass

EACH = 0.7  # nanoseconds for each number


def adam_step(p: Any, g: Any, m: Any, v: Any, numbers: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(p)
    for array in (g, m, v):
        ra.compute_dtype(array)
    given = [ra.flat(array, real) for array in (p, g, m, v)]
    results = [np.empty(p.shape, real) for _ in range(3)]
    beta1, beta2, *others = numbers
    call = Step._make((*given, *results, beta1, 1 - beta1, beta2, 1 - beta2, *others))
    split_rows(advance, p.size, ra.nanoseconds(p.size, EACH, real), *pack(call, real))
    new, first, second = results
    return new.astype(p.dtype, copy=False), first.astype(m.dtype, copy=False), second.astype(v.dtype, copy=False)


def warmup(dtype: str) -> None:
    """Compile the kernel for one dtype."""
    advance(0, 0, *pack(empty_call(Step), dtype))


class Step(NamedTuple):
    """A call: arrays before the step, and after it."""

    p: Numbers
    g: Numbers
    m: Numbers
    v: Numbers
    new: Numbers
    mean: Numbers
    square: Numbers
    beta1: Number
    one_minus_beta1: Number
    beta2: Number
    one_minus_beta2: Number
    rate: Number
    decay: Number
    eps: Number


@row_pass(vectors=1)
def step(c: Step) -> dict[str, Lanes]:
    mean, square = (
        multiply_add(c.m, c.beta1, c.g * c.one_minus_beta1),
        multiply_add(c.v, c.beta2, c.g * c.g * c.one_minus_beta2),
    )
    return {"new": c.p * c.decay - c.rate * mean / (sqrt(square) + c.eps), "mean": mean, "square": square}


def advance(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The numbers [first, past)."""
    step(past - first, ahead(unpack(Step, integers, numbers), first))


advance = jit(advance, fastmath=EXACT)

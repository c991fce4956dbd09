"""Initial parameters on the current backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.backend import Array, asarray
from attnarray.random import Philox

Params = dict[str, Any]


def glorot(rng: Philox, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Uniform in +-sqrt(6 / (inputs + outputs)): Glorot and Bengio, 2010. The first axis is that of the outputs."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    bound = math.sqrt(6.0 / max(inputs + outputs, 1))
    return asarray(rng.uniform(shape, -bound, bound), dtype=dtype)


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return asarray(np.zeros(shape), dtype=dtype)


def dense(rng: Philox, outputs: int, inputs: int, dtype: str = "float32", *, bias: bool = True) -> Params:
    """The parameters of `linear`: {"weight": (outputs, inputs), "bias": (outputs,)}, the bias 0 or absent."""
    weight = {"weight": glorot(rng, (outputs, inputs), dtype)}
    return {**weight, "bias": zeros(outputs, dtype=dtype)} if bias else weight

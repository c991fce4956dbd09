"""GELU, by the error function and by the approximation with tanh, ReLU, SiLU, tanh and sigmoid: one pass over memory.

Reference: ops/gelu.py and ops/activations.py. Parallel over the numbers. Scratch: none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.conversion import converted
from attnarray.kernels.numba.vector.elementwise import elementwise
from attnarray.kernels.numba.vector.lanes import LOG2_E, TAYLOR, Lanes, absolute, exp, multiply_add, polynomial, where
from attnarray.kernels.numba.vector.normal_distribution import normal_distribution, times_phi
from attnarray.kernels.numba.vector.rows import Row

CUBIC = 0.044715  # the coefficient of x^3 in the approximation with tanh
STEEPNESS = math.sqrt(2.0 / math.pi)
DENSITY = 1.0 / math.sqrt(2.0 * math.pi)  # of the normal distribution at 0

# Both gates are 0 or 1 to the last bit beyond these sizes; x is clipped there, so that no infinity is multiplied by 0.
GELU_REACH, SILU_REACH = 40.0, 1000.0
TANH_REACH = 20.0  # tanh is 1 to the last bit from here on

# (2^r - 1) / r for |r| <= 1/2: near-minimax in float32 (relative error 1e-8), Taylor series in float64 (2e-17).
SLOPES_FLOAT32 = (
    Chebyshev.interpolate(lambda r: np.expm1(r * math.log(2.0)) / r, 5, domain=[-0.5, 0.5])
    .convert(domain=[-1, 1], kind=Polynomial)
    .coef
)
SLOPES_FLOAT64 = TAYLOR[1:]


def gelu_forward(x: Any, approximate: str) -> Any:
    """See the reference."""
    return _forward(gelu if approximate == "none" else gelu_by_tanh, 0.7, x)


def gelu_backward(dout: Any, x: Any, approximate: str) -> Any:
    """See the reference."""
    return _backward(gelu_gradient if approximate == "none" else gelu_by_tanh_gradient, 0.8, dout, x)


def relu_forward(x: Any) -> Any:
    """See the reference."""
    return _forward(relu, 0.25, x)


def relu_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward(relu_gradient, 0.35, dout, out)


def silu_forward(x: Any) -> Any:
    """See the reference."""
    return _forward(silu, 0.5, x)


def silu_backward(dout: Any, x: Any) -> Any:
    """See the reference."""
    return _backward(silu_gradient, 0.6, dout, x)


def tanh_forward(x: Any) -> Any:
    """See the reference."""
    return _forward(tanh, 0.5, x)


def tanh_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward(tanh_gradient, 0.35, dout, out)


def sigmoid_forward(x: Any) -> Any:
    """See the reference."""
    return _forward(sigmoid, 0.5, x)


def sigmoid_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward(sigmoid_gradient, 0.35, dout, out)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    number = np.dtype(dtype).type(0)
    for forward in (gelu, gelu_by_tanh, relu, silu, tanh, sigmoid):
        forward(0, 0, 0, 0, number)
    for backward in (
        gelu_gradient, gelu_by_tanh_gradient, relu_gradient, silu_gradient, tanh_gradient, sigmoid_gradient
    ):  # fmt: skip
        backward(0, 0, 0, 0, 0, number)


def _forward(kernel: Any, each: float, x: Any) -> Any:
    real = ra.compute_dtype(x)
    given, out = ra.flat(x, real), np.empty(x.shape, real)
    work = ra.nanoseconds(x.size, each, real)
    split_rows(kernel, x.size, work, address(given), address(out), real.type(0))
    return converted(out, x.dtype)


def _backward(kernel: Any, each: float, dout: Any, x: Any) -> Any:
    real = ra.compute_dtype(x)
    dgiven, given, dx = ra.flat(dout, real), ra.flat(x, real), np.empty(x.shape, real)
    work = ra.nanoseconds(x.size, each, real)
    split_rows(kernel, x.size, work, address(dgiven), address(given), address(dx), real.type(0))
    return converted(dx, x.dtype)


def clip_below(x: Lanes, bound: float) -> Lanes:
    """max(x, -bound), where NaN stays NaN."""
    return where(x < -bound, -bound, x)


def clip(x: Lanes, bound: float) -> Lanes:
    """x clipped to [-bound, bound], where NaN stays NaN."""
    return clip_below(where(x > bound, bound, x), bound)


def logistic(x: Lanes) -> tuple[Lanes, Lanes]:
    """1 / (1 + e^-x), and the same for -x, which is 1 less it: each with a relative error of a few roundings."""
    small = exp(absolute(x) * -1.0)
    large = x.constant(1.0) / (small + 1.0)
    small = small * large
    negative = x < 0.0
    return where(negative, small, large), where(negative, large, small)


def tanh_gates(x: Lanes) -> tuple[Lanes, Lanes]:
    """(1 + tanh s) / 2, which is the logistic function of 2 s, and 1 less it; s = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return logistic(x * multiply_add(x * x, x.constant(2.0 * STEEPNESS * CUBIC), 2.0 * STEEPNESS))


def hyperbolic_tangent(x: Lanes) -> Lanes:
    """tanh(x) = (E - 1) / (E + 1) with E = e^(2 |x|) = 2^n 2^r, by the rounding of `exp`; an odd function to the bit.

    E - 1 is 2^n (2^r - 1) + (2^n - 1): for small x, where n is 0, there is no cancellation.
    """
    mantissa, bias, slopes = (23, 127, SLOPES_FLOAT32) if x.is_single else (52, 1023, SLOPES_FLOAT64)
    size = absolute(x)
    size = where(size > TANH_REACH, TANH_REACH, size)
    factor, magic = x.constant(2.0 * LOG2_E), 1.5 * 2.0**mantissa
    shifted = multiply_add(size, factor, magic)
    r = multiply_add(size, factor, x.constant(magic) - shifted)
    power = ((shifted.bits_as(x.integer) << mantissa) + (bias << mantissa)).bits_as(x.value.type.element)
    less = multiply_add(power, r * polynomial(r, slopes), power - 1.0)
    result = less / (less + 2.0)
    return where(x < 0.0, result * -1.0, result)


@elementwise(vectors=1)
def gelu(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": times_phi(x)}


@elementwise(vectors=1)
def gelu_gradient(dout: Row, x: Row, dx: Row) -> dict[str, Lanes]:
    gate, exponential = normal_distribution(x)
    return {"dx": dout * multiply_add(clip(x, GELU_REACH) * DENSITY, exponential, gate)}


@elementwise(vectors=1)
def gelu_by_tanh(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": clip_below(x, GELU_REACH) * tanh_gates(clip(x, GELU_REACH))[0]}


@elementwise(vectors=1)
def gelu_by_tanh_gradient(dout: Row, x: Row, dx: Row) -> dict[str, Lanes]:
    x = clip(x, GELU_REACH)
    gate, other = tanh_gates(x)
    inner = multiply_add(x * x, x.constant(6.0 * STEEPNESS * CUBIC), 2.0 * STEEPNESS)  # the slope of 2 s
    return {"dx": dout * multiply_add(x * inner, gate * other, gate)}


@elementwise(vectors=2)
def relu(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": where(x < 0.0, 0.0, x)}


@elementwise(vectors=2)
def relu_gradient(dout: Row, y: Row, dx: Row) -> dict[str, Lanes]:
    return {"dx": where(y > 0.0, dout, 0.0)}


@elementwise(vectors=1)
def silu(x: Row, out: Row) -> dict[str, Lanes]:
    x = clip_below(x, SILU_REACH)
    return {"out": x * logistic(x)[0]}


@elementwise(vectors=1)
def silu_gradient(dout: Row, x: Row, dx: Row) -> dict[str, Lanes]:
    x = clip(x, SILU_REACH)
    gate, other = logistic(x)
    return {"dx": dout * gate * multiply_add(x, other, 1.0)}


@elementwise(vectors=1)
def tanh(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": hyperbolic_tangent(x)}


@elementwise(vectors=2)
def tanh_gradient(dout: Row, y: Row, dx: Row) -> dict[str, Lanes]:
    return {"dx": (y.constant(1.0) - y * y) * dout}


@elementwise(vectors=1)
def sigmoid(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": logistic(x)[0]}


@elementwise(vectors=2)
def sigmoid_gradient(dout: Row, y: Row, dx: Row) -> dict[str, Lanes]:
    return {"dx": y * (y.constant(1.0) - y) * dout}

"""Layer normalization and root-mean-square normalization, forward and backward: each row is read from memory once.

Reference: ops/norm.py. The latter is the former with 0 for the mean, for the mean of the gradient, and for the bias.
Parallel over the rows. Scratch: per thread the sums that become the gradients of weight and bias, those of `TOGETHER`
rows and, in float64, those of all of them, so that rounding does not grow with the number of rows. They are added in
the order of the threads; with their number these gradients differ by rounding, and nothing else does.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Doubles, Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import run_parts, split_rows, threads_for
from attnarray.kernels.numba.vector.basics import move
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

SHRINK = {4: 2.0**-80, 8: 2.0**-620}  # as in attnarray.magnitude
FORWARD, BACKWARD = 0.25, 0.5  # nanoseconds for each number
TOGETHER = 64  # rows whose gradients of weight and bias are summed before they are added to the others


def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    mean = np.empty((*x.shape[:-1], 1), ra.compute_dtype(x))
    out, inverse_deviation = _forward(x, weight, bias, mean, eps)
    return out, mean, inverse_deviation


def rms_norm_forward(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """See the reference."""
    return _forward(x, weight, None, None, eps)


def layer_norm_backward(
    dout: Any, x: Any, mean: Any, inverse_deviation: Any, weight: Any, has_bias: bool
) -> tuple[Any, Any, Any]:
    """See the reference."""
    return _backward(dout, x, mean, inverse_deviation, weight, has_bias)


def rms_norm_backward(dout: Any, x: Any, inverse_rms: Any, weight: Any) -> tuple[Any, Any]:
    """See the reference."""
    return _backward(dout, x, None, inverse_rms, weight, False)[:2]


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    normalize(0, 0, *pack(empty_call(Norm), dtype))
    differentiate(0, 0, *pack(empty_call(Norm), dtype))


class Norm(NamedTuple):
    """A call; without `means` they are 0. To `sums` (2, width) the gradients of weight and bias are added."""

    width: int
    x: Numbers
    x_step: int
    weight: Numbers
    means: Numbers
    factors: Numbers
    size: Number  # `width`, at least 1
    out: Numbers = None
    out_step: int = 0
    bias: Numbers = None
    eps: Number = 0.0
    small: Number = 0.0  # a power of two
    dout: Numbers = None
    dout_step: int = 0
    dx: Numbers = None
    dx_step: int = 0
    has_weight: int = 0
    has_bias: int = 0
    parts: Numbers = None  # of some rows, as `sums`
    sums: Doubles = None


def _forward(x: Any, weight: Any, bias: Any, mean: Any, eps: float) -> tuple[Any, Any]:
    real = ra.compute_dtype(x)
    rows, out = ra.rows_along(x, x.ndim - 1, real), ra.results_along(x, x.ndim - 1, real)
    count = x.shape[-1]
    weights = np.ones(count, real) if weight is None else ra.flat(weight, real)
    biases = np.zeros(count, real) if bias is None else ra.flat(bias, real)
    factor = np.empty((*x.shape[:-1], 1), real)
    given = count, rows.address, rows.step, weights, mean, factor, max(count, 1)
    call = Norm(*given, out.address, out.step, biases, eps, SHRINK[real.itemsize])
    split_rows(normalize, len(rows.array), ra.nanoseconds(x.size, FORWARD, real), *pack(call, real))
    return ra.reshape_like(x, x.ndim - 1, out), factor


def _backward(dout: Any, x: Any, mean: Any, factor: Any, weight: Any, has_bias: bool) -> tuple[Any, Any, Any]:
    real, last = ra.compute_dtype(x), x.ndim - 1
    drows, rows, dx = ra.rows_along(dout, last, real), ra.rows_along(x, last, real), ra.results_along(x, last, real)
    count, number = x.shape[-1], len(rows.array)
    weights = np.ones(count, real) if weight is None else ra.flat(weight, real)
    means, factors = None if mean is None else ra.flat(mean, real), ra.flat(factor, real)
    threads = threads_for(ra.nanoseconds(x.size, BACKWARD, real), number)
    sums, parts = np.zeros((threads, 2, count)), np.zeros((threads, 2, count), real)
    call = Norm(
        count, rows.address, rows.step, weights, means, factors, max(count, 1), dout=drows.address,
        dout_step=drows.step, dx=dx.address, dx_step=dx.step, has_weight=weight is not None, has_bias=has_bias,
    )  # fmt: skip
    bounds = [number * n // threads for n in range(threads + 1)]
    calls = [pack(call._replace(parts=parts[n], sums=sums[n]), real) for n in range(threads)]
    run_parts(differentiate, [(*bounds[n : n + 2], *calls[n]) for n in range(threads)])
    dweight, dbias = np.sum(sums, axis=0).astype(x.dtype, copy=False)
    return ra.reshape_like(x, last, dx), None if weight is None else dweight, dbias if has_bias else None


@row_pass(vectors=2)
def add(x: Row, shrink: Scalar, total: Sum) -> dict[str, Lanes]:
    return {"total": multiply_add(x, shrink, total)}


@row_pass(vectors=2)
def add_squares(x: Row, shrink: Scalar, mean: Scalar, total: Sum) -> dict[str, Lanes]:
    stride = multiply_add(x, shrink, mean * -1.0)
    return {"total": multiply_add(stride, stride, total)}


@row_pass(vectors=2)
def scale(x: Row, weight: Row, bias: Row, out: Row, shrink: Scalar, mean: Scalar, factor: Scalar) -> dict[str, Lanes]:
    return {"out": multiply_add(multiply_add(x, shrink, mean * -1.0) * factor, weight, bias)}


def x_hat(x: Lanes, mean: Lanes, factor: Lanes) -> Lanes:
    """(x - mean) factor, computed by halves, so that the difference of two large numbers stays finite."""
    return multiply_add(x, x.constant(0.5), mean * -0.5) * (factor * 2.0)


@row_pass(vectors=2)
def project(dout: Row, x: Row, weight: Row, mean: Scalar, factor: Scalar, plain: Sum, along: Sum) -> dict[str, Lanes]:
    """The sums of g and of g x_hat."""
    g = dout * weight
    return {"plain": plain + g, "along": multiply_add(g, x_hat(x, mean, factor), along)}


@row_pass(vectors=2)
def subtract(
    dout: Row, x: Row, weight: Row, dx: Row, mean: Scalar, factor: Scalar, plain: Scalar, along: Scalar
) -> dict[str, Lanes]:
    """dx = (g - mean(g) - x_hat mean(g x_hat)) / deviation."""
    return {"dx": (dout * weight - plain - x_hat(x, mean, factor) * along) * factor}


@row_pass(vectors=2)
def add_to_weight(dout: Row, x: Row, total: Row, mean: Scalar, factor: Scalar) -> dict[str, Lanes]:
    return {"total": multiply_add(dout, x_hat(x, mean, factor), total)}


@row_pass(vectors=2)
def add_to_bias(dout: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + dout}


@row_pass(vectors=1)
def subtract_and_add(
    dout: Row, x: Row, weight: Row, dx: Row, dweight: Row, dbias: Row, mean: Scalar, factor: Scalar, plain: Scalar,
    along: Scalar,
) -> dict[str, Lanes]:  # fmt: skip
    """The last three in one pass, which all layer norms with weight and bias need."""
    normal = x_hat(x, mean, factor)
    return {
        "dx": (dout * weight - plain - normal * along) * factor,
        "dweight": multiply_add(dout, normal, dweight),
        "dbias": dbias + dout,
    }


def normalize(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Rows whose sums overflow are multiplied by the power of two `small`, and summed again."""
    c = unpack(Norm, integers, numbers)
    size, centered = c.size, not is_null(c.means)
    for n in range(first, past):
        row, shrink = ahead(c.x, n * c.x_step), size / size
        mean = add(c.width, row, shrink) / size if centered else size * 0
        variance = add_squares(c.width, row, shrink, mean) / size
        if variance - variance != 0:  # infinite, or NaN
            shrink = c.small
            mean = add(c.width, row, shrink) / size if centered else size * 0
            variance = add_squares(c.width, row, shrink, mean) / size
        root, least = math.sqrt(variance + c.eps * shrink * shrink), math.sqrt(c.eps) * shrink
        factor = 1 / (least if root < least else root)  # eps, shrunk twice, may be 0
        if centered:
            c.means[n] = mean / shrink
        c.factors[n] = factor * shrink
        scale(c.width, row, c.weight, c.bias, ahead(c.out, n * c.out_step), shrink, mean, factor)


def differentiate(first: int, past: int, integers: Any, numbers: Any) -> None:
    """Gradients of the rows [first, past)."""
    c = unpack(Norm, integers, numbers)
    size, dbias, centered = c.size, ahead(c.parts, c.width), not is_null(c.means)
    for start in range(first, past, TOGETHER):
        for n in range(start, min(start + TOGETHER, past)):
            drow, row = ahead(c.dout, n * c.dout_step), ahead(c.x, n * c.x_step)
            mean = c.means[n] if centered else size * 0
            factor = c.factors[n]
            plain, along = project(c.width, drow, row, c.weight, mean, factor)
            plain = plain if centered else size * 0
            result = ahead(c.dx, n * c.dx_step)
            if c.has_weight != 0 and c.has_bias != 0:
                plain, along = plain / size, along / size
                subtract_and_add(c.width, drow, row, c.weight, result, c.parts, dbias, mean, factor, plain, along)
                continue
            subtract(c.width, drow, row, c.weight, result, mean, factor, plain / size, along / size)
            if c.has_weight != 0:
                add_to_weight(c.width, drow, row, c.parts, mean, factor)
            if c.has_bias != 0:
                add_to_bias(c.width, drow, dbias)
        move(2 * c.width, c.parts, c.sums)


# An estimate of 1 / sqrt, which "afn" and "arcp" allow, gives NaN for an infinite variance.
PRECISE = EXACT - {"afn", "arcp"}
normalize, differentiate = jit(normalize, differentiate, fastmath=PRECISE)

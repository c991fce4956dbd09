"""Layer normalisation and root-mean-square normalisation, forward and backward: each row is read from memory once.

Reference: ops/norm.py. The latter is the former with 0 for the mean, for the mean of the gradient, and for the bias.
Parallel over the rows. Scratch: per thread the sums that become the gradients of weight and bias, those of `TOGETHER`
rows and, in float64, those of all of them, so that rounding does not grow with the number of rows. They are added in
the order of the threads; with their number these gradients differ by rounding, and nothing else does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnarray.kernels.numba.rows.sums import move
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import run_parts, split_rows, threads_for
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, place, row_pass

SHRINK = {4: 2.0**-80, 8: 2.0**-620}  # as in attnarray.magnitude
FORWARD, BACKWARD = 0.25, 0.5  # nanoseconds for each number
TOGETHER = 64  # rows whose gradients of weight and bias are summed by themselves


def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    mean = np.empty((*x.shape[:-1], 1), ra.computed_in(x))
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
    number = np.dtype(dtype).type(1)
    normalise(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number, number, number)
    differentiate(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, False, False, number)


def _forward(x: Any, weight: Any, bias: Any, mean: Any, eps: float) -> tuple[Any, Any]:
    real = ra.computed_in(x)
    rows, out = ra.rows_along(x, x.ndim - 1, real), ra.results_along(x, x.ndim - 1, real)
    count = x.shape[-1]
    weights = np.ones(count, real) if weight is None else ra.flat(weight, real)
    biases = np.zeros(count, real) if bias is None else ra.flat(bias, real)
    factor = np.empty((*x.shape[:-1], 1), real)
    split_rows(
        normalise, len(rows.array), ra.nanoseconds(x.size, FORWARD, real), count, rows.address, rows.apart,
        out.address, out.apart, weights.ctypes.data, biases.ctypes.data, 0 if mean is None else mean.ctypes.data,
        factor.ctypes.data, real.type(max(count, 1)), real.type(eps),
        real.type(SHRINK[real.itemsize]),
    )  # fmt: skip
    return ra.in_shape_of(x, x.ndim - 1, out), factor


def _backward(dout: Any, x: Any, mean: Any, factor: Any, weight: Any, has_bias: bool) -> tuple[Any, Any, Any]:
    real, last = ra.computed_in(x), x.ndim - 1
    drows, rows, dx = ra.rows_along(dout, last, real), ra.rows_along(x, last, real), ra.results_along(x, last, real)
    count, number = x.shape[-1], len(rows.array)
    weights = np.ones(count, real) if weight is None else ra.flat(weight, real)
    means, factors = None if mean is None else ra.flat(mean, real), ra.flat(factor, real)
    threads = threads_for(ra.nanoseconds(x.size, BACKWARD, real), number)
    sums, parts = np.zeros((threads, 2, count)), np.zeros((threads, 2, count), real)
    given = (
        count, drows.address, drows.apart, rows.address, rows.apart, dx.address, dx.apart, weights.ctypes.data,
        0 if means is None else means.ctypes.data, factors.ctypes.data,
    )  # fmt: skip
    run_parts(
        differentiate,
        [
            (
                number * n // threads, number * (n + 1) // threads, *given, parts[n].ctypes.data,
                sums[n].ctypes.data, weight is not None, has_bias, real.type(max(count, 1)),
            )
            for n in range(threads)
        ],
    )  # fmt: skip
    dweight, dbias = np.sum(sums, axis=0).astype(x.dtype, copy=False)
    return ra.in_shape_of(x, last, dx), None if weight is None else dweight, dbias if has_bias else None


@row_pass(vectors=2)
def add(x: Row, shrink: Scalar, total: Sum) -> dict[str, Lanes]:
    return {"total": multiply_add(x, shrink, total)}


@row_pass(vectors=2)
def add_squares(x: Row, shrink: Scalar, mean: Scalar, total: Sum) -> dict[str, Lanes]:
    apart = multiply_add(x, shrink, mean * -1.0)
    return {"total": multiply_add(apart, apart, total)}


@row_pass(vectors=2)
def scale(x: Row, weight: Row, bias: Row, out: Row, shrink: Scalar, mean: Scalar, factor: Scalar) -> dict[str, Lanes]:
    return {"out": multiply_add(multiply_add(x, shrink, mean * -1.0) * factor, weight, bias)}


def normal_of(x: Lanes, mean: Lanes, factor: Lanes) -> Lanes:
    """x^, by halves, so that the difference of two large numbers stays finite."""
    return multiply_add(x, x.constant(0.5), mean * -0.5) * (factor * 2.0)


@row_pass(vectors=2)
def project(dout: Row, x: Row, weight: Row, mean: Scalar, factor: Scalar, plain: Sum, along: Sum) -> dict[str, Lanes]:
    """The sums of g and of g x^."""
    g = dout * weight
    return {"plain": plain + g, "along": multiply_add(g, normal_of(x, mean, factor), along)}


@row_pass(vectors=2)
def subtract(
    dout: Row, x: Row, weight: Row, dx: Row, mean: Scalar, factor: Scalar, plain: Scalar, along: Scalar
) -> dict[str, Lanes]:
    """dx = (g - mean(g) - x^ mean(g x^)) / deviation."""
    return {"dx": (dout * weight - plain - normal_of(x, mean, factor) * along) * factor}


@row_pass(vectors=2)
def add_to_weight(dout: Row, x: Row, total: Row, mean: Scalar, factor: Scalar) -> dict[str, Lanes]:
    return {"total": multiply_add(dout, normal_of(x, mean, factor), total)}


@row_pass(vectors=2)
def add_to_bias(dout: Row, total: Row) -> dict[str, Lanes]:
    return {"total": total + dout}


def normalise(
    first: int, past: int, count: int, x: int, x_apart: int, out: int, out_apart: int, weight: int, bias: int,
    means: int, factors: int, size: Any, eps: Any, small: Any,
) -> None:  # fmt: skip
    """`size` is `count` as a floating number, at least 1; without `means` they are 0.

    Rows whose sums overflow are multiplied by the power of two `small`, and summed again.
    """
    for n in range(first, past):
        row, shrink = place(size, x + n * x_apart), size / size
        mean = add(count, row, shrink) / size if means != 0 else size * 0
        variance = add_squares(count, row, shrink, mean) / size
        if variance - variance != 0:  # infinite, or NaN
            shrink = small
            mean = add(count, row, shrink) / size if means != 0 else size * 0
            variance = add_squares(count, row, shrink, mean) / size
        root, least = math.sqrt(variance + eps * shrink * shrink), math.sqrt(eps) * shrink
        factor = 1 / (least if root < least else root)  # eps, shrunk twice, may be 0
        if means != 0:
            place(size, means)[n] = mean / shrink
        place(size, factors)[n] = factor * shrink
        target = place(size, out + n * out_apart)
        scale(count, row, place(size, weight), place(size, bias), target, shrink, mean, factor)


def differentiate(
    first: int, past: int, count: int, dout: int, dout_apart: int, x: int, x_apart: int, dx: int, dx_apart: int,
    weight: int, means: int, factors: int, parts: int, sums: int, has_weight: bool, has_bias: bool, size: Any,
) -> None:  # fmt: skip
    """As `normalise`; to `sums` (2, count), in float64, the gradients of weight and bias are added."""
    weights, dweight = place(size, weight), place(size, parts)
    dbias = ahead(dweight, count)
    for start in range(first, past, TOGETHER):
        for n in range(start, min(start + TOGETHER, past)):
            drow, row = place(size, dout + n * dout_apart), place(size, x + n * x_apart)
            mean = place(size, means)[n] if means != 0 else size * 0
            factor = place(size, factors)[n]
            plain, along = project(count, drow, row, weights, mean, factor)
            plain = plain if means != 0 else size * 0
            result = place(size, dx + n * dx_apart)
            subtract(count, drow, row, weights, result, mean, factor, plain / size, along / size)
            if has_weight:
                add_to_weight(count, drow, row, dweight, mean, factor)
            if has_bias:
                add_to_bias(count, drow, dbias)
        move(2 * count, dweight, place(0.0, sums))


# An estimate of 1 / sqrt, which "afn" and "arcp" allow, makes NaN of an infinite variance.
PRECISE = EXACT - {"afn", "arcp"}
normalise, differentiate = jit(normalise, fastmath=PRECISE), jit(differentiate, fastmath=PRECISE)

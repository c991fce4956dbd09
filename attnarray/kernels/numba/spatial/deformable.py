"""Deformable attention, forward and backward: a pass along the features of the four pixels around each point.

Reference: attention/spatial/deformable.py. Parallel over the queries of all heads; the gradients of the values, which
sum over all points near a pixel, over batches and heads in the order of the queries: each number is written by one
thread, so that results do not depend on how many there are. Scratch: a row of zeros for pixels beyond the border, and
for the gradients of the values their sums in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Doubles, Integers, Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, in_type
from attnarray.kernels.numba.vector.memory import ahead, keep, pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

FORWARD, BACKWARD, VALUES = 0.4, 0.8, 1.0  # nanoseconds for each point and feature
OVERHEAD = 16  # features that take as long as finding the pixels of a point


class Points(NamedTuple):
    """A call; None for arrays that only the backward takes."""

    batch: int
    pixels: int  # S
    queries: int  # T of each batch
    heads: int
    width: int  # D
    levels: int
    points: int
    shapes: Integers  # (L, 3): where the pixels of a level begin, H, W
    v: Numbers  # (B, S, heads, D)
    locations: Numbers  # (B, T, heads, L, points, 2)
    weights: Numbers  # (B, T, heads, L, points)
    half: Number
    out: Numbers = None  # (B, T, heads, D)
    dout: Numbers = None
    dv: Doubles = None
    dlocations: Numbers = None
    dweights: Numbers = None


class Pixels(NamedTuple):
    """Rows of four pixels: above on the left and right, below on the left and right."""

    a: Row
    b: Row
    c: Row
    d: Row


class Factors(NamedTuple):
    """What each of the four counts."""

    p: Scalar
    q: Scalar
    r: Scalar
    s: Scalar


@row_pass(vectors=1)
def add_pixels(pixels: Pixels, factors: Factors, total: Row) -> dict[str, Lanes]:
    above = pixels.a * factors.p + pixels.b * factors.q
    return {"total": total + above + (pixels.c * factors.r + pixels.d * factors.s)}


@row_pass(vectors=1)
def multiply_pixels(pixels: Pixels, row: Row, e: Sum, f: Sum, g: Sum, h: Sum) -> dict[str, Lanes]:
    return {"e": e + pixels.a * row, "f": f + pixels.b * row, "g": g + pixels.c * row, "h": h + pixels.d * row}


@row_pass(vectors=1)
def add_row(row: Row, total: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"total": total + in_type(row * factor, total)}


def locate(n: int, level: int, point: int, c: Any) -> Any:
    """The pixel (row, column) above and on the left of a point, and how far the point is beyond it, from 0 to 1.

    Of a point from which no pixel of the level can be reached, the row is -2.
    """
    at = 2 * ((n * c.levels + level) * c.points + point)
    H, W = c.shapes[3 * level + 1], c.shapes[3 * level + 2]
    x, y = c.locations[at] * W - c.half, c.locations[at + 1] * H - c.half
    if x <= -1 or y <= -1 or x >= W or y >= H:
        return -2, -2, x, y
    column = 0 if x != x else math.floor(x)  # NaN is to propagate
    row = 0 if y != y else math.floor(y)
    return row, column, x - column, y - row


def pixel(row: int, column: int, n: int, level: int, c: Any) -> int:
    """The row of (B, S, heads) of a pixel for query n of (B, T, heads); -1 beyond the border."""
    H, W = c.shapes[3 * level + 1], c.shapes[3 * level + 2]
    if row < 0 or column < 0 or row >= H or column >= W:
        return -1
    start = n // (c.queries * c.heads) * c.pixels + c.shapes[3 * level]
    return int((start + row * W + column) * c.heads + n % c.heads)


def pixel_row(row: int, column: int, n: int, level: int, c: Any, zeros: Any) -> Any:
    """The values of a pixel."""
    number = pixel(row, column, n, level, c)
    return ahead(c.v, number * c.width) if number >= 0 else zeros


def pixel_rows(row: int, column: int, n: int, level: int, c: Any, zeros: Any) -> Any:
    """The values of the four pixels around a point."""
    return Pixels(
        pixel_row(row, column, n, level, c, zeros), pixel_row(row, column + 1, n, level, c, zeros),
        pixel_row(row + 1, column, n, level, c, zeros), pixel_row(row + 1, column + 1, n, level, c, zeros),
    )  # fmt: skip


def forward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The rows [first, past) of (B, T, heads)."""
    c = unpack(Points, integers, numbers)
    memory = np.zeros(c.width, numbers.dtype)
    one = c.half + c.half
    for n in range(first, past):
        for level in range(c.levels):
            for point in range(c.points):
                row, column, x, y = locate(n, level, point, c)
                if row > -2:
                    weight = c.weights[(n * c.levels + level) * c.points + point]
                    above, below = weight * (one - y), weight * y
                    factors = Factors(above * (one - x), above * x, below * (one - x), below * x)
                    pixels = pixel_rows(row, column, n, level, c, pointer(memory))
                    add_pixels(c.width, pixels, factors, ahead(c.out, n * c.width))
    keep(memory)


def backward(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients of the weights and locations of the rows [first, past) of (B, T, heads)."""
    c = unpack(Points, integers, numbers)
    memory = np.zeros(c.width, numbers.dtype)
    one = c.half + c.half
    for n in range(first, past):
        for level in range(c.levels):
            for point in range(c.points):
                row, column, x, y = locate(n, level, point, c)
                if row > -2:
                    at = (n * c.levels + level) * c.points + point
                    pixels = pixel_rows(row, column, n, level, c, pointer(memory))
                    p, q, r, s = multiply_pixels(c.width, pixels, ahead(c.dout, n * c.width))
                    above, below = (one - x) * p + x * q, (one - x) * r + x * s
                    c.dweights[at] = (one - y) * above + y * below
                    weight = c.weights[at]
                    right = (one - y) * (q - p) + y * (s - r)
                    c.dlocations[2 * at] = weight * c.shapes[3 * level + 2] * right
                    c.dlocations[2 * at + 1] = weight * c.shapes[3 * level + 1] * (below - above)
    keep(memory)


def backward_of_values(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients of the values of the heads [first, past), counted over all batches."""
    c = unpack(Points, integers, numbers)
    one = c.half + c.half
    for unit in range(first, past):
        for t in range(c.queries):
            n = (unit // c.heads * c.queries + t) * c.heads + unit % c.heads
            for level in range(c.levels):
                for point in range(c.points):
                    row, column, x, y = locate(n, level, point, c)
                    if row > -2:
                        weight = c.weights[(n * c.levels + level) * c.points + point]
                        for corner in range(4):
                            down, right = corner // 2, corner % 2
                            number = pixel(row + down, column + right, n, level, c)
                            if number >= 0:
                                factor = weight * (y if down else one - y) * (x if right else one - x)
                                add_row(c.width, ahead(c.dout, n * c.width), ahead(c.dv, number * c.width), factor)


locate, pixel = jit(locate, pixel, fastmath=EXACT, inner=True)
pixel_row, pixel_rows = jit(pixel_row, pixel_rows, fastmath=EXACT, inner=True)
forward, backward, backward_of_values = jit(forward, backward, backward_of_values, fastmath=EXACT)


def sample(v: Any, locations: Any, weights: Any, shapes: Any) -> Any:
    """See the reference."""
    real = _real(v)
    call = _call(v, locations, weights, shapes, real)
    out = np.zeros((*weights.shape[:3], v.shape[3]), real)
    rows = math.prod(weights.shape[:3])
    split_rows(forward, rows, _work(call, FORWARD, real), *pack(call._replace(out=out), real), each=4)
    return out


def sample_backward(dout: Any, v: Any, locations: Any, weights: Any, shapes: Any) -> tuple[Any, Any, Any]:
    """See the reference."""
    real = _real(v)
    call = _call(v, locations, weights, shapes, real)
    drows = np.require(dout, real, ["C", "A"])
    dv, dlocations, dweights = np.zeros(v.shape), np.zeros(locations.shape, real), np.zeros(weights.shape, real)
    packed = pack(call._replace(dout=drows, dv=dv, dlocations=dlocations, dweights=dweights), real)
    split_rows(backward, math.prod(weights.shape[:3]), _work(call, BACKWARD, real), *packed, each=4)
    split_rows(backward_of_values, call.batch * call.heads, _work(call, VALUES, real), *packed)
    return dv.astype(real, copy=False), dlocations, dweights


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    for kernel in (forward, backward, backward_of_values):
        kernel(0, 0, *pack(empty_call(Points), dtype))


def _real(v: Any) -> Any:
    """The dtype to compute in, if the kernel serves this call."""
    real = ra.compute_dtype(v)
    if v.dtype != real:
        raise Declined(f"dtype {v.dtype.name}: float32 and float64 only")
    return real


def _call(v: Any, locations: Any, weights: Any, shapes: Any, real: Any) -> Points:
    starts = [sum(H * W for H, W in shapes[:level]) for level in range(len(shapes))]
    table = np.array([(start, *shape) for start, shape in zip(starts, shapes, strict=True)], np.int64)
    v, locations, weights = (np.require(x, real, ["C", "A"]) for x in (v, locations, weights))
    (B, S, heads, D), T, points = v.shape, weights.shape[1], weights.shape[4]
    return Points(B, S, T, heads, D, len(shapes), points, table, v, locations, weights, 0.5)


def _work(call: Points, each: float, real: Any) -> int:
    rows = call.batch * call.queries * call.heads
    return ra.nanoseconds(rows * call.levels * call.points * (call.width + OVERHEAD), each, real)

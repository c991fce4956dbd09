"""Rotary positions in one pass: each row is read once and written once, with a table of cosines and sines.

Reference: ops/rotary.py. Parallel over the rows. Scratch: the table, (positions, R) numbers, which is kept for the next
call while positions are consecutive; with given positions, one number per row more.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Integers, Number, Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import ir
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, multiply_add
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass
from attnarray.numpy_arrays import PLAIN

EACH = 0.15  # nanoseconds for each number
KEPT = 2**23  # bytes of a table that is kept


def rotate(x: Any, positions: Any, offset: int, rotation: Any, direction: float) -> Any:
    """See the reference."""
    real, dims, axis = ra.compute_dtype(x), rotation.dims, rotation.axis
    rows, out = ra.rows_along(x, x.ndim - 1, real), ra.results_along(x, x.ndim - 1, real)
    table, first, table_rows = _table(x.shape, positions, offset, rotation, real)
    call = Rotation(
        dims, rows.address, rows.step, out.address, out.step, table, first, max(x.shape[axis], 1),
        x.shape[-2] if axis == -3 else 1, table_rows, direction,
    )  # fmt: skip
    kernel = rotate_pairs if rotation.interleaved else rotate_halves
    split_rows(kernel, len(rows.array), ra.nanoseconds(x.size, EACH, real), *pack(call, real))
    out.array[:, dims:] = rows.array[:, dims:]
    return ra.reshape_like(x, x.ndim - 1, out)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    for kernel in (rotate_halves, rotate_pairs):
        kernel(0, 0, *pack(empty_call(Rotation, period=1, inner=1), dtype))


class Rotation(NamedTuple):
    """A call: row n of x is at row first + (n / inner) % period of the table, or at positions[n]."""

    dims: int
    x: Numbers
    x_step: int
    out: Numbers
    out_step: int
    table: Numbers
    first: int
    period: int
    inner: int
    positions: Integers  # null where they are consecutive
    direction: Number


def _table(
    shape: tuple[int, ...], positions: Any, offset: int, rotation: Any, real: Any
) -> tuple[Any, int, Any]:  # fmt: skip
    """A table, the row of it for the first row of x, and that of each row of x unless they are consecutive."""
    if positions is None:
        past = offset + shape[rotation.axis]
        whole = 2 ** max(past - 1, 0).bit_length()  # so that one table serves a growing sequence
        if offset < 0 or whole * rotation.dims * real.itemsize > KEPT:
            return _cos_sin_table(np.arange(offset, past), rotation, real), 0, None
        return _kept(whole, rotation._replace(axis=-2), real), offset, None
    if type(positions) not in PLAIN and not isinstance(positions, np.generic):
        raise Declined(f"positions in {type(positions).__name__}: plain NumPy arrays only")
    if rotation.sections is not None:  # a row of coordinates for each position
        rows, axes = positions.reshape(-1, positions.shape[-1]), positions.shape[:-1]
    else:
        rows, axes = positions.ravel(), positions.shape
    numbers = np.arange(len(rows)).reshape(axes)
    numbers = numbers if rotation.axis == -2 else numbers[..., None]
    return _cos_sin_table(rows, rotation, real), 0, np.broadcast_to(numbers, shape[:-1]).flatten()


@functools.lru_cache(maxsize=4)
def _kept(count: int, rotation: Any, real: Any) -> Any:
    return _cos_sin_table(np.arange(count), rotation, real)


def _cos_sin_table(positions: Any, rotation: Any, real: Any) -> Any:
    """The cosines and then the sines of each position, (positions, R), or in pairs cos cos and -sin sin, (.., 2 R)."""
    positions = positions[:, None] if positions.ndim == 1 else np.take(positions, rotation.coordinates, axis=1)
    angles = positions.astype(np.float64) * np.array(rotation.frequencies)
    cos, sin = rotation.magnitude * np.cos(angles), rotation.magnitude * np.sin(angles)
    if rotation.interleaved:
        cos, sin = np.repeat(cos, 2, axis=1), np.stack([-sin, sin], axis=-1).reshape(len(angles), rotation.dims)
    return np.concatenate([cos, sin], axis=1, dtype=real)


@row_pass(vectors=2)
def halves(a: Row, b: Row, cos: Row, sin: Row, y: Row, z: Row, direction: Scalar) -> dict[str, Lanes]:
    directed = sin * direction
    return {"y": a * cos - b * directed, "z": multiply_add(b, cos, a * directed)}


@row_pass(vectors=2)
def pairs(x: Row, cos: Row, sin: Row, y: Row, direction: Scalar) -> dict[str, Lanes]:
    return {"y": multiply_add(x, cos, swapped(x) * (sin * direction))}


def swapped(x: Lanes) -> Lanes:
    """Each even lane swapped with the next one."""
    order = ir.Constant(ir.VectorType(ir.IntType(32), x.value.type.count), [n ^ 1 for n in range(x.value.type.count)])
    return Lanes(x.builder, x.builder.shuffle_vector(x.value, x.value, order))


def next_row(at: int, within: int, period: int, inner: int) -> tuple[int, int]:
    """Advance the position after every `inner` rows: with counters, since divisions take as long as a row."""
    if within + 1 < inner:
        return at, within + 1
    return (at + 1 if at + 1 < period else 0), 0


def rotate_halves(start: int, stop: int, integers: Any, numbers: Any) -> None:
    """The rows [start, stop)."""
    c = unpack(Rotation, integers, numbers)
    half, in_order = c.dims // 2, is_null(c.positions)
    at, within = start // c.inner % c.period, start % c.inner
    for n in range(start, stop):
        row = c.first + at if in_order else c.positions[n]
        at, within = next_row(at, within, c.period, c.inner)
        cos = ahead(c.table, row * c.dims)
        a, y = ahead(c.x, n * c.x_step), ahead(c.out, n * c.out_step)
        halves(half, a, ahead(a, half), cos, ahead(cos, half), y, ahead(y, half), c.direction)


def rotate_pairs(start: int, stop: int, integers: Any, numbers: Any) -> None:
    """See `rotate_halves`; rows of the table are twice as long."""
    c = unpack(Rotation, integers, numbers)
    at, within, in_order = start // c.inner % c.period, start % c.inner, is_null(c.positions)
    for n in range(start, stop):
        row = c.first + at if in_order else c.positions[n]
        at, within = next_row(at, within, c.period, c.inner)
        cos = ahead(c.table, 2 * row * c.dims)
        a, y = ahead(c.x, n * c.x_step), ahead(c.out, n * c.out_step)
        pairs(c.dims, a, cos, ahead(cos, c.dims), y, c.direction)


next_row = jit(next_row, inner=True)
rotate_halves, rotate_pairs = jit(rotate_halves, rotate_pairs, fastmath=EXACT)

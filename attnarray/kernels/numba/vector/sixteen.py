"""16-bit numbers in memory, float32 in registers: widened where they are loaded, rounded once where they are stored.

Numba has no type for them on a CPU. Compiled code has bfloat16 numbers as uint16 and float16 numbers as int16, so that
a pointer says how to read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import ir, types
from attnarray.kernels.numba.vector.emit import load
from attnarray.kernels.numba.vector.lanes import Lanes, cpu_features, in_type, item_bytes, where
from attnarray.kernels.numba.vector.memory import address_of, pointer_at
from attnarray.kernels.numba.vector.rows import Row, row_pass

NATIVE, BFLOAT16, FLOAT16 = range(3)  # how the numbers of an array are stored: in the dtype of the call, or in 16 bits
BFLOAT16_BITS, FLOAT16_BITS = np.uint16(0), np.int16(0)  # for `pointer_at`
SIXTEEN_BITS = 2  # bytes


def storage_code(dtype: Any) -> int:
    """How an array of this dtype is stored."""
    return NATIVE if dtype.itemsize != SIXTEEN_BITS else FLOAT16 if dtype == np.float16 else BFLOAT16


def from_bfloat16(x: Lanes) -> Lanes:
    """The upper half of a float32."""
    wide = x.builder.zext(x.value, ir.VectorType(ir.IntType(32), x.value.type.count))
    return (Lanes(x.builder, wide) << 16).bits_as(ir.FloatType())


def to_bfloat16(x: Lanes) -> Lanes:
    """The nearest one, of two the even one; NaN stays NaN."""
    x = in_type(x, _single(x))
    bits = x.bits_as(ir.IntType(32))
    upper = bits.shifted_right(16)
    rounded = (bits + (upper & bits.constant(1)) + 0x7FFF).shifted_right(16)
    return _halves(where(x.equals(x), rounded, upper | upper.constant(0x40)))


def from_float16(x: Lanes) -> Lanes:
    """Exact. Without an instruction for it: the bits as those of a float32 with this exponent, times 2^112."""
    builder, count = x.builder, x.value.type.count
    if has_float16():
        half = builder.bitcast(x.value, ir.VectorType(ir.HalfType(), count))
        return Lanes(builder, builder.fpext(half, ir.VectorType(ir.FloatType(), count)))
    wide = Lanes(builder, builder.zext(x.value, ir.VectorType(ir.IntType(32), count)))
    size = (wide & wide.constant(0x7FFF)) << 13
    number = (size.bits_as(ir.FloatType()) * 2.0**112).bits_as(ir.IntType(32))
    number = where(size < 0x7C00 << 13, number, size | size.constant(0x7F800000))  # infinities and NaN
    return (number | (wide & wide.constant(0x8000)) << 16).bits_as(ir.FloatType())


def to_float16(x: Lanes) -> Lanes:
    """The nearest one, of two the even one; NaN stays NaN.

    Without an instruction for it: numbers below 2^-14 are rounded by the addition of 1/2, whose last bit is 2^-24.
    """
    builder, x = x.builder, in_type(x, _single(x))
    if has_float16():
        half = builder.fptrunc(x.value, ir.VectorType(ir.HalfType(), x.value.type.count))
        return Lanes(builder, builder.bitcast(half, ir.VectorType(ir.IntType(16), x.value.type.count)))
    bits = x.bits_as(ir.IntType(32))
    size = bits & bits.constant(0x7FFFFFFF)
    odd = size.shifted_right(13) & bits.constant(1)
    normal = (size + odd + (0xFFF - (112 << 23))).shifted_right(13)
    small = (size.bits_as(ir.FloatType()) + 0.5).bits_as(ir.IntType(32)) - 0x3F000000
    large = where(size > 0x7F800000, bits.constant(0x7E00), 0x7C00)
    found = where(size < 0x38800000, small, where(size < 0x47800000, normal, large))
    return _halves(found | (bits.shifted_right(16) & bits.constant(0x8000)))


def has_float16() -> bool:
    """Whether the CPU that is compiled for converts float16 numbers."""
    return not cpu_features().isdisjoint({"f16c", "neon", "fp-armv8"})


def _single(x: Lanes) -> Lanes:
    return Lanes(x.builder, ir.Constant(ir.VectorType(ir.FloatType(), x.value.type.count), ir.Undefined))


def _halves(x: Lanes) -> Lanes:
    return Lanes(x.builder, x.builder.trunc(x.value, ir.VectorType(ir.IntType(16), x.value.type.count)))


def load_wide(builder: ir.IRBuilder, pointer: ir.Value, vector: ir.VectorType, number: Any) -> ir.Value:
    """Load such a vector from numbers of that type of Numba, which may have 16 bits."""
    if not isinstance(number, types.Integer):
        return load(builder, pointer, vector)
    bits = Lanes(builder, load(builder, pointer, ir.VectorType(ir.IntType(16), vector.count)))
    wide = from_float16(bits) if number.signed else from_bfloat16(bits)
    return in_type(wide, Lanes(builder, ir.Constant(vector, ir.Undefined))).value


@row_pass(vectors=1)
def widen_bfloat16(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": in_type(from_bfloat16(x), out)}


@row_pass(vectors=1)
def widen_float16(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": in_type(from_float16(x), out)}


@row_pass(vectors=1)
def narrow_to_bfloat16(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": to_bfloat16(x)}


@row_pass(vectors=1)
def narrow_to_float16(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": to_float16(x)}


def widen_row(storage: int, count: int, address: int, stride: int, row: Any) -> None:
    """`count` 16-bit numbers, `stride` bytes apart, as a row of numbers."""
    if stride != SIXTEEN_BITS:
        start = address_of(row) + (item_bytes(row) - SIXTEEN_BITS) * count  # the end of the row, read before written
        bits = pointer_at(BFLOAT16_BITS, start)
        for n in range(count):
            bits[n] = pointer_at(BFLOAT16_BITS, address + n * stride)[0]
        address = start
    if storage == FLOAT16:
        widen_float16(count, pointer_at(FLOAT16_BITS, address), row)
    else:
        widen_bfloat16(count, pointer_at(BFLOAT16_BITS, address), row)


def narrow_row(storage: int, count: int, row: Any, address: int, stride: int) -> None:
    """A row of numbers as 16-bit numbers, `stride` bytes apart; the row may be overwritten."""
    start = address if stride == SIXTEEN_BITS else address_of(row)
    if storage == FLOAT16:
        narrow_to_float16(count, row, pointer_at(FLOAT16_BITS, start))
    else:
        narrow_to_bfloat16(count, row, pointer_at(BFLOAT16_BITS, start))
    if start != address:
        bits = pointer_at(BFLOAT16_BITS, start)
        for n in range(count):
            pointer_at(BFLOAT16_BITS, address + n * stride)[0] = bits[n]


widen_row, narrow_row = jit(widen_row, narrow_row, fastmath=EXACT, inner=True)

"""Explicit vectors for compiled loops: written as arithmetic in Python, emitted as vector instructions of LLVM.

Whether LLVM's own vectorizer handles a loop changes from release to release; code written with `Lanes` always becomes
vector code.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from attnarray.kernels.numba.runtime.lazy import ir, overload
from attnarray.kernels.numba.runtime.library import load

# ln(2)^k / k!, the Taylor series of 2^r. At |r| = 1/2 the first omitted term is 2e-17 relative to it.
TAYLOR = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))

# 2^r for |r| <= 1/2: near-minimax in float32 (relative error 2e-9), Taylor series in float64 (2e-17). Both are 1 at 0.
EXP2_FLOAT32 = Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(domain=[-1, 1], kind=Polynomial).coef
EXP2_FLOAT64 = TAYLOR
LOG2_E = math.log2(math.e)
LOG2_E_LOW = 2.0355273740931033e-17  # log2(e) less its float64
EXPM1 = [1.0 / math.factorial(k + 1) for k in range(20)]  # (e^y - 1) / y


def cpu_features() -> set[str]:
    """The vector features that Numba compiles for: those of the host, unless NUMBA_CPU_FEATURES says otherwise."""
    config = importlib.import_module("numba").config
    if config.CPU_NAME == "generic" or config.CPU_FEATURES is not None:
        return {name[1:] for name in (config.CPU_FEATURES or "").split(",") if name.startswith("+")}
    found = importlib.import_module("llvmlite.binding").get_host_cpu_features()
    return {name for name, there in found.items() if there}


def tile_shape(features: set[str], itemsize: int) -> tuple[int, int]:
    """Lanes W of a panel and rows M of a register tile: W * M accumulators fill the registers, with room for operands.

    The bytes of a panel's row and M: 2 x 64 and 12 with AVX-512 (32 registers), 4 x 16 and 6 with NEON (32 registers),
    2 x 32 and 6 with AVX2 (16 registers), else 2 x 16 and 6 (16 registers of SSE2).
    """
    row, rows = (
        (128, 12) if "avx512f" in features
        else (64, 6) if "avx2" in features or "neon" in features
        else (32, 6)
    )  # fmt: skip
    return row // itemsize, rows


@functools.cache
def tile_size(bits: int) -> tuple[int, int]:
    """W and M for numbers of so many bits: those that the precompiled kernels have, or for what Numba compiles."""
    precompiled, _ = load()
    return tile_shape(cpu_features(), bits // 8) if precompiled is None else precompiled.tiles[bits]


def lanes(array: Any) -> int:
    """W for the dtype of `array`, a constant in compiled code."""
    return tile_size(array.dtype.itemsize * 8)[0]


def tile_rows(array: Any) -> int:
    """M for the dtype of `array`, a constant in compiled code."""
    return tile_size(array.dtype.itemsize * 8)[1]


def item_bytes(array: Any) -> int:
    """The size of a number, a constant in compiled code."""
    return int(array.dtype.itemsize)


def constant(value: int) -> Callable[[Any], int]:
    """The implementation that `overload` expects of a function that is constant for each type."""
    return lambda array: value


overload(lanes)(lambda array: constant(tile_size(array.dtype.bitwidth)[0]))
overload(item_bytes)(lambda array: constant(array.dtype.bitwidth // 8))
overload(tile_rows)(lambda array: constant(tile_size(array.dtype.bitwidth)[1]))


class Lanes:
    """A vector (or a mask of lanes) in LLVM code; Python numbers become vectors of equal lanes."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def is_float(self) -> bool:
        return isinstance(self.value.type.element, ir.FloatType | ir.DoubleType)

    @property
    def is_single(self) -> bool:
        return isinstance(self.value.type.element, ir.FloatType)

    @property
    def integer(self) -> ir.IntType:
        """The integer type of the width of these lanes."""
        return ir.IntType(32 if self.is_single else 64)

    def constant(self, number: float) -> Lanes:
        """All lanes equal to `number`, in the type of this vector."""
        if isinstance(self.value.type.element, ir.FloatType):
            number = float(np.float32(number))
        return Lanes(self.builder, ir.Constant(self.value.type, [number] * self.value.type.count))

    def _lift(self, other: Lanes | float) -> ir.Value:
        return other.value if isinstance(other, Lanes) else self.constant(other).value

    def _emit(self, floating: str, integer: str, other: Lanes | float) -> Lanes:
        operation = getattr(self.builder, floating if self.is_float else integer)
        return Lanes(self.builder, operation(self.value, self._lift(other)))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._emit("fadd", "add", other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._emit("fsub", "sub", other)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._emit("fmul", "mul", other)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._emit("fdiv", "sdiv", other)

    def __lshift__(self, bits: int) -> Lanes:
        return self._emit("", "shl", bits)

    def __rshift__(self, bits: int) -> Lanes:
        return self._emit("", "ashr", bits)

    def shifted_right(self, bits: int) -> Lanes:
        """Integers shifted without regard to their sign."""
        return Lanes(self.builder, self.builder.lshr(self.value, self._lift(bits)))

    def as_float(self, like: Lanes) -> Lanes:
        """Integers as floating numbers of the type of `like`."""
        return Lanes(self.builder, self.builder.sitofp(self.value, like.value.type))

    def __and__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.or_(self.value, other.value))

    def __lt__(self, other: Lanes | float) -> Lanes:
        return self._compare("<", other)

    def __gt__(self, other: Lanes | float) -> Lanes:
        return self._compare(">", other)

    def __ge__(self, other: Lanes | float) -> Lanes:
        return self._compare(">=", other)

    def equals(self, other: Lanes | float) -> Lanes:
        return self._compare("==", other)

    def _compare(self, sign: str, other: Lanes | float) -> Lanes:
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return Lanes(self.builder, compare(sign, self.value, self._lift(other)))

    def __xor__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.xor(self.value, other.value))

    def times_wide(self, factor: int) -> tuple[Lanes, Lanes]:
        """The high and low words of the unsigned product of 32-bit lanes with a constant.

        CPUs multiply every other lane to a product of twice the width: first the even ones, then the odd ones.
        """
        count = self.value.type.count
        wide = ir.VectorType(ir.IntType(64), count // 2)
        word, shift, by = (ir.Constant(wide, [number] * wide.count) for number in (2**32 - 1, 32, factor))
        pairs = self.builder.bitcast(self.value, wide)
        even = self.builder.mul(self.builder.and_(pairs, word), by)
        odd = self.builder.mul(self.builder.lshr(pairs, shift), by)
        words = [self.builder.bitcast(product, self.value.type) for product in (even, odd)]
        high, low = ([n // 2 * 2 + half + n % 2 * count for n in range(count)] for half in (1, 0))
        orders = (ir.Constant(ir.VectorType(ir.IntType(32), count), order) for order in (high, low))
        first, second = (Lanes(self.builder, self.builder.shuffle_vector(*words, order)) for order in orders)
        return first, second

    def at_least_unsigned(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.icmp_unsigned(">=", self.value, other.value))

    def bits_as(self, element: ir.Type) -> Lanes:
        """The same bits, read as lanes of another type of equal width."""
        vector = ir.VectorType(element, self.value.type.count)
        return Lanes(self.builder, self.builder.bitcast(self.value, vector))


def where(condition: Lanes, chosen: Lanes | float, other: Lanes | float) -> Lanes:
    like = chosen if isinstance(chosen, Lanes) else other
    assert isinstance(like, Lanes)
    return Lanes(like.builder, like.builder.select(condition.value, like._lift(chosen), like._lift(other)))


def in_type(x: Lanes, like: Lanes) -> Lanes:
    """The same numbers in the type of `like`, wider or narrower."""
    if x.value.type == like.value.type:
        return x
    return Lanes(x.builder, (x.builder.fpext if x.is_single else x.builder.fptrunc)(x.value, like.value.type))


def maximum(a: Lanes, b: Lanes) -> Lanes:
    """The larger one; b where either is NaN."""
    return where(a > b, a, b)


def absolute(x: Lanes) -> Lanes:
    """|x|, by the sign bit alone; NaN stays NaN."""
    bits = x.bits_as(x.integer)
    return (bits & bits.constant(2 ** (x.integer.width - 1) - 1)).bits_as(x.value.type.element)


def sqrt(x: Lanes) -> Lanes:
    """The square root; NaN for negative numbers."""
    vector = x.value.type
    name = f"llvm.sqrt.v{vector.count}f{x.integer.width}"
    root = x.builder.module.globals.get(name)
    if root is None:
        root = ir.Function(x.builder.module, ir.FunctionType(vector, [vector]), name)
    return Lanes(x.builder, x.builder.call(root, [x.value]))


def multiply_add(a: Lanes, b: Lanes, c: Lanes | float) -> Lanes:
    """a b + c, fused where the CPU can."""
    vector = a.value.type
    name = f"llvm.fmuladd.v{vector.count}f{a.integer.width}"
    fused = a.builder.module.globals.get(name)
    if fused is None:
        fused = ir.Function(a.builder.module, ir.FunctionType(vector, [vector] * 3), name)
    return Lanes(a.builder, a.builder.call(fused, [a.value, b.value, a._lift(c)]))


def exp(x: Lanes) -> Lanes:
    """e^x for x up to 87 (709 in float64); 0 below `least_exponent`. NaN stays NaN."""
    least = least_exponent(x)
    return exp_in_range(where(x < least, least, x))


def least_exponent(x: Lanes) -> float:
    """A number whose exponential is 0: that of a number less than it would wrap around."""
    return -((127 if x.is_single else 1023) + 0.25) / LOG2_E  # 2^-127 has the bits of 0


def exp_in_range(x: Lanes) -> Lanes:
    """`exp` of numbers from `least_exponent` on, as 2^n 2^r with n = round(x log2(e)).

    Adding 1.5 * 2^(mantissa bits) leaves n in the low bits of the sum, which are shifted into the exponent.
    """
    mantissa, bias, coefficients = (23, 127, EXP2_FLOAT32) if x.is_single else (52, 1023, EXP2_FLOAT64)
    high = float(np.float32(LOG2_E)) if x.is_single else LOG2_E
    low = LOG2_E - high if x.is_single else LOG2_E_LOW
    magic = 1.5 * 2.0**mantissa
    shifted = multiply_add(x, x.constant(high), magic)
    r = multiply_add(x, x.constant(low), multiply_add(x, x.constant(high), x.constant(magic) - shifted))
    power = polynomial(r, coefficients)
    exponent = (shifted.bits_as(x.integer) << mantissa) + (bias << mantissa)
    return power * exponent.bits_as(x.value.type.element)


def tanh(x: Lanes) -> tuple[Lanes, Lanes]:
    """tanh(x) and its derivative, from e = e^(-2 |x|): (1 - e) / (1 + e) and 4 e / (1 + e)^2.

    Where |x| is small, e - 1 is computed by its series, to avoid cancellation.
    """
    y = where(x < 0.0, x, x * -1.0) * 2.0
    e = exp(y)
    less = where(y > -1.1, y * polynomial(y, EXPM1[: 12 if x.is_single else 20]), e - 1.0)
    more = e + 1.0
    size = less / more
    return where(x < 0.0, size, size * -1.0), e * 4.0 / (more * more)


def log(x: Lanes) -> Lanes:
    """log(x) for normal x > 0: log(2^n m) = n log(2) + 2 artanh((m - 1) / (m + 1)) with m around 1.

    -inf for 0, NaN for NaN.
    """
    mantissa = 23 if x.is_single else 52
    half = x.constant(math.sqrt(0.5)).bits_as(x.integer)
    n = (x.bits_as(x.integer) - half) >> mantissa  # so that m lies between sqrt(1/2) and sqrt(2)
    m = (x.bits_as(x.integer) - (n << mantissa)).bits_as(x.value.type.element)
    s = (m - 1.0) / (m + 1.0)
    series = s * polynomial(s * s, [2.0 / (2 * k + 1) for k in range(6 if x.is_single else 12)])
    result = multiply_add(n.as_float(x), x.constant(math.log(2.0)), series)
    return where(x > 0.0, result, where(x.equals(0.0), -math.inf, x))


def polynomial(x: Lanes, coefficients: Sequence[float] | np.ndarray) -> Lanes:
    """sum_k c_k x^k by Horner's rule."""
    total = x.constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = multiply_add(total, x, coefficient)
    return total

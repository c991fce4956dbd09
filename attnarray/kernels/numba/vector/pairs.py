"""Products of bfloat16 matrices with float32 sums, by the instructions of AVX512-BF16 where the CPU has them.

    C[m, w] (+)= factor sum_k A[m, 2k] B[2k, w] + A[m, 2k + 1] B[2k + 1, w]

Two numbers that follow each other along the sum are one 32-bit *word*, the first in its lower half: so matrices of
words are packed, broadcast and transposed as those of float32, with half of the steps, and pointers to words are
pointers to float32. One instruction multiplies and adds twice as many numbers as one of float32; numbers below the
normal ones count as 0 in it.

The instructions are inline assembly, as LLVM would refuse its own for the level x86-64-v4, which they are no part of:
whoever calls asks `available` first. Where 512-bit vectors are not compiled, ordinary products do the same, slower.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.runtime.library import load
from attnarray.kernels.numba.vector.emit import i64, loop, store
from attnarray.kernels.numba.vector.emit import load as load_vector
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, multiply_add, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import address_of, ahead, pointer_at
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import LONGEST, Operand, blocked_tile_code, tile_code
from attnarray.kernels.numba.vector.rows import Row, row_pass
from attnarray.kernels.numba.vector.sixteen import BFLOAT16_BITS, to_bfloat16

REGISTER = 16  # words of a 512-bit register
EXPONENT = np.uint16(0x7F80)  # its bits in a bfloat16; all are set in NaN and infinities


@functools.cache
def available() -> bool:
    """Whether this CPU has the instructions, and the kernels use them."""
    if not has_registers():
        return False
    precompiled, _ = load()
    if precompiled is not None:
        return precompiled.multiplies_bfloat16
    return bool(importlib.import_module("llvmlite.binding").get_host_cpu_features().get("avx512bf16"))


def has_registers() -> bool:
    """Whether 512-bit vectors are compiled."""
    return tile_size(32)[0] == 2 * REGISTER


def add_pair_products(a: Lanes, b: Lanes, total: Lanes) -> Lanes:
    """total + a_0 b_0 + a_1 b_1 for the pairs of the words a and b."""
    if has_registers():
        return _by_register(a.builder, "vdpbf16ps $2, $1, $0", "=v,v,v,0", a, b, total)
    (a_low, a_high), (b_low, b_high) = _halves(a), _halves(b)
    return multiply_add(a_low, b_low, multiply_add(a_high, b_high, total))


def round_to_words(low: Lanes, high: Lanes) -> Lanes:
    """The float32 numbers of a lane, rounded to bfloat16, as one word."""
    builder, count = low.builder, low.value.type.count
    if not has_registers():
        return (_widened(to_bfloat16(low)) | _widened(to_bfloat16(high)) << 16).bits_as(ir.FloatType())
    rounded = _by_register(builder, "vcvtne2ps2bf16 $2, $1, $0", "=v,v,v", high, low)  # all low ones, then all high
    halves = builder.bitcast(rounded.value, ir.VectorType(ir.IntType(16), 2 * count))
    order = [
        first + half * REGISTER + n
        for first in range(0, 2 * count, 2 * REGISTER) for n in range(REGISTER) for half in (0, 1)
    ]  # fmt: skip
    nothing = ir.Constant(halves.type, ir.Undefined)
    words = builder.shuffle_vector(halves, nothing, ir.Constant(_words(2 * count), order))
    return Lanes(builder, builder.bitcast(words, low.value.type))


def round_row(row: Lanes) -> Lanes:
    """Consecutive float32 numbers, rounded to bfloat16: half as many words."""
    builder, count = row.builder, row.value.type.count
    if not has_registers():
        words = ir.VectorType(ir.FloatType(), count // 2)
        return Lanes(builder, builder.bitcast(to_bfloat16(row).value, words))
    low, high = (_part(row, first) for first in (0, REGISTER))
    return _by_register(builder, "vcvtne2ps2bf16 $2, $1, $0", "=v,v,v", high, low)


def _by_register(builder: ir.IRBuilder, code: str, constraints: str, *operands: Lanes) -> Lanes:
    """An instruction on vectors of float32 lanes, register by register."""
    register = ir.VectorType(ir.FloatType(), REGISTER)
    instruction = ir.InlineAsm(ir.FunctionType(register, [register] * len(operands)), code, constraints)
    results = [
        builder.call(instruction, [_part(x, first).value for x in operands])
        for first in range(0, operands[0].value.type.count, REGISTER)
    ]
    while len(results) > 1:
        count = 2 * results[0].type.count
        order = ir.Constant(_words(count), list(range(count)))
        results = [builder.shuffle_vector(x, y, order) for x, y in zip(results[::2], results[1::2], strict=True)]
    return Lanes(builder, results[0])


def _part(x: Lanes, first: int) -> Lanes:
    """One register of a vector."""
    if x.value.type.count == REGISTER:
        return x
    order = ir.Constant(_words(REGISTER), list(range(first, first + REGISTER)))
    return Lanes(x.builder, x.builder.shuffle_vector(x.value, ir.Constant(x.value.type, ir.Undefined), order))


def _words(count: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(32), count)


def _halves(x: Lanes) -> tuple[Lanes, Lanes]:
    """Both numbers of each word, as float32."""
    bits = x.bits_as(ir.IntType(32))
    return (bits << 16).bits_as(ir.FloatType()), (bits & bits.constant(-(2**16))).bits_as(ir.FloatType())


@intrinsic
def tile_pair_product(
    _context: Any, rows: Any, depth: Any, a: Any, b: Any, c: Any, accumulate: Any, factor: Any
) -> Any:  # fmt: skip
    """`tile_product` of `depth` words, times `factor`."""
    signature = types.void(types.intp, types.intp, a, b, c, types.boolean, types.float32)
    return signature, _or_nothing(c, tile_code(c, 0, add_pair_products))


@intrinsic
def blocked_pair_product(
    _context: Any, columns: Any, blocks: Any, depth: Any, a: Any, a_block: Any, b: Any, b_block: Any, c: Any
) -> Any:
    """`blocked_tile_product` of words."""
    signature = types.void(types.intp, types.intp, types.intp, a, types.intp, b, types.intp, c)
    return signature, _or_nothing(c, blocked_tile_code(c, add_pair_products))


def _or_nothing(c: Any, emit: Any) -> Any:
    """No code for sums in float64: there are no such calls."""
    kind = next(iter(c)) if isinstance(c, types.BaseTuple) else c
    return emit if kind.dtype == types.float32 else lambda context, *_: context.get_dummy_value()


def packed_pair_product(
    rows: int, depth: int, stride: int, a: Any, b: Any, c: Any, accumulate: bool, factor: Any
) -> None:  # fmt: skip
    """C (rows, W) (+)= factor A B for words A (rows, depth) and B (depth, W): `packed_product` of words."""
    tile, width = tile_rows(c), lanes(c)
    for k in range(0, max(depth, 1), LONGEST):
        steps, adds = min(depth - k, LONGEST), accumulate or k > 0
        for row in range(0, rows, tile):
            some = Operand(ahead(a, row // tile * stride + k * tile), 1, tile)
            total = Operand(ahead(c, row * width), width, 0)
            tile_pair_product(rows - row, steps, some, Operand(ahead(b, k * width), 0, width), total, adds, factor)


def lane_pair_product(blocks: int, stride: int, panels: Any, rows: Any, columns: int, total: Any) -> None:
    """`lane_product` of words: panels (M, W / 2) and rows (blocks W / 2, columns)."""
    width, step = lanes(total), whole_lanes(columns, total)
    words = width // 2
    for d in range(0, columns, width):
        a, b, c = Operand(panels, words, 1), Operand(ahead(rows, d), 0, step), Operand(ahead(total, d), step, 0)
        blocked_pair_product(columns - d, blocks, words, a, stride, b, words * step, c)


@intrinsic
def pair_rows(_context: Any, first: Any, past: Any, panel: Any, words: Any) -> Any:
    """words[k, w] = the rows 2k and 2k + 1 of a panel, rounded to bfloat16, for k in [first, past)."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        first, past, source, target = arguments
        vector = _row(context, panel)

        def pair(k: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            row = builder.gep(source, [builder.mul(k, i64(2 * vector.count))])
            both = [Lanes(builder, load_vector(builder, builder.gep(row, [i64(n)]), vector)) for n in (0, vector.count)]
            word = builder.gep(target, [builder.mul(k, i64(vector.count))])
            store(builder, round_to_words(*both).value, word)
            return []

        loop(builder, first, past, [], pair)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, panel, words), _or_nothing(panel, emit)


@intrinsic
def round_rows(_context: Any, first: Any, past: Any, panel: Any, words: Any) -> Any:
    """words[j, w] = the numbers 2w and 2w + 1 of row j of a panel, rounded, for j in [first, past); may be in place."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        first, past, source, target = arguments
        vector = _row(context, panel)

        def each(j: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            row = Lanes(builder, load_vector(builder, builder.gep(source, [builder.mul(j, i64(vector.count))]), vector))
            store(builder, round_row(row).value, builder.gep(target, [builder.mul(j, i64(vector.count // 2))]))
            return []

        loop(builder, first, past, [], each)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, panel, words), _or_nothing(panel, emit)


def _row(context: Any, panel: Any) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(panel.dtype), tile_size(panel.dtype.bitwidth)[0])


@row_pass(vectors=1)
def interleave(low: Row, high: Row, words: Row) -> dict[str, Lanes]:
    """Words of the bfloat16 numbers of two rows."""
    return {"words": (_widened(low) | _widened(high) << 16).bits_as(ir.FloatType())}


@row_pass(vectors=1)
def interleave_zeros(low: Row, words: Row) -> dict[str, Lanes]:
    """The same where there is no second row."""
    return {"words": _widened(low).bits_as(ir.FloatType())}


def _widened(x: Lanes) -> Lanes:
    return Lanes(x.builder, x.builder.zext(x.value, _words(x.value.type.count)))


def remove_nonfinite_words(words: Any, count: int) -> bool:
    """`remove_nonfinite` for words: replace NaN and infinities by 0; return whether there were any."""
    bits, found = pointer_at(BFLOAT16_BITS, address_of(words)), False
    for n in range(2 * count):
        found |= (bits[n] & EXPONENT) == EXPONENT
    if found:
        for n in range(2 * count):
            bits[n] = BFLOAT16_BITS if (bits[n] & EXPONENT) == EXPONENT else bits[n]
    return found


remove_nonfinite_words = jit(remove_nonfinite_words, inner=True)
packed_pair_product, lane_pair_product = jit(packed_pair_product, lane_pair_product, fastmath=EXACT, inner=True)

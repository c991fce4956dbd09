"""Dropout of elements, forward and backward alike: the bits of the seed are drawn while the elements are in the cache.

Reference: ops/dropout.py, with the keep-mask of random.py. Parallel over chunks of elements. Scratch: one flag per
element of a chunk. A given mask is copied if it must be broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.conversion import converted
from attnarray.kernels.numba.vector.emit import i64, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, tile_size, where
from attnarray.kernels.numba.vector.memory import ahead, as_bytes, keep, pointer, pointer_at
from attnarray.kernels.numba.vector.philox import MULTIPLIERS, ROUNDS, WEYL
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass

WORD = 0xFFFFFFFF
FLAT_STREAM = WORD  # the last word of the counter, as in random.py
CHUNK = 2048  # elements whose flags are drawn at a time
DRAWN, GIVEN = 0.6, 0.25  # nanoseconds for each element


def drop(x: Any, p: float, seed: Any, mask: Any) -> Any:
    """See the reference."""
    real = ra.compute_dtype(x)
    given, out = ra.flat(x, real), np.empty(x.shape, real)
    factor = real.type(1.0 / (1.0 - p) if p < 1 else 0.0)
    addresses = address(given), address(out)
    if mask is not None:
        kept = np.ascontiguousarray(np.broadcast_to(mask, x.shape))
        split_rows(keep_given, x.size, ra.nanoseconds(x.size, GIVEN, real), *addresses, address(kept), factor)
    elif (limit := round(p * 2**32)) > WORD:
        out.fill(0.0)
    else:
        chunks, work = -(-x.size // CHUNK), ra.nanoseconds(x.size, DRAWN, real)
        split_rows(keep_drawn, chunks, work, x.size, *addresses, seed & WORD, seed >> 32, limit, factor)
    return converted(out, x.dtype)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    number = np.dtype(dtype).type(0)
    keep_drawn(0, 0, 0, 0, 0, 0, 0, 0, number)
    keep_given(0, 0, 0, 0, 0, number)


@intrinsic
def draw_flags(_context: Any, flags: Any, size: Any, block: Any, low: Any, high: Any, limit: Any) -> Any:
    """For `size` elements from a block of four on: -1 for each that is kept, 0 for one that is dropped.

    Whole vectors of flags are written.
    """

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        flags, size, block, low, high, limit = values
        longs, words = _vectors()
        count = longs.count
        numbers = Lanes(builder, ir.Constant(longs, list(range(count))))
        keys = [
            [Lanes(builder, splat(builder, builder.add(key, i64(n * step)), longs)) for n in range(ROUNDS)]
            for key, step in zip((low, high), WEYL, strict=True)
        ]
        least = splat(builder, builder.trunc(limit, words.element), ir.VectorType(words.element, 4 * count))

        def advance(step: ir.Value, _carried: list[ir.Value]) -> list[ir.Value]:
            first = builder.mul(step, i64(count))
            drawn = _words(numbers + Lanes(builder, splat(builder, builder.add(block, first), longs)), keys)
            kept = _in_order(drawn).at_least_unsigned(Lanes(builder, least)).value
            store(builder, builder.sext(kept, least.type), builder.gep(flags, [builder.mul(first, i64(4))]))
            return []

        steps = builder.sdiv(builder.add(size, i64(4 * count - 1)), i64(4 * count))
        loop(builder, i64(0), steps, [], advance)
        return context.get_dummy_value()

    return types.void(flags, *[types.intp] * 5), emit


def _vectors() -> tuple[ir.VectorType, ir.VectorType]:
    """Vectors of one block of four elements in a lane: of 64 bits, and twice as many of 32."""
    count, _ = tile_size(64)
    return ir.VectorType(ir.IntType(64), count), ir.VectorType(ir.IntType(32), 2 * count)


def _words(block: Lanes, keys: Sequence[Sequence[Lanes]]) -> list[Lanes]:
    """Philox as in `philox.py`, one word in the low half of each lane; the high halves are arbitrary."""

    def upper(product: Lanes) -> Lanes:
        return Lanes(product.builder, product.builder.lshr(product.value, product.constant(32).value))

    def times(word: Lanes, factor: int) -> Lanes:
        return (word & word.constant(WORD)) * factor

    words = [block, upper(block), block.constant(0), block.constant(FLAT_STREAM)]
    for low, high in zip(*keys, strict=True):
        first, second = times(words[0], MULTIPLIERS[0]), times(words[2], MULTIPLIERS[1])
        words = [upper(second) ^ words[1] ^ low, second, upper(first) ^ words[3] ^ high, first]
    return words


def _in_order(words: Sequence[Lanes]) -> Lanes:
    """The low halves of four vectors, block by block."""
    builder, (longs, halfwords) = words[0].builder, _vectors()
    count = longs.count
    halves = [builder.bitcast(word.value, halfwords) for word in words]
    numbers = range(0, 2 * count, 2)
    pairs = [
        _picked(builder, halves[n], halves[n + 1], [m + k for m in numbers for k in (0, 2 * count)]) for n in (0, 2)
    ]
    first, second = (builder.bitcast(pair, longs) for pair in pairs)
    blocks = _picked(builder, first, second, [m + k for m in range(count) for k in (0, count)])
    return Lanes(builder, builder.bitcast(blocks, ir.VectorType(halfwords.element, 4 * count)))


def _picked(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, order: list[int]) -> ir.Value:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


@row_pass(vectors=2)
def scale_drawn(x: Row, flags: Row, out: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"out": where(flags < 0, x * factor, 0.0)}


@row_pass(vectors=2)
def scale_given(x: Row, mask: Row, out: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"out": where(mask.equals(0), 0.0, x * factor)}


def keep_drawn(
    first: int, past: int, count: int, x: int, out: int, low: int, high: int, limit: int, factor: Any
) -> None:  # fmt: skip
    """`first` and `past` count chunks; words below `limit` drop their elements."""
    scratch = np.empty(CHUNK, np.int32)
    flags = pointer(scratch)
    for n in range(first, past):
        start = n * CHUNK
        size = min(CHUNK, count - start)
        draw_flags(flags, size, start // 4, low, high, limit)
        scale_drawn(size, ahead(pointer_at(factor, x), start), flags, ahead(pointer_at(factor, out), start), factor)
    keep(scratch)


def keep_given(first: int, past: int, x: int, out: int, mask: int, factor: Any) -> None:
    row, result = ahead(pointer_at(factor, x), first), ahead(pointer_at(factor, out), first)
    scale_given(past - first, row, as_bytes(pointer_at(factor, mask + first)), result, factor)


keep_drawn, keep_given = jit(keep_drawn, keep_given, fastmath=EXACT)

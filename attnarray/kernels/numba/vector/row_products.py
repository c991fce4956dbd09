"""Products of one query with many rows, vectors along the row: for decoding, where every key is read only once.

Rows of N contiguous numbers lie `stride` elements apart; N is a multiple of the lanes of a register (`row_lanes`),
which is half of W. Rows may have 16-bit numbers (`vector/sixteen.py`), which are widened in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, overload, types
from attnarray.kernels.numba.vector.emit import halved, i64, load, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, constant, multiply_add, tile_size
from attnarray.kernels.numba.vector.sixteen import load_wide
from attnarray.kernels.numba.vector.transpose import interleaved

AT_ONCE = 8  # independent sums, to hide the latency of additions
LONGEST = 256  # rows that are summed in registers before they are added to the total


def row_lanes(array: Any) -> int:
    """The lanes of one register, a constant in compiled code."""
    return tile_size(array.dtype.itemsize * 8)[0] // 2


overload(row_lanes)(lambda array: constant(tile_size(array.dtype.bitwidth)[0] // 2))


@intrinsic
def dot_rows(_context: Any, count: Any, n: Any, query: Any, rows: Any, stride: Any, dots: Any) -> Any:
    """dots[j] = query . rows[j] for j < count; `dots` has room for a multiple of 8."""
    signature = types.void(types.intp, types.intp, query, rows, types.intp, dots)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, n, query, starts_at, stride, out = arguments
        vector = _vector(context, dots)
        zero = ir.Constant(vector, [0.0] * vector.count)
        last, blocks = builder.sub(count, i64(1)), builder.sdiv(n, i64(vector.count))

        def some(group: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            first = builder.mul(group, i64(AT_ONCE))
            numbers = [builder.add(first, i64(m)) for m in range(AT_ONCE)]
            inside = [builder.select(builder.icmp_signed("<", j, count), j, last) for j in numbers]
            starts = [builder.gep(starts_at, [builder.mul(j, stride)]) for j in inside]

            def dot(start: ir.Value) -> ir.Value:
                def add(block: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    added = []
                    for m, total in enumerate(sums):
                        number = builder.add(builder.mul(block, i64(len(sums))), i64(m))
                        at = builder.mul(number, i64(vector.count))
                        q = Lanes(builder, load(builder, builder.gep(query, [at]), vector))
                        key = Lanes(builder, load_wide(builder, builder.gep(start, [at]), vector, rows.dtype))
                        added.append(multiply_add(key, q, Lanes(builder, total)).value)
                    return added

                four = loop(builder, i64(0), builder.sdiv(blocks, i64(4)), [zero] * 4, add)
                done = builder.mul(builder.sdiv(blocks, i64(4)), i64(4))
                rest = loop(builder, done, blocks, [four[0]], add)[0]
                return builder.fadd(builder.fadd(rest, four[1]), builder.fadd(four[2], four[3]))

            sums = [dot(start) for start in starts]  # row by row, as they lie in memory
            together = min(vector.count, AT_ONCE)
            for m in range(0, AT_ONCE, together):
                store(builder, _row_sums(builder, sums[m : m + together]), builder.gep(out, [numbers[m]]))
            return []

        loop(builder, i64(0), builder.sdiv(builder.add(last, i64(AT_ONCE)), i64(AT_ONCE)), [], some)
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def add_weighted_rows(_context: Any, count: Any, n: Any, weights: Any, rows: Any, stride: Any, total: Any) -> Any:
    """total += sum_j weights[j] rows[j] over j < count, in parts of `LONGEST` rows."""
    signature = types.void(types.intp, types.intp, weights, rows, types.intp, total)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, n, weights, starts_at, stride, out = arguments
        vector = _vector(context, total)

        def columns(vectors: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
            """The sums of some consecutive vectors."""

            def compute(block: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                at = builder.mul(block, i64(vectors * vector.count))
                offsets = [builder.add(at, i64(m * vector.count)) for m in range(vectors)]
                targets = [builder.gep(out, [offset]) for offset in offsets]
                zeros = [ir.Constant(vector, [0.0] * vector.count)] * vectors

                def add(j: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    weight = Lanes(builder, splat(builder, builder.load(builder.gep(weights, [j])), vector))
                    row = builder.gep(starts_at, [builder.mul(j, stride)])
                    numbers = [load_wide(builder, builder.gep(row, [at]), vector, rows.dtype) for at in offsets]
                    pairs = zip(numbers, sums, strict=True)
                    return [multiply_add(Lanes(builder, x), weight, Lanes(builder, t)).value for x, t in pairs]

                def add_some(part: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                    first = builder.mul(part, i64(LONGEST))
                    past = builder.add(first, i64(LONGEST))
                    past = builder.select(builder.icmp_signed("<", past, count), past, count)
                    for target, value in zip(targets, loop(builder, first, past, zeros, add), strict=True):
                        store(builder, builder.fadd(load(builder, target, vector), value), target)
                    return []

                parts = builder.sdiv(builder.add(count, i64(LONGEST - 1)), i64(LONGEST))
                loop(builder, i64(0), parts, [], add_some)
                return []

            return compute

        done, whole = i64(0), builder.sdiv(n, i64(vector.count))
        for vectors in (AT_ONCE, AT_ONCE // 2, 1):
            past = builder.sdiv(whole, i64(vectors))
            loop(builder, builder.sdiv(done, i64(vectors)), past, [], columns(vectors))
            done = builder.mul(past, i64(vectors))
        return context.get_dummy_value()

    return signature, emit


def _row_sums(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> ir.Value:
    """One number for each row, the sum over its lanes: pairs of rows are interleaved and added until one is left."""
    distance = 1
    while len(rows) > 1:
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [builder.fadd(*interleaved(builder, x, y, distance)) for x, y in pairs]
        distance *= 2
    return halved(builder, rows[0], distance, Lanes.__add__)


def _vector(context: Any, out: Any) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(out.dtype), tile_size(out.dtype.bitwidth)[0] // 2)

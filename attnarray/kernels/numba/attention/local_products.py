"""The outer product of the weights of a window with one row, added to the rows of the window.

Rows of N numbers lie `stride` elements apart; N is a multiple of the lanes of a register (`row_lanes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import i64, load, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, in_type, multiply_add, tile_size

AT_ONCE = 8  # vectors of the row that stay in registers


@intrinsic
def add_outer_product(_context: Any, count: Any, n: Any, weights: Any, row: Any, rows: Any, stride: Any) -> Any:
    """rows[j] += weights[j] row for j < count; `rows` may be in float64 where the others are in float32."""
    signature, element = types.void(types.intp, types.intp, weights, row, rows, types.intp), row.dtype

    rows_type = rows.dtype

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, n, weights, row, rows, stride = arguments
        vector = ir.VectorType(context.get_value_type(element), tile_size(element.bitwidth)[0] // 2)
        wide = ir.VectorType(context.get_value_type(rows_type), vector.count)

        def columns(vectors: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
            """Some consecutive vectors of all rows."""

            def compute(block: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                at = builder.mul(block, i64(vectors * vector.count))
                offsets = [builder.add(at, i64(m * vector.count)) for m in range(vectors)]
                numbers = [Lanes(builder, load(builder, builder.gep(row, [offset]), vector)) for offset in offsets]

                def add(j: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                    weight = Lanes(builder, splat(builder, builder.load(builder.gep(weights, [j])), vector))
                    start = builder.gep(rows, [builder.mul(j, stride)])
                    for number, offset in zip(numbers, offsets, strict=True):
                        target = builder.gep(start, [offset])
                        old = Lanes(builder, load(builder, target, wide))
                        product = multiply_add(in_type(number, old), in_type(weight, old), old)
                        store(builder, product.value, target)
                    return []

                loop(builder, i64(0), count, [], add)
                return []

            return compute

        whole = builder.sdiv(n, i64(AT_ONCE * vector.count))
        loop(builder, i64(0), whole, [], columns(AT_ONCE))
        done = builder.mul(whole, i64(AT_ONCE))
        loop(builder, done, builder.sdiv(n, i64(vector.count)), [], columns(1))
        return context.get_dummy_value()

    return signature, emit

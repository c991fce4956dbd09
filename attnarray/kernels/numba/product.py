"""The micro-kernel: a register tile of a matrix product, its accumulators held in vector registers throughout.

    C[m, w] (+)= sum_k A[m, k] B[k, w]        for M rows m and W lanes w

M and W are chosen so that the M * W accumulators fill the registers of the CPU (`tile_of` in lanes.py). Each step of k
loads one vector of B and spreads M numbers of A over the lanes, so that A may have any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attnarray.kernels.numba.lanes import TILES, Lanes, multiply_add
from attnarray.kernels.numba.panel import INDEX, load, loop, splat, store


@intrinsic
def tile_product(
    _context: Any, depth: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_row: Any, accumulate: Any
) -> Any:
    """C (+)= A B for one tile of M x W, at three pointers.

    `depth` is the number of steps k. The rows of A are `a_row` and its columns `a_step` elements apart, the rows of B
    `b_step` and those of C `c_row`. Without `accumulate`, C is written only.
    """
    integers = types.intp
    signature = types.void(integers, a, integers, integers, b, integers, c, integers, types.boolean)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        depth, a, a_row, a_step, b, b_step, c_start, c_row, accumulate = arguments
        vector, rows = _tile(context, c)
        c_rows = _rows(builder, c_start, c_row, rows)
        sums = _read_if(builder, accumulate, c_rows, vector)
        sums = loop(builder, INDEX(0), depth, sums, _step(builder, a, a_row, a_step, b, b_step, vector, rows))
        for place, total in zip(c_rows, sums, strict=True):
            store(builder, total, place)
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def tile_product_of_blocks(
    _context: Any, blocks: Any, a_block: Any, b_block: Any, depth: Any, a: Any, a_row: Any, a_step: Any, b: Any,
    b_step: Any, c: Any, c_row: Any,
) -> Any:  # fmt: skip
    """C += A B, where the steps k come in `blocks` of `depth`, which lie `a_block` and `b_block` elements apart."""
    integers = types.intp
    signature = types.void(*[integers] * 4, a, integers, integers, b, integers, c, integers)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        blocks, a_block, b_block, depth, a, a_row, a_step, b, b_step, c_start, c_row = arguments
        vector, rows = _tile(context, c)
        c_rows = _rows(builder, c_start, c_row, rows)

        def block(n: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            starts = [builder.gep(x, [builder.mul(n, apart)]) for x, apart in ((a, a_block), (b, b_block))]
            step = _step(builder, starts[0], a_row, a_step, starts[1], b_step, vector, rows)
            return loop(builder, INDEX(0), depth, sums, step)

        sums = loop(builder, INDEX(0), blocks, [load(builder, place, vector) for place in c_rows], block)
        for place, total in zip(c_rows, sums, strict=True):
            store(builder, total, place)
        return context.get_dummy_value()

    return signature, emit


def _tile(context: Any, c: Any) -> tuple[ir.VectorType, int]:
    width, rows = TILES[c.dtype.bitwidth]
    return ir.VectorType(context.get_value_type(c.dtype), width), rows


def _rows(builder: ir.IRBuilder, start: ir.Value, apart: ir.Value, rows: int) -> list[ir.Value]:
    return [builder.gep(start, [builder.mul(apart, INDEX(m))]) for m in range(rows)]


def _read_if(
    builder: ir.IRBuilder, condition: ir.Value, places: list[ir.Value], vector: ir.VectorType
) -> list[ir.Value]:
    """What the places hold if `condition`, else zeros."""
    before, reading = builder.block, builder.append_basic_block("reading")
    ready = builder.append_basic_block("ready")
    builder.cbranch(condition, reading, ready)
    builder.position_at_end(reading)
    old = [load(builder, place, vector) for place in places]
    builder.branch(ready)
    builder.position_at_end(ready)
    values = [builder.phi(vector) for _ in places]
    for value, there in zip(values, old, strict=True):
        value.add_incoming(ir.Constant(vector, [0.0] * vector.count), before)
        value.add_incoming(there, reading)
    return values


def _step(
    builder: ir.IRBuilder, a: ir.Value, a_row: ir.Value, a_step: ir.Value, b: ir.Value, b_step: ir.Value,
    vector: ir.VectorType, rows: int,
) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:  # fmt: skip
    """One step k: a row of B times each of the M numbers of a column of A."""
    offsets = [builder.mul(a_row, INDEX(m)) for m in range(rows)]

    def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        b_row = Lanes(builder, load(builder, builder.gep(b, [builder.mul(k, b_step)]), vector))
        column = builder.gep(a, [builder.mul(k, a_step)])
        numbers = [builder.load(builder.gep(column, [offset])) for offset in offsets]
        return [
            multiply_add(Lanes(builder, splat(builder, number, vector)), b_row, Lanes(builder, total)).value
            for number, total in zip(numbers, sums, strict=True)
        ]

    return step

"""The micro-kernel: a register tile of a matrix product, its accumulators held in vector registers throughout.

    C[m, w] (+)= sum_k A[m, k] B[k, w]        for M rows m and W lanes w

M and W are chosen so that the M * W accumulators fill the registers of the CPU (`tile_shape` in lanes.py). Each step of
k loads one vector of B and broadcasts M numbers of A to all lanes, so that A may have any strides. Of a last tile with
fewer rows, M / 3 or 2 M / 3 are computed; with at most half of the lanes, half a vector.

Every sum starts at zero and is added to C at its end, after at most `LONGEST` steps: so the rounding error of a
long sum grows with the number of its blocks and not with that of its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import cgutils, intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import i64, load, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, multiply_add, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.packing import whole_lanes

LONGEST = 256  # steps that are summed in registers
Combine: TypeAlias = Callable[[Lanes, Lanes, Lanes], Lanes]  # the products of the first two, added to the third


class Operand(NamedTuple):
    """A matrix: a pointer, and its strides in elements between rows and between steps k of a sum."""

    start: Any
    row: Any
    step: Any


@intrinsic
def tile_product(_context: Any, rows: Any, depth: Any, a: Any, b: Any, c: Any, accumulate: Any) -> Any:
    """C (+)= A B for one tile of W lanes and operands A (row, step), B (step) and C (row).

    `rows` are the rows wanted; M / 3, 2 M / 3 or M are computed. `depth` is the number of steps k. Without
    `accumulate`, C is written only.
    """
    return types.void(types.intp, types.intp, a, b, c, types.boolean), tile_code(c, 0, multiply_add)


@intrinsic
def weight_product(_context: Any, rows: Any, depth: Any, a: Any, b: Any, c: Any, accumulate: Any) -> Any:
    """`tile_product` that also computes single rows, and whose B may hold the upper halves of float32 (bfloat16).

    Of these, words of 32 bits hold two: lane n of the first half of W below lane n of the second half.
    """
    return types.void(types.intp, types.intp, a, b, c, types.boolean), tile_code(c, 1, multiply_add)


def tile_code(c: Any, least: int, combine: Combine) -> Callable[..., ir.Value]:
    """The code of `tile_product` for `least` rows besides, with this product and sum; a last argument is a factor."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        rows, depth, *operands, accumulate = arguments[:6]
        (a, a_row, a_step), (b, _, b_step), (c_start, c_row, _) = (cgutils.unpack_tuple(builder, x) for x in operands)
        vector, most = _tile(context, c)
        factors = [splat(builder, factor, vector) for factor in arguments[6:]]

        def product(count: int) -> None:
            zeros = [ir.Constant(vector, [0.0] * vector.count)] * count
            step = _step(builder, a, a_row, a_step, b, b_step, vector, count, combine)
            sums = loop(builder, i64(0), depth, zeros, step)
            for factor in factors:
                sums = [builder.fmul(total, factor) for total in sums]
            c_rows = _rows(builder, c_start, c_row, count)
            with builder.if_else(accumulate) as (adding, writing):
                with adding:
                    _add_to(builder, c_rows, sums)
                with writing:
                    for pointer, total in zip(c_rows, sums, strict=True):
                        store(builder, total, pointer)

        _by_size(builder, rows, [size for size in (least, most // 3, most // 3 * 2, most) if size], product)
        return context.get_dummy_value()

    return emit


def packed_product(rows: int, depth: int, stride: int, a: Any, b: Any, c: Any, accumulate: bool) -> None:
    """C (rows, W) (+)= A (rows, depth) B (depth, W); groups of M rows of A, (depth, M), lie `stride` elements apart.

    C has room for whole groups; rows beyond the last may be written.
    """
    for k in range(0, max(depth, 1), LONGEST):
        some, steps = ahead(a, k * tile_rows(c)), min(depth - k, LONGEST)
        short_product(rows, steps, stride, some, ahead(b, k * lanes(c)), c, accumulate or k > 0)


def short_product(rows: int, depth: int, stride: int, a: Any, b: Any, c: Any, accumulate: bool) -> None:
    """The same for at most `LONGEST` steps, or in one sum."""
    tile, width = tile_rows(c), lanes(c)
    for row in range(0, rows, tile):
        group, total = ahead(a, row // tile * stride), ahead(c, row * width)
        tile_product(
            rows - row, depth, Operand(group, 1, tile), Operand(b, 0, width), Operand(total, width, 0), accumulate
        )


@intrinsic
def blocked_tile_product(
    _context: Any, columns: Any, blocks: Any, depth: Any, a: Any, a_block: Any, b: Any, b_block: Any, c: Any
) -> Any:
    """C += A B, where the steps k come in `blocks` of `depth`, which lie `a_block` and `b_block` elements apart.

    `columns` are the lanes wanted; W / 2 or W are computed.
    """
    signature = types.void(types.intp, types.intp, types.intp, a, types.intp, b, types.intp, c)
    return signature, blocked_tile_code(c, multiply_add)


def blocked_tile_code(c: Any, combine: Combine) -> Callable[..., ir.Value]:
    """The code of `blocked_tile_product` with another product and sum."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        columns, blocks, depth, a, a_block, b, b_block, c_operand = arguments
        (a, a_row, a_step), (b, _, b_step), (c_start, c_row, _) = (
            cgutils.unpack_tuple(builder, x) for x in (a, b, c_operand)
        )
        whole, rows = _tile(context, c)
        c_rows = _rows(builder, c_start, c_row, rows)

        def product(count: int) -> None:
            vector = ir.VectorType(whole.element, count)

            def block(n: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                starts = [builder.gep(x, [builder.mul(n, stride)]) for x, stride in ((a, a_block), (b, b_block))]
                step = _step(builder, starts[0], a_row, a_step, starts[1], b_step, vector, rows, combine)
                return loop(builder, i64(0), depth, sums, step)

            zeros = [ir.Constant(vector, [0.0] * vector.count)] * rows
            _add_to(builder, c_rows, loop(builder, i64(0), blocks, zeros, block))

        _by_size(builder, columns, (whole.count // 2, whole.count), product)
        return context.get_dummy_value()

    return emit


def lane_product(blocks: int, stride: int, panels: Any, rows: Any, columns: int, total: Any) -> None:
    """total[m, :] += sum_w panels[m, w] rows[w, :] for M rows m, over the lanes w of panels `stride` elements apart.

    `rows` (blocks W, columns) and `total` (M, columns) have their columns padded to a multiple of W.
    """
    width, step = lanes(total), whole_lanes(columns, total)
    for d in range(0, columns, width):
        a, b, c = Operand(panels, width, 1), Operand(ahead(rows, d), 0, step), Operand(ahead(total, d), step, 0)
        blocked_tile_product(columns - d, blocks, width, a, stride, b, width * step, c)


def _by_size(builder: ir.IRBuilder, size: ir.Value, sizes: Sequence[int], emit: Callable[[int], None]) -> None:
    """Emit code for each of the sizes; the smallest that holds `size` runs, or the largest."""
    after = builder.append_basic_block("after")
    for number in sizes[:-1]:
        fits, larger = (builder.append_basic_block(name) for name in ("fits", "larger"))
        builder.cbranch(builder.icmp_signed("<=", size, i64(number)), fits, larger)
        builder.position_at_end(fits)
        emit(number)
        builder.branch(after)
        builder.position_at_end(larger)
    emit(sizes[-1])
    builder.branch(after)
    builder.position_at_end(after)


def _tile(context: Any, c: Any) -> tuple[ir.VectorType, int]:
    dtype = next(iter(c)).dtype
    width, rows = tile_size(dtype.bitwidth)
    return ir.VectorType(context.get_value_type(dtype), width), rows


def _rows(builder: ir.IRBuilder, start: ir.Value, stride: ir.Value, rows: int) -> list[ir.Value]:
    return [builder.gep(start, [builder.mul(stride, i64(m))]) for m in range(rows)]


def _add_to(builder: ir.IRBuilder, pointers: list[ir.Value], values: list[ir.Value]) -> None:
    for pointer, value in zip(pointers, values, strict=True):
        store(builder, builder.fadd(load(builder, pointer, value.type), value), pointer)


def _step(
    builder: ir.IRBuilder, a: ir.Value, a_row: ir.Value, a_step: ir.Value, b: ir.Value, b_step: ir.Value,
    vector: ir.VectorType, rows: int, combine: Combine,
) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:  # fmt: skip
    """One step k: a row of B times each of the M numbers of a column of A."""
    halves = isinstance(b.type.pointee, ir.IntType)
    # Three rows from one pointer: addresses of the form p + s and p + 2 s need no registers of their own.
    starts = [builder.gep(a, [builder.mul(a_row, i64(m))]) for m in range(0, rows, 3)]

    def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        start = builder.gep(b, [builder.mul(k, b_step)])
        b_row = Lanes(builder, _load_halves(builder, start, vector) if halves else load(builder, start, vector))
        at, totals = builder.mul(k, a_step), []
        for m, total in enumerate(sums):
            here = builder.gep(starts[m // 3], [at])
            number = builder.load(builder.gep(here, [builder.mul(a_row, i64(m % 3))]) if m % 3 else here)
            totals.append(combine(Lanes(builder, splat(builder, number, vector)), b_row, Lanes(builder, total)).value)
        return totals

    return step


def _load_halves(builder: ir.IRBuilder, pointer: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Float32 from their upper halves, two in each word; the lower halves are 0."""
    numbers, words = (ir.VectorType(kind, vector.count // 2) for kind in (vector.element, ir.IntType(32)))
    pairs = load(builder, pointer, words)
    shift, mask = (ir.Constant(words, [number] * words.count) for number in (16, -(2**16)))
    first, second = (builder.bitcast(x, numbers) for x in (builder.shl(pairs, shift), builder.and_(pairs, mask)))
    order = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), list(range(vector.count)))
    return builder.shuffle_vector(first, second, order)


short_product, packed_product = jit(short_product, packed_product, fastmath=EXACT, inner=True)
lane_product = jit(lane_product, fastmath=EXACT, inner=True)

"""Transposition between panels and rows of a matrix: rows have contiguous features or keys, panels contiguous queries.

Squares of R x R numbers are transposed in registers, R the lanes of one: so every load and store moves whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import i64, load, loop, store
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, tile_size, where

Square: TypeAlias = "list[ir.Value]"


def whole_squares(first: int, past: int, scores: Any) -> Any:
    """The end of the whole squares of the keys [first, past)."""
    size = lanes(scores) // 2
    return first + max(past - first, 0) // size * size


def with_bias(score: Lanes, bias: Lanes) -> Lanes:
    """The sum, but -inf where the bias is -inf, even if the score is NaN."""
    return where(bias.equals(-math.inf), bias, score + bias)


def with_mask(score: Lanes, mask: Lanes) -> Lanes:
    return where(mask.equals(0), -math.inf, score)


@intrinsic
def add_transposed(_context: Any, start: Any, stop: Any, rows: Any, scores: Any) -> Any:
    """scores[j, w] += row w [j] for j in [start, stop), a multiple of R; a bias of -inf masks even NaN.

    `rows` points to the addresses of W rows.
    """
    return types.void(types.intp, types.intp, rows, scores), _rows_to_panel(with_bias, None)


@intrinsic
def mask_transposed(_context: Any, start: Any, stop: Any, rows: Any, scores: Any) -> Any:
    """scores[j, w] = -inf where row w [j], a byte, is 0."""
    return types.void(types.intp, types.intp, rows, scores), _rows_to_panel(with_mask, ir.IntType(8))


@intrinsic
def load_transposed(_context: Any, start: Any, stop: Any, rows: Any, panel: Any) -> Any:
    """panel[j, w] = row w [j]."""
    return types.void(types.intp, types.intp, rows, panel), _rows_to_panel(lambda _, taken: taken, None)


@intrinsic
def add_to_rows(_context: Any, start: Any, stop: Any, rows: Any, scores: Any) -> Any:
    """row w [j] += scores[j, w], one row after the other: rows may be the same."""
    return types.void(types.intp, types.intp, rows, scores), _panel_to_rows(Lanes.__add__)


@intrinsic
def store_transposed(_context: Any, start: Any, stop: Any, rows: Any, panel: Any, filled: Any) -> Any:
    """row w [j] = panel[j, w] for the lanes w < `filled`, a multiple of R."""
    return types.void(types.intp, types.intp, rows, panel, types.intp), _panel_to_rows(None)


@intrinsic
def transpose(_context: Any, count: Any, panel: Any, rows: Any, stride: Any) -> Any:
    """rows[w, j] = panel[j, w] for j < count, a multiple of R; the rows lie `stride` elements apart."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, panel, rows, stride = arguments
        vector = _vector(context, signature.args[1])

        def square(j: ir.Value, first: ir.Value) -> None:
            pointers = [_score(builder, panel, builder.add(j, i64(n)), first, vector) for n in range(vector.count)]
            for m, values in enumerate(_transposed(builder, [load(builder, pointer, vector) for pointer in pointers])):
                row = builder.gep(rows, [builder.mul(stride, builder.add(first, i64(m)))])
                store(builder, values, builder.gep(row, [j]))

        _over_squares(builder, i64(0), count, vector.count, square)
        return context.get_dummy_value()

    return types.void(types.intp, panel, rows, types.intp), emit


@intrinsic
def transpose_matrix(
    _context: Any, rows: Any, columns: Any, x: Any, stride: Any, transposed: Any, transposed_stride: Any
) -> Any:
    """transposed[n, m] = x[m, n] for m < rows and n < columns, multiples of R; rows lie the strides apart."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        rows, columns, x, stride, out, out_stride = arguments
        vector = _vector(context, signature.args[2])
        size, numbers = i64(vector.count), range(vector.count)

        def band(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            m = builder.mul(number, size)
            starts = [builder.gep(x, [builder.mul(builder.add(m, i64(w)), stride)]) for w in numbers]

            def square(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                n = builder.mul(number, size)
                given = [load(builder, builder.gep(start, [n]), vector) for start in starts]
                for w, values in enumerate(_transposed(builder, given)):
                    row = builder.mul(builder.add(n, i64(w)), out_stride)
                    store(builder, values, builder.gep(out, [builder.add(row, m)]))
                return []

            loop(builder, i64(0), builder.sdiv(columns, size), [], square)
            return []

        loop(builder, i64(0), builder.sdiv(rows, size), [], band)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, x, types.intp, transposed, types.intp), emit


@intrinsic
def interleave(_context: Any, stop: Any, rows: Any, stride: Any, count: Any, packed: Any) -> Any:
    """packed[j, m] = rows[m, j] for M rows and j < stop, a multiple of R; rows lie `stride` elements apart.

    Only `count` rows exist; the last of them is read in place of the missing ones.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        stop, rows, stride, count, packed = arguments
        vector, height = _vector(context, signature.args[4]), tile_size(signature.args[4].dtype.bitwidth)[1]
        nothing, last = ir.Constant(vector, ir.Undefined), builder.sub(count, i64(1))
        there = [builder.select(builder.icmp_signed("<", i64(m), last), i64(m), last) for m in range(height)]
        starts = [builder.gep(rows, [builder.mul(stride, m)]) for m in there]

        def square(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            j = builder.mul(number, i64(vector.count))
            for first in range(0, height, vector.count):
                given = [load(builder, builder.gep(at, [j]), vector) for at in starts[first : first + vector.count]]
                order = ir.Constant(ir.VectorType(ir.IntType(32), len(given)), list(range(len(given))))
                for n, values in enumerate(_transposed(builder, given + [nothing] * (vector.count - len(given)))):
                    pointer = builder.gep(packed, [builder.mul(builder.add(j, i64(n)), i64(height))])
                    some = builder.shuffle_vector(values, nothing, order)
                    store(builder, some, builder.gep(pointer, [i64(first)]))
            return []

        loop(builder, i64(0), builder.sdiv(stop, i64(vector.count)), [], square)
        return context.get_dummy_value()

    return types.void(types.intp, rows, types.intp, types.intp, packed), emit


def _rows_to_panel(change: Callable[[Lanes, Lanes], Lanes], element: ir.Type | None) -> Callable[..., ir.Value]:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        start, stop, rows, scores = arguments
        vector = _vector(context, signature.args[3])
        kind = element or vector.element

        def square(j: ir.Value, first: ir.Value) -> None:
            read, lanes = ir.VectorType(kind, vector.count), [builder.add(first, i64(m)) for m in range(vector.count)]
            given = [load(builder, _row(builder, rows, lane, j, kind), read) for lane in lanes]
            if element is not None:  # as wide as the scores, so that they are transposed alike
                wide = ir.VectorType(ir.IntType(64 if isinstance(vector.element, ir.DoubleType) else 32), vector.count)
                given = [builder.zext(values, wide) for values in given]
            for n, values in enumerate(_transposed(builder, given)):
                pointer = _score(builder, scores, builder.add(j, i64(n)), first, vector)
                score = Lanes(builder, load(builder, pointer, vector))
                store(builder, change(score, Lanes(builder, values)).value, pointer)

        _over_squares(builder, start, stop, vector.count, square)
        return context.get_dummy_value()

    return emit


def _panel_to_rows(combine: Callable[[Lanes, Lanes], Lanes] | None) -> Callable[..., ir.Value]:
    """Write numbers of the panel to rows, or combine them with the numbers there."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        start, stop, rows, scores, *filled = arguments
        vector = _vector(context, signature.args[3])

        def square(j: ir.Value, first: ir.Value) -> None:
            pointers = [_score(builder, scores, builder.add(j, i64(n)), first, vector) for n in range(vector.count)]
            transposed = _transposed(builder, [load(builder, pointer, vector) for pointer in pointers])
            for m, values in enumerate(transposed):
                pointer = _row(builder, rows, builder.add(first, i64(m)), j, vector.element)
                if combine is not None:
                    values = combine(Lanes(builder, load(builder, pointer, vector)), Lanes(builder, values)).value
                store(builder, values, pointer)

        _over_squares(builder, start, stop, vector.count, square, *filled)
        return context.get_dummy_value()

    return emit


def _over_squares(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, size: int, square: Callable[[ir.Value, ir.Value], None],
    filled: ir.Value | None = None,
) -> None:  # fmt: skip
    """square(j, w) for the first key j and the first lane w of each square, in the first `filled` lanes or in all."""
    halves = builder.sdiv(i64(2 * size) if filled is None else filled, i64(size))

    def step(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        j = builder.add(start, builder.mul(number, i64(size)))

        def half(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            square(j, builder.mul(number, i64(size)))
            return []

        loop(builder, i64(0), halves, [], half)
        return []

    loop(builder, i64(0), builder.sdiv(builder.sub(stop, start), i64(size)), [], step)


def _transposed(builder: ir.IRBuilder, rows: Square) -> Square:
    """The transposed square: off-diagonal blocks of size 1, 2, 4 ... are swapped across the diagonal."""
    distance = 1
    while distance < len(rows):
        transposed = list(rows)
        for n in range(len(rows)):
            if not n & distance:
                transposed[n], transposed[n + distance] = interleaved(builder, rows[n], rows[n + distance], distance)
        rows, distance = transposed, 2 * distance
    return rows


def interleaved(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, distance: int) -> tuple[ir.Value, ir.Value]:
    """Of every 2 * `distance` lanes the first half, alternately from x and y, and the second half likewise."""
    size = x.type.count
    low = [n if not n & distance else size + n - distance for n in range(size)]
    high = [n + distance if not n & distance else size + n for n in range(size)]
    orders = (ir.Constant(ir.VectorType(ir.IntType(32), size), order) for order in (low, high))
    first, second = (builder.shuffle_vector(x, y, order) for order in orders)
    return first, second


def _row(builder: ir.IRBuilder, rows: ir.Value, row: ir.Value, j: ir.Value, element: ir.Type) -> ir.Value:
    """A pointer to number j of a row."""
    address = builder.load(builder.gep(rows, [row]))
    return builder.gep(builder.inttoptr(address, element.as_pointer()), [j])


def _score(builder: ir.IRBuilder, scores: ir.Value, j: ir.Value, lane: ir.Value, vector: ir.VectorType) -> ir.Value:
    return builder.gep(scores, [builder.add(builder.mul(j, i64(2 * vector.count)), lane)])


def _vector(context: Any, scores: Any) -> ir.VectorType:
    """One register: half the lanes of a panel."""
    return ir.VectorType(context.get_value_type(scores.dtype), tile_size(scores.dtype.bitwidth)[0] // 2)


whole_squares = jit(whole_squares, inner=True)

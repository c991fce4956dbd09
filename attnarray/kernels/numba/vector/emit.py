"""LLVM code for vectors: loops, loads and stores, and reductions over the lanes of a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from attnarray.kernels.numba.runtime.lazy import ir
from attnarray.kernels.numba.vector.lanes import Lanes

Advance: TypeAlias = "Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]]"  # the body of a loop


def i64(number: int) -> ir.Constant:
    """A constant of 64 bits."""
    return ir.IntType(64)(number)


def loop(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, carried: Sequence[ir.Value],
    body: Advance,
) -> list[ir.Value]:  # fmt: skip
    """for index in range(start, stop): carried = body(index, carried); the carried values stay in registers."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("loop", "body", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(ir.IntType(64))
    values = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
    builder.position_at_end(inside)
    updated = body(index, list(values))
    following = builder.add(index, i64(1))
    for phi, first, later in zip([index, *values], [start, *carried], [following, *updated], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def load(builder: ir.IRBuilder, pointer: ir.Value, vector: ir.VectorType) -> ir.Value:
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=element_bytes(vector.element))


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=element_bytes(value.type.element))


def element_bytes(element: ir.Type) -> int:
    return element.width // 8 if isinstance(element, ir.IntType) else 4 if isinstance(element, ir.FloatType) else 8


def splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """`value` in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )


def combined(builder: ir.IRBuilder, value: ir.Value, combine: Callable[[Lanes, Lanes], Lanes]) -> ir.Value:
    """Reduce all lanes to one number, halves first: always in the same order."""
    return builder.extract_element(halved(builder, value, 1, combine), ir.IntType(32)(0))


def halved(builder: ir.IRBuilder, value: ir.Value, least: int, combine: Callable[[Lanes, Lanes], Lanes]) -> ir.Value:
    """Combine the upper half of the lanes with the lower one until `least` lanes are left."""
    count = value.type.count
    while count > least:
        count //= 2
        nothing, numbers = ir.Constant(value.type, ir.Undefined), ir.VectorType(ir.IntType(32), count)
        orders = [ir.Constant(numbers, list(range(first, first + count))) for first in (0, count)]
        low, high = (Lanes(builder, builder.shuffle_vector(value, nothing, order)) for order in orders)
        value = combine(low, high).value
    return value

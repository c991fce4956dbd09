"""Passes along a row of contiguous numbers, as vectors: sums, maxima and elementwise work in one loop.

Lanes are contiguous in memory, so that arrays are read and written without packing. Sums and maxima stay in registers
until the end of the row, where the lanes are combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from attnarray.kernels.numba.runtime.lazy import ir, lazily, types
from attnarray.kernels.numba.vector.emit import Advance, combined, element_bytes, i64, load, loop, splat, store
from attnarray.kernels.numba.vector.formula import Body, Formula, Values, number_type
from attnarray.kernels.numba.vector.lanes import Lanes, maximum, tile_size

Row: TypeAlias = Lanes
Scalar: TypeAlias = Lanes
Sum: TypeAlias = Lanes
Max: TypeAlias = Lanes
GROUP = 16  # steps whose sums are added to the others: rounding grows with the groups, not with the steps
RESULTS = {"Sum": (0.0, Lanes.__add__), "Max": (-math.inf, maximum)}  # initial value, and how two are combined
EIGHT = 8


@lazily
def eight_pass(body: Body) -> Any:
    """A compiled function of pointers that runs `body` once, on the eight numbers at each of them."""
    formula = Formula(body)

    def emit(context: Any, builder: ir.IRBuilder, given: dict[str, Any], values: Values) -> None:
        kinds = {name: ir.VectorType(context.get_value_type(pointer.dtype), EIGHT) for name, pointer in given.items()}
        changed = formula(builder, {name: load(builder, value, kinds[name]) for name, value in values.items()})
        for name in values:
            if name in changed:
                store(builder, changed[name], values[name])

    return formula.compiled((), lambda _: types.void, emit)


def row_pass(vectors: int) -> Any:
    """Compile a body to a function (count, *arguments) along `count` contiguous numbers.

    A `Row` is a pointer to numbers, of which the body gets a vector at a time; a `Scalar` is a number for all lanes. A
    `Sum` or a `Max` is no argument of the compiled function but its result: 0 or -inf at first, carried along the row,
    and combined over the lanes at the end. Rows that the body does not use are not read. The last vector of a row is
    masked: nothing beyond the row is read, written or accumulated.

    More `vectors` at a time keep more additions in flight; long bodies need the registers.
    """

    @lazily
    def decorate(body: Body) -> Any:
        formula = Formula(body, tuple(RESULTS))

        def returned(given: dict[str, Any]) -> Any:
            results = [number_type(given)] * len(formula.named(*RESULTS))
            return types.Tuple(results) if len(results) > 1 else results[0] if results else types.void

        def emit(
            context: Any, builder: ir.IRBuilder, given: dict[str, Any], values: Values, count: ir.Value
        ) -> ir.Value | None:
            totals = _along_row(formula, vectors, context, builder, given, values, count)
            return context.make_tuple(builder, returned(given), totals) if len(totals) > 1 else next(iter(totals), None)

        return formula.compiled(("count",), returned, emit)

    return decorate


def _along_row(
    formula: Formula, vectors: int, context: Any, builder: ir.IRBuilder, given: dict[str, Any], values: Values,
    count: ir.Value,
) -> list[ir.Value]:  # fmt: skip
    dtype = number_type(given)
    vector = ir.VectorType(context.get_value_type(dtype), tile_size(dtype.bitwidth)[0] * vectors)
    rows = {
        name: (values[name], ir.VectorType(context.get_value_type(given[name].dtype), vector.count))
        for name in formula.named("Row")
    }
    scalars = {
        name: splat(builder, context.cast(builder, values[name], given[name], dtype), vector)
        for name in formula.named("Scalar")
    }
    carried = formula.named(*RESULTS)
    starts = [ir.Constant(vector, [RESULTS[formula.kinds[name]][0]] * vector.count) for name in carried]
    combine = [RESULTS[formula.kinds[name]][1] for name in carried]

    def step(masked: bool) -> Advance:
        def advance(block: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = builder.mul(block, i64(vector.count))
            mask = _below(builder, builder.sub(count, at), vector) if masked else None
            pointers = {name: builder.gep(start, [at]) for name, (start, _) in rows.items()}
            numbers = {name: _load(builder, pointer, rows[name][1], mask) for name, pointer in pointers.items()}
            changed = formula(builder, {**scalars, **numbers, **dict(zip(carried, sums, strict=True))})
            for name, pointer in pointers.items():
                if name in changed:
                    _store(builder, changed[name], pointer, mask)
            news = [changed[name] for name in carried]
            if mask is None:
                return news
            return [builder.select(mask, new, old) for new, old in zip(news, sums, strict=True)]

        return advance

    whole, blocks = _quotient(builder, count, vector.count, 0), _quotient(builder, count, vector.count, 1)
    sums = _in_groups(builder, whole, starts, combine, step(False))
    sums = loop(builder, whole, blocks, sums, step(True))  # once or never
    return [combined(builder, value, both) for value, both in zip(sums, combine, strict=True)]


def _in_groups(
    builder: ir.IRBuilder, steps: ir.Value, starts: list[ir.Constant], combine: list[Callable[[Lanes, Lanes], Lanes]],
    step: Advance,
) -> list[ir.Value]:  # fmt: skip
    """`loop` whose results start anew for every group of steps and are then combined."""

    def group(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        first = builder.mul(number, i64(GROUP))
        past = builder.add(first, i64(GROUP))
        past = builder.select(builder.icmp_signed("<", past, steps), past, steps)
        sums = loop(builder, first, past, starts, step)
        pairs = zip(combine, totals, sums, strict=True)
        return [both(Lanes(builder, total), Lanes(builder, some)).value for both, total, some in pairs]

    if not starts:
        return loop(builder, i64(0), steps, starts, step)
    return loop(builder, i64(0), _quotient(builder, steps, GROUP, 1), starts, group)


def _quotient(builder: ir.IRBuilder, count: ir.Value, size: int, up: int) -> ir.Value:
    """count / size, rounded down or, with 1 for `up`, up."""
    return builder.sdiv(builder.add(count, i64((size - 1) * up)), i64(size))


def _below(builder: ir.IRBuilder, rest: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Which lanes are among the first `rest`."""
    numbers = ir.VectorType(ir.IntType(32), vector.count)
    limit = splat(builder, builder.trunc(rest, ir.IntType(32)), numbers)
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(vector.count))), limit)


def _load(builder: ir.IRBuilder, pointer: ir.Value, vector: ir.VectorType, mask: ir.Value | None) -> ir.Value:
    if mask is None:
        return load(builder, pointer, vector)
    target = vector.as_pointer()
    function = _intrinsic(builder, "load", vector, vector, [target, ir.IntType(32), mask.type, vector])
    align = ir.IntType(32)(element_bytes(vector.element))
    return builder.call(function, [builder.bitcast(pointer, target), align, mask, ir.Constant(vector, None)])


def _store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
    if mask is None:
        store(builder, value, pointer)
        return
    vector, target = value.type, value.type.as_pointer()
    function = _intrinsic(builder, "store", ir.VoidType(), vector, [vector, target, ir.IntType(32), mask.type])
    align = ir.IntType(32)(element_bytes(vector.element))
    builder.call(function, [value, builder.bitcast(pointer, target), align, mask])


def _intrinsic(
    builder: ir.IRBuilder, action: str, result: ir.Type, vector: ir.VectorType, arguments: list[ir.Type]
) -> ir.Function:
    letter = "i" if isinstance(vector.element, ir.IntType) else "f"
    name = f"llvm.masked.{action}.v{vector.count}{letter}{8 * element_bytes(vector.element)}.p0"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)

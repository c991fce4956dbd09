"""Passes along a row of neighbouring numbers, as vectors: sums, maxima and elementwise work in one loop.

Here the lanes are neighbours in memory, so that arrays are read and written where they are. Sums and maxima stay in
registers until the end of the row, where the lanes are combined. The last vector of a row is masked: nothing beyond the
row is read or written, and it counts for no sum.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attnarray.kernels.numba.vector.lanes import TILES, Lanes, maximum
from attnarray.kernels.numba.vector.panel import INDEX, bytes_of, combined, load, loop, splat, store

Row: TypeAlias = Lanes
Scalar: TypeAlias = Lanes
Sum: TypeAlias = Lanes
Largest: TypeAlias = Lanes
Step: TypeAlias = Callable[[ir.Value, list[ir.Value]], list[ir.Value]]  # of a loop, see `loop`

GROUP = 16  # steps that are summed by themselves, so that rounding grows with the groups and not with the steps
START = {"Sum": 0.0, "Largest": -math.inf}
COMBINE: dict[str, Callable[[Lanes, Lanes], Lanes]] = {"Sum": Lanes.__add__, "Largest": maximum}


class _Pass(NamedTuple):
    """A body, what each of its arguments is, and the number of vectors of W lanes that it sees at a time."""

    body: Callable[..., dict[str, Lanes]]
    kinds: dict[str, str]
    vectors: int

    def named(self, *kinds: str) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind in kinds]


def row_pass(vectors: int) -> Callable[[Callable[..., dict[str, Lanes]]], Any]:
    """Decorate a body to become a compiled function (count, *arguments) that runs it along `count` numbers.

    The annotations of the body say what each argument is: a `Row` is a pointer to numbers, of which the body sees some
    at a time; a `Scalar` is a number for all lanes; a `Sum` or a `Largest` is no argument of the compiled function but
    its result: 0 or -inf in the beginning, carried along the row, and combined over the lanes in the end. The body
    returns what it changes by name: rows are stored at once. What it does not look at is not read.

    The more `vectors` at a time, the more additions are on their way at once; long bodies need the registers.
    """

    def decorate(body: Callable[..., dict[str, Lanes]]) -> Any:
        kinds = {name: parameter.annotation for name, parameter in inspect.signature(body).parameters.items()}
        plan = _Pass(body, kinds, vectors)

        def run(_context: Any, _count: Any, *given: Any) -> Any:
            dtype = next(place.dtype for place in given if _is_floating(place))
            results = [dtype] * len(plan.named("Sum", "Largest"))
            result = types.Tuple(results) if len(results) > 1 else results[0] if results else types.void

            def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
                totals = _emit(plan, context, builder, given, values)
                if len(totals) > 1:
                    return context.make_tuple(builder, result, totals)
                return totals[0] if totals else context.get_dummy_value()

            return result(types.intp, *given), emit

        # Numba asks for the signature; star-arguments would be passed as one tuple.
        names = ("_context", "_count", *plan.named("Row", "Scalar"))
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__name__ = body.__name__
        return intrinsic(run)

    return decorate


def _is_floating(argument: Any) -> bool:
    return isinstance(argument, types.CPointer) and isinstance(argument.dtype, types.Float)


def _emit(plan: _Pass, context: Any, builder: ir.IRBuilder, given: Any, values: Sequence[ir.Value]) -> list[ir.Value]:
    count, *values = values
    dtype = next(place.dtype for place in given if _is_floating(place))
    vector = ir.VectorType(context.get_value_type(dtype), TILES[dtype.bitwidth][0] * plan.vectors)
    rows, seen = {}, {}
    for name, argument, value in zip(plan.named("Row", "Scalar"), given, values, strict=True):
        if plan.kinds[name] == "Row":
            rows[name] = value, ir.VectorType(context.get_value_type(argument.dtype), vector.count)
        else:
            seen[name] = Lanes(builder, splat(builder, context.cast(builder, value, argument, dtype), vector))
    carried = plan.named("Sum", "Largest")

    def step(masked: bool) -> Step:
        def advance(block: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = builder.mul(block, INDEX(vector.count))
            mask = _below(builder, builder.sub(count, at), vector) if masked else None
            places = {name: builder.gep(start, [at]) for name, (start, _) in rows.items()}
            numbers = {name: _load(builder, place, rows[name][1], mask) for name, place in places.items()}
            numbers |= dict(zip(carried, sums, strict=True))
            changed = plan.body(**seen, **{name: Lanes(builder, value) for name, value in numbers.items()})
            for name, place in places.items():
                if name in changed:
                    _store(builder, changed[name].value, place, mask)
            news = [changed[name].value for name in carried]
            if mask is None:
                return news
            return [builder.select(mask, new, old) for new, old in zip(news, sums, strict=True)]

        return advance

    return _along(plan, builder, count, vector, step)


def _along(
    plan: _Pass, builder: ir.IRBuilder, count: ir.Value, vector: ir.VectorType, step: Callable[[bool], Step]
) -> list[ir.Value]:
    """The steps over whole vectors, in groups where something is summed, and a masked one over the rest."""
    carried = plan.named("Sum", "Largest")
    starts = [ir.Constant(vector, [START[plan.kinds[name]]] * vector.count) for name in carried]
    combine = [COMBINE[plan.kinds[name]] for name in carried]

    def group(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        first = builder.mul(number, INDEX(GROUP))
        past = builder.add(first, INDEX(GROUP))
        past = builder.select(builder.icmp_signed("<", past, whole), past, whole)
        sums = loop(builder, first, past, starts, step(False))
        pairs = zip(combine, totals, sums, strict=True)
        return [both(Lanes(builder, total), Lanes(builder, some)).value for both, total, some in pairs]

    whole, blocks = _quotient(builder, count, vector.count, 0), _quotient(builder, count, vector.count, 1)
    steps, advance = (_quotient(builder, whole, GROUP, 1), group) if carried else (whole, step(False))
    sums = loop(builder, INDEX(0), steps, starts, advance)
    sums = loop(builder, whole, blocks, sums, step(True))  # once or never
    return [combined(builder, value, both) for value, both in zip(sums, combine, strict=True)]


def _quotient(builder: ir.IRBuilder, count: ir.Value, size: int, up: int) -> ir.Value:
    """count / size, rounded down or, with 1 for `up`, up."""
    return builder.sdiv(builder.add(count, INDEX((size - 1) * up)), INDEX(size))


def _below(builder: ir.IRBuilder, rest: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Which lanes are among the first `rest`."""
    numbers = ir.VectorType(ir.IntType(32), vector.count)
    limit = splat(builder, builder.trunc(rest, ir.IntType(32)), numbers)
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(vector.count))), limit)


def _load(builder: ir.IRBuilder, place: ir.Value, vector: ir.VectorType, mask: ir.Value | None) -> ir.Value:
    if mask is None:
        return load(builder, place, vector)
    target = vector.as_pointer()
    function = _intrinsic(builder, "load", vector, vector, [target, ir.IntType(32), mask.type, vector])
    align = ir.IntType(32)(bytes_of(vector.element))
    return builder.call(function, [builder.bitcast(place, target), align, mask, ir.Constant(vector, None)])


def _store(builder: ir.IRBuilder, value: ir.Value, place: ir.Value, mask: ir.Value | None) -> None:
    if mask is None:
        store(builder, value, place)
        return
    vector, target = value.type, value.type.as_pointer()
    function = _intrinsic(builder, "store", ir.VoidType(), vector, [vector, target, ir.IntType(32), mask.type])
    align = ir.IntType(32)(bytes_of(vector.element))
    builder.call(function, [value, builder.bitcast(place, target), align, mask])


def _intrinsic(
    builder: ir.IRBuilder, action: str, result: ir.Type, vector: ir.VectorType, arguments: list[ir.Type]
) -> ir.Function:
    letter = "i" if isinstance(vector.element, ir.IntType) else "f"
    name = f"llvm.masked.{action}.v{vector.count}{letter}{8 * bytes_of(vector.element)}.p0"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def place(_context: Any, like: Any, address: Any) -> Any:
    """The number at an address, of the dtype of `like`."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.inttoptr(arguments[1], context.get_data_type(like).as_pointer())

    return types.CPointer(like)(like, types.intp), emit

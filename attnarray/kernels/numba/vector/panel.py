"""Passes over a panel of scores, row by row, with one vector of lanes per row; every lane is a query.

A `panel` is a pointer to rows of W numbers: rows are keys, lanes are queries. So the softmax over the keys needs no sum
across lanes: maxima, totals and the bounds of masks are vectors that stay in registers from row to row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attnarray.kernels.numba.vector.lanes import TILES, Lanes

INDEX = ir.IntType(64)
Row: TypeAlias = Lanes
FourthRow: TypeAlias = Lanes
Lane: TypeAlias = Lanes
Sum: TypeAlias = Lanes
Scalar: TypeAlias = Lanes
Index: TypeAlias = Lanes
Each: TypeAlias = Lanes
Total: TypeAlias = Lanes
NUMBERS = ("Each", "Total")  # one number per row of the panel
ROWS = ("Row", "FourthRow", *NUMBERS)
CARRIED = ("Lane", "Sum")
GROUP = 16  # rows that are summed by themselves


def panel_pass(body: Callable[..., dict[str, Lanes]]) -> Any:
    """A compiled function (start, stop, at, *arguments) that runs `body` on the rows [start, stop) of panels.

    The annotations of `body` say what each argument is: a `Row` is a panel, of which the body sees one row after
    the other, or with `FourthRow` every fourth; a `Lane` points to rows too, of which it sees row `at` always; a
    `Sum` is a `Lane` that is added to, and may be float64: it starts at zero for every `GROUP` rows, so that a long
    sum is one of short sums; a `Scalar` is a number for all lanes; an `Index` is an integer, and the body sees it
    plus the number of the row. An `Each` points to one number per row, which the body sees in all lanes; to that of
    a `Total`, which may be float64, is added, over all lanes, what the body returns for it. The body returns what
    it changes by name: rows are stored at once, lanes are carried from row to row and stored at the end.
    """
    kinds = {name: parameter.annotation for name, parameter in inspect.signature(body).parameters.items()}

    def run(_context: Any, _start: Any, _stop: Any, _at: Any, *given: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            _emit(body, kinds, context, builder, given, values)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, *given), emit

    # Numba asks for the signature; star-arguments would be passed as one tuple.
    names = ("_context", "_start", "_stop", "_at", *kinds)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__name__ = body.__name__
    return intrinsic(run)


def _emit(
    body: Callable[..., dict[str, Lanes]], kinds: dict[str, str], context: Any, builder: ir.IRBuilder, given: Any,
    values: Sequence[ir.Value],
) -> None:  # fmt: skip
    start, stop, at, *values = values
    dtype = next(argument.dtype for argument in given if isinstance(argument, types.CPointer))
    assert isinstance(dtype, types.Float), "the first pointer says how many lanes there are"
    vector = ir.VectorType(context.get_value_type(dtype), TILES[dtype.bitwidth][0])
    named = dict(zip(kinds, zip(given, values, strict=True), strict=True))
    pointers = {name: argument for name, (argument, _) in named.items() if isinstance(argument, types.CPointer)}
    row_type = {name: _vector(context, argument, vector) for name, argument in pointers.items()}
    places = {
        name: builder.gep(value, [builder.mul(at, INDEX(vector.count))])
        for name, (_, value) in named.items() if kinds[name] in CARRIED
    }  # fmt: skip
    lanes = {name: load(builder, place, row_type[name]) for name, place in places.items()}
    scalars = {
        name: _scalar(context, builder, argument, value, vector)
        for name, (argument, value) in named.items() if kinds[name] == "Scalar"
    }  # fmt: skip

    def advance(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        seen = {**scalars, **dict(zip(lanes, carried, strict=True))}
        here = {}
        for name, (_, value) in named.items():
            if kinds[name] == "Index":
                seen[name] = _index(builder, value, index, vector)
            elif kinds[name] in ROWS:
                apart = 1 if kinds[name] in NUMBERS else vector.count * (4 if kinds[name] == "FourthRow" else 1)
                here[name] = builder.gep(value, [builder.mul(index, INDEX(apart))])
                seen[name] = _read(builder, kinds[name], here[name], row_type[name])
        changed = body(**{name: Lanes(builder, value) for name, value in seen.items()})
        for name, place in here.items():
            if name in changed:
                _write(builder, kinds[name], changed[name], place)
        return [changed[name].value if name in changed else seen[name] for name in lanes]

    is_sum = [kinds[name] == "Sum" for name in lanes]
    final = _in_groups(builder, start, stop, list(lanes.values()), is_sum, vector, advance)
    for name, value in zip(lanes, final, strict=True):
        store(builder, value, places[name])


def _in_groups(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, carried: list[ir.Value], is_sum: list[bool],
    vector: ir.VectorType, body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:  # fmt: skip
    """`loop`, in which sums start at zero for every group of rows and are then added to what is carried."""
    if not any(is_sum):
        return loop(builder, start, stop, carried, body)

    def group(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        first = builder.add(start, builder.mul(number, INDEX(GROUP)))
        past = builder.add(first, INDEX(GROUP))
        past = builder.select(builder.icmp_signed("<", past, stop), past, stop)
        zero = ir.Constant(vector, [0.0] * vector.count)
        starts = [zero if some else total for some, total in zip(is_sum, totals, strict=True)]
        after = loop(builder, first, past, starts, body)
        return [_added(builder, *pair) if some else pair[1] for some, *pair in zip(is_sum, totals, after, strict=True)]

    groups = builder.sdiv(builder.add(builder.sub(stop, start), INDEX(GROUP - 1)), INDEX(GROUP))
    return loop(builder, INDEX(0), groups, carried, group)


def _added(builder: ir.IRBuilder, total: ir.Value, some: ir.Value) -> ir.Value:
    """Their sum in the type of `total`, which is as wide or wider."""
    return builder.fadd(total, some if some.type == total.type else builder.fpext(some, total.type))


def _read(builder: ir.IRBuilder, kind: str, place: ir.Value, vector: ir.VectorType) -> ir.Value:
    return splat(builder, builder.load(place), vector) if kind in NUMBERS else load(builder, place, vector)


def _write(builder: ir.IRBuilder, kind: str, changed: Lanes, place: ir.Value) -> None:
    if kind == "Total":
        total = combined(builder, changed.value, Lanes.__add__)
        builder.store(_added(builder, builder.load(place), total), place)
    else:
        store(builder, changed.value, place)


def _vector(context: Any, argument: Any, like: ir.VectorType) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(argument.dtype), like.count)


def _scalar(context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value, like: ir.VectorType) -> ir.Value:
    """A floating number in the type of the lanes, an integer as its low 32 bits, in all lanes."""
    if isinstance(kind, types.Float):
        number = types.float32 if isinstance(like.element, ir.FloatType) else types.float64
        return splat(builder, context.cast(builder, value, kind, number), like)
    integer = ir.IntType(32)
    value = builder.trunc(value, integer) if value.type.width > integer.width else value
    return splat(builder, value, ir.VectorType(integer, like.count))


def _index(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, like: ir.VectorType) -> ir.Value:
    integer = ir.IntType(32)
    number = builder.trunc(builder.add(base, index), integer)
    return splat(builder, number, ir.VectorType(integer, like.count))


def loop(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, carried: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:  # fmt: skip
    """for index in range(start, stop): carried = body(index, carried); the carried values stay in registers."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("loop", "body", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INDEX)
    values = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
    builder.position_at_end(inside)
    updated = body(index, list(values))
    following = builder.add(index, INDEX(1))
    for phi, first, later in zip([index, *values], [start, *carried], [following, *updated], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def load(builder: ir.IRBuilder, place: ir.Value, vector: ir.VectorType) -> ir.Value:
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=bytes_of(vector.element))


def store(builder: ir.IRBuilder, value: ir.Value, place: ir.Value) -> None:
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=bytes_of(value.type.element))


def bytes_of(element: ir.Type) -> int:
    return element.width // 8 if isinstance(element, ir.IntType) else 4 if isinstance(element, ir.FloatType) else 8


def splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """`value` in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )


def combined(builder: ir.IRBuilder, value: ir.Value, combine: Callable[[Lanes, Lanes], Lanes]) -> ir.Value:
    """All lanes in one number, halves first: always in the same order."""
    return builder.extract_element(halved(builder, value, 1, combine), ir.IntType(32)(0))


def halved(builder: ir.IRBuilder, value: ir.Value, least: int, combine: Callable[[Lanes, Lanes], Lanes]) -> ir.Value:
    """The upper half of the lanes combined with the lower one, until `least` lanes are left."""
    count = value.type.count
    while count > least:
        count //= 2
        nothing, numbers = ir.Constant(value.type, ir.Undefined), ir.VectorType(ir.IntType(32), count)
        orders = [ir.Constant(numbers, list(range(first, first + count))) for first in (0, count)]
        low, high = (Lanes(builder, builder.shuffle_vector(value, nothing, order)) for order in orders)
        value = combine(low, high).value
    return value

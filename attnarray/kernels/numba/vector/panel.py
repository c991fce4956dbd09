"""Passes over a panel of scores, row by row, with one vector of lanes per row; every lane is a query.

A `panel` is a pointer to rows of W numbers: rows are keys, lanes are queries. So the softmax over the keys needs no sum
across lanes: maxima, totals and the bounds of masks are vectors that stay in registers from row to row.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from attnarray.kernels.numba.runtime.lazy import ir, lazily, types
from attnarray.kernels.numba.vector.emit import Advance, combined, i64, load, loop, splat, store
from attnarray.kernels.numba.vector.formula import Body, Formula, Values, number_type
from attnarray.kernels.numba.vector.lanes import Lanes, tile_size

Row: TypeAlias = Lanes
FourthRow: TypeAlias = Lanes
Lane: TypeAlias = Lanes
Sum: TypeAlias = Lanes
Scalar: TypeAlias = Lanes
Index: TypeAlias = Lanes
Each: TypeAlias = Lanes
Total: TypeAlias = Lanes
NUMBERS = ("Each", "Total")  # one number per row of the panel
CARRIED = ("Lane", "Sum")
GROUP = 16  # rows that are summed before they are added to the others


@lazily
def panel_pass(body: Body) -> Any:
    """Compile `body` to a function (start, stop, at, *arguments) over the rows [start, stop) of panels.

    The kinds of arguments, and what the body gets for each row:

    - `Row`: a panel; its row. `FourthRow`: the same for every fourth row.
    - `Lane`: a panel; always its row `at`, carried from row to row and stored at the end.
    - `Sum`: a `Lane` that is accumulated, and may be float64: it starts at zero for every `GROUP` rows, so that a long
      sum is a sum of short ones.
    - `Scalar`: a number; its value in all lanes. `Index`: an integer; its value plus the number of the row.
    - `Each`: a pointer to one number per row; that number in all lanes.
    - `Total`: a pointer to one number per row, maybe float64, to which the returned vector is added, summed over lanes.
    """
    formula = Formula(body)

    def emit(context: Any, builder: ir.IRBuilder, given: dict[str, Any], values: Values, *span: ir.Value) -> None:
        _down_panel(formula, context, builder, given, values, *span)

    return formula.compiled(("start", "stop", "at"), lambda _: types.void, emit)


def _down_panel(
    formula: Formula, context: Any, builder: ir.IRBuilder, given: dict[str, Any], values: Values, start: ir.Value,
    stop: ir.Value, at: ir.Value,
) -> None:  # fmt: skip
    dtype = number_type(given)
    vector = ir.VectorType(context.get_value_type(dtype), tile_size(dtype.bitwidth)[0])
    row_type = {
        name: ir.VectorType(context.get_value_type(argument.dtype), vector.count)
        for name, argument in given.items() if isinstance(argument, types.CPointer)
    }  # fmt: skip
    stride = dict.fromkeys(formula.named("Row"), vector.count) | dict.fromkeys(formula.named(*NUMBERS), 1)
    stride |= dict.fromkeys(formula.named("FourthRow"), 4 * vector.count)
    scalars = {name: _scalar(context, builder, given[name], values[name], vector) for name in formula.named("Scalar")}
    offset = builder.mul(at, i64(vector.count))
    pointers = {name: builder.gep(values[name], [offset]) for name in formula.named(*CARRIED)}
    lanes = {name: load(builder, pointer, row_type[name]) for name, pointer in pointers.items()}

    def read(name: str, pointer: ir.Value) -> ir.Value:
        if formula.kinds[name] in NUMBERS:
            return splat(builder, builder.load(pointer), row_type[name])
        return load(builder, pointer, row_type[name])

    def advance(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        seen = {**scalars, **dict(zip(lanes, carried, strict=True))}
        seen |= {name: _index(builder, values[name], index, vector) for name in formula.named("Index")}
        here = {name: builder.gep(values[name], [builder.mul(index, i64(n))]) for name, n in stride.items()}
        seen |= {name: read(name, pointer) for name, pointer in here.items()}
        changed = formula(builder, seen)
        for name, pointer in here.items():
            if name in changed:
                _write(builder, formula.kinds[name], changed[name], pointer)
        return [changed.get(name, seen[name]) for name in lanes]

    is_sum = [formula.kinds[name] == "Sum" for name in lanes]
    final = _in_groups(builder, (start, stop), list(lanes.values()), is_sum, vector, advance)
    for name, value in zip(lanes, final, strict=True):
        store(builder, value, pointers[name])


def _in_groups(
    builder: ir.IRBuilder, rows: tuple[ir.Value, ir.Value], carried: list[ir.Value], is_sum: list[bool],
    vector: ir.VectorType, body: Advance,
) -> list[ir.Value]:  # fmt: skip
    """`loop`, in which sums start at zero for every group of rows and are then added to the carried ones."""
    start, stop = rows
    if not any(is_sum):
        return loop(builder, start, stop, carried, body)

    def group(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        first = builder.add(start, builder.mul(number, i64(GROUP)))
        past = builder.add(first, i64(GROUP))
        past = builder.select(builder.icmp_signed("<", past, stop), past, stop)
        zero = ir.Constant(vector, [0.0] * vector.count)
        starts = [zero if some else total for some, total in zip(is_sum, totals, strict=True)]
        after = loop(builder, first, past, starts, body)
        return [_added(builder, *pair) if some else pair[1] for some, *pair in zip(is_sum, totals, after, strict=True)]

    groups = builder.sdiv(builder.add(builder.sub(stop, start), i64(GROUP - 1)), i64(GROUP))
    return loop(builder, i64(0), groups, carried, group)


def _added(builder: ir.IRBuilder, total: ir.Value, some: ir.Value) -> ir.Value:
    """Their sum in the type of `total`, which is as wide or wider."""
    return builder.fadd(total, some if some.type == total.type else builder.fpext(some, total.type))


def _write(builder: ir.IRBuilder, kind: str, changed: ir.Value, pointer: ir.Value) -> None:
    if kind == "Total":
        total = combined(builder, changed, Lanes.__add__)
        builder.store(_added(builder, builder.load(pointer), total), pointer)
    else:
        store(builder, changed, pointer)


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

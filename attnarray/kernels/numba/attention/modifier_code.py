"""Vector code of an `Expression` over a panel of scores, as C functions that the tiled kernels call by address.

    modify(first, past, scores, before, positions, heads, start, b, captured)
    modify_backward(first, past, dscores, before, positions, heads, start, b, captured)

for the rows [first, past) of a panel, all of them integers or addresses: `before` is a panel for the scores as they
were, `positions` and `heads` are those of its queries, `start` is the key of row 0. `captured` has for each call a
number that is not 0 once an index was out of range (1 + the number of the array), and then for each array its address,
that of its gradient (float64), and its sizes. What no key changes is computed before the loop over the keys.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from attnarray.kernels.numba.attention.symbols import BOOLEAN, BY_KEY, BY_QUERY, FLOAT, INTEGER, Expression, Symbol
from attnarray.kernels.numba.runtime.jit import EXACT
from attnarray.kernels.numba.runtime.lazy import cgutils, intrinsic, ir, types
from attnarray.kernels.numba.vector import lanes as vl
from attnarray.kernels.numba.vector.emit import combined, i64, load, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, where

FIRST_SIZE = 2  # of an array's numbers in `captured`, after its address and that of its gradient
SMALL = 0.55
# (tanh(x) / x - 1) / x^2 as a polynomial of x^2, for |x| up to 0.55: near-minimax, error 1e-8.
TANH = (
    Chebyshev.interpolate(lambda z: (np.tanh(np.sqrt(z)) / np.sqrt(z) - 1) / z, 4, domain=[0, SMALL**2])
    .convert(domain=[-1, 1], kind=Polynomial)
    .coef
)
LARGEST_EXPONENT = {32: 88.72, 64: 709.78}


class Gradient(NamedTuple):
    """What is added to an entry of an array for each score."""

    number: int  # of the array
    indices: tuple[Symbol, ...]
    value: Symbol


def forward_function(expression: Expression, result: Symbol, offsets: Sequence[int], real: Any) -> Any:
    """The C function that overwrites scores with `result`, and keeps them as they were."""

    def emit(code: _Code) -> None:
        used = expression.used(result)
        code.before_loop(used)

        def row(j: Any, _carried: list[Any]) -> list[Any]:
            pointer = code.row(code.panel, j)
            score = load(code.builder, pointer, code.floats)
            store(code.builder, score, code.row(code.before, j))
            values = code.in_loop(used, j, score, None)
            hidden = Lanes(code.builder, score).equals(-math.inf)  # by a bias
            store(code.builder, where(hidden, -math.inf, Lanes(code.builder, values[result])).value, pointer)
            return []

        loop(code.builder, code.first, code.past, [], row)

    return _c_function(emit, offsets, real)


def backward_function(
    expression: Expression, dscore: Symbol, gradients: Sequence[Gradient], offsets: Sequence[int], real: Any
) -> Any:
    """The C function that overwrites gradients of modified scores with those of scores, and adds those of arrays.

    Where a gradient is 0, as where a weight is, no other number matters.
    """

    def emit(code: _Code) -> None:
        used = expression.used(dscore, *[x for each in gradients for x in (*each.indices, each.value)])
        code.before_loop(used)
        kept = [each for each in gradients if not _varies(each.indices) & BY_KEY]
        others = [each for each in gradients if _varies(each.indices) & BY_KEY]
        zeros = [ir.Constant(code.floats, [0.0] * code.floats.count)] * len(kept)

        def row(j: Any, sums: list[Any]) -> list[Any]:
            builder, pointer = code.builder, code.row(code.panel, j)
            given = Lanes(builder, load(builder, pointer, code.floats))
            before = Lanes(builder, load(builder, code.row(code.before, j), code.floats))
            zero = given.equals(0.0)
            values = code.in_loop(used, j, where(zero, 0.0, before).value, given.value)

            def live(symbol: Symbol) -> Any:
                return where(zero, 0.0, Lanes(builder, values[symbol])).value

            store(builder, live(dscore), pointer)
            for each in others:
                code.add_gradient(each, values, live(each.value))
            return [builder.fadd(total, live(each.value)) for total, each in zip(sums, kept, strict=True)]

        totals = loop(code.builder, code.first, code.past, zeros, row)
        for each, total in zip(kept, totals, strict=True):
            code.add_gradient(each, code.values, total)

    return _c_function(emit, offsets, real)


def _varies(symbols: Sequence[Symbol]) -> int:
    found = 0
    for symbol in symbols:
        found |= symbol.varies
    return found


def _c_function(emit: Callable[[_Code], None], offsets: Sequence[int], real: Any) -> Any:
    """Compile; the result must be kept alive as long as its address is used."""

    def run(_context: Any, first: Any, past: Any, panel: Any, before: Any, positions: Any, heads: Any, start: Any,
            b: Any, captured: Any) -> Any:  # fmt: skip
        def lower(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            code = _Code(context, builder, real, offsets, *values)
            emit(code)
            return code.finished()

        return types.int64(*[types.int64] * 9), lower

    panel_code = intrinsic(run).real

    def modify(first: int, past: int, panel: int, before: int, positions: int, heads: int, start: int, b: int,
               captured: int) -> Any:  # fmt: skip
        return panel_code(first, past, panel, before, positions, heads, start, b, captured)

    signature = types.int64(*[types.int64] * 9)
    return importlib.import_module("numba").cfunc(signature, fastmath=set(EXACT), error_model="numpy")(modify)


class _Code:
    """The values of symbols in LLVM code, and what the C function was given."""

    def __init__(self, context: Any, builder: Any, real: Any, offsets: Sequence[int], *given: Any) -> None:
        first, past, panel, before, positions, heads, start, b, captured = given
        self.context, self.builder, self.offsets = context, builder, offsets
        bits = 8 * real.itemsize
        self.element = ir.FloatType() if bits == 32 else ir.DoubleType()
        count = vl.tile_size(bits)[0]
        self.floats, self.integers = (ir.VectorType(x, count) for x in (self.element, ir.IntType(32)))
        self.booleans, self.doubles = (ir.VectorType(x, count) for x in (ir.IntType(1), ir.DoubleType()))
        self.first, self.past, self.start = first, past, start
        self.panel, self.before = (builder.inttoptr(x, self.element.as_pointer()) for x in (panel, before))
        self.captured = builder.inttoptr(captured, ir.IntType(64).as_pointer())
        self.status = cgutils.alloca_once_value(builder, i64(0))
        self.values: dict[Symbol, Any] = {}
        words = [builder.inttoptr(x, ir.IntType(32).as_pointer()) for x in (positions, heads)]
        self.arguments = {
            "q_idx": load(builder, words[0], self.integers), "h": load(builder, words[1], self.integers),
            "b": splat(builder, builder.trunc(b, ir.IntType(32)), self.integers),
        }  # fmt: skip

    def row(self, panel: Any, j: Any) -> Any:
        return self.builder.gep(panel, [self.builder.mul(j, i64(self.floats.count))])

    def before_loop(self, used: Sequence[Symbol]) -> None:
        """Compute what no key changes."""
        for symbol in used:
            if not symbol.varies & BY_KEY:
                self.values[symbol] = self.computed(symbol, self.values)

    def in_loop(self, used: Sequence[Symbol], j: Any, score: Any, dscore: Any) -> dict[Symbol, Any]:
        """The values of all symbols for the keys of row j."""
        key = self.builder.trunc(self.builder.add(self.start, j), ir.IntType(32))
        self.arguments |= {"score": score, "dscore": dscore, "kv_idx": splat(self.builder, key, self.integers)}
        values = dict(self.values)
        for symbol in used:
            if symbol not in values:
                values[symbol] = self.computed(symbol, values)
        return values

    def finished(self) -> Any:
        """Report an index that was out of range."""
        number = self.builder.load(self.status)
        with self.builder.if_then(self.builder.icmp_signed("!=", number, i64(0)), likely=False):
            self.builder.store(number, self.captured)
        return i64(0)

    def computed(self, symbol: Symbol, values: dict[Symbol, Any]) -> Any:
        name, operands = symbol.operation, symbol.operands
        if name in self.arguments:
            return self.arguments[name]
        if name == "constant":
            vector = {FLOAT: self.floats, INTEGER: self.integers, BOOLEAN: self.booleans}[symbol.kind]
            return Lanes(self.builder, ir.Constant(vector, ir.Undefined)).constant(operands[0]).value
        if name == "entry":
            return self._entries(operands[0], operands[1:], symbol, values)
        vectors = [Lanes(self.builder, values[x]) for x in operands]
        if name == "cast":
            return self._cast(vectors[0], operands[0].kind, symbol.kind)
        return OPERATIONS[name](*vectors).value

    def _cast(self, x: Lanes, given: str, kind: str) -> Any:
        if kind == BOOLEAN:
            return (x.equals(0) ^ x.equals(x)).value if given == INTEGER else self._differs(x)
        if given == BOOLEAN:
            words = self.builder.zext(x.value, self.integers)
            return words if kind == INTEGER else self.builder.sitofp(words, self.floats)
        if kind == FLOAT:
            return self.builder.sitofp(x.value, self.floats)
        low, high = -(2.0**31), 2.0**31 - 128  # what float32 has
        known = where(x < high, where(x > low, x, low), high)
        return self.builder.fptosi(where(x.equals(x), known, 0.0).value, self.integers)

    def _differs(self, x: Lanes) -> Any:
        return self.builder.fcmp_unordered("!=", x.value, x.constant(0.0).value)

    def _size(self, number: int, place: int) -> Any:
        """A number of an array in `captured`."""
        return self.builder.load(self.builder.gep(self.captured, [i64(self.offsets[number] + place)]))

    def _places(self, number: int, indices: Sequence[Symbol], values: dict[Symbol, Any]) -> Any:
        """The places of entries, counted in row-major order. Negative indices count from the end, as for arrays."""
        builder, total = self.builder, None
        for axis, index in enumerate(indices):
            size = splat(builder, builder.trunc(self._size(number, FIRST_SIZE + axis), ir.IntType(32)), self.integers)
            at, size = Lanes(builder, values[index]), Lanes(builder, size)
            at = where(at < 0, at + size, at)
            inside = (at >= 0) & (at < size)
            mask = builder.bitcast(inside.value, ir.IntType(self.integers.count))
            wrong = builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 2**self.integers.count - 1))
            known = builder.load(self.status)
            builder.store(builder.select(wrong, i64(number + 1), known), self.status)
            at = where(inside, at, 0)
            wide = ir.VectorType(ir.IntType(64), self.integers.count)
            at, size = (builder.zext(x.value, wide) for x in (at, size))
            total = at if total is None else builder.add(builder.mul(total, size), at)
        return ir.Constant(ir.VectorType(ir.IntType(64), self.integers.count), [0] * self.integers.count) if (
            total is None) else total  # fmt: skip

    def _entries(self, number: int, indices: Sequence[Symbol], symbol: Symbol, values: dict[Symbol, Any]) -> Any:
        """Look up entries: one where all queries have the same."""
        builder, kind = self.builder, symbol.kind
        element = {FLOAT: self.element, INTEGER: ir.IntType(32), BOOLEAN: ir.IntType(8)}[kind]
        start = builder.inttoptr(self._size(number, 0), element.as_pointer())
        places = self._places(number, indices, values)
        vector = ir.VectorType(element, self.floats.count)
        if not _varies(indices) & BY_QUERY:
            place = builder.extract_element(places, ir.IntType(32)(0))
            found = splat(builder, builder.load(builder.gep(start, [place])), vector)
        else:
            found = ir.Constant(vector, ir.Undefined)
            for w in range(vector.count):
                place = builder.extract_element(places, ir.IntType(32)(w))
                found = builder.insert_element(found, builder.load(builder.gep(start, [place])), ir.IntType(32)(w))
        return Lanes(builder, found)._compare("!=", 0).value if kind == BOOLEAN else found

    def add_gradient(self, each: Gradient, values: dict[Symbol, Any], vector: Any) -> None:
        """Add the gradients of all queries to the entries: one sum where all have the same."""
        builder = self.builder
        start = builder.inttoptr(self._size(each.number, 1), ir.DoubleType().as_pointer())
        places = self._places(each.number, each.indices, values)
        wide = vector if vector.type == self.doubles else builder.fpext(vector, self.doubles)
        uniform = not _varies(each.indices) & BY_QUERY
        for w in range(1 if uniform else self.floats.count):
            pointer = builder.gep(start, [builder.extract_element(places, ir.IntType(32)(w))])
            added = combined(builder, wide, Lanes.__add__) if uniform else (
                builder.extract_element(wide, ir.IntType(32)(w)))  # fmt: skip
            builder.store(builder.fadd(builder.load(pointer), added), pointer)


def _divide(a: Lanes, b: Lanes) -> Lanes:
    """a / b; of integers the floor, and 0 where b is 0."""
    if a.is_float:
        return a / b
    zero, minus = b.equals(0), b.equals(-1)  # neither may reach the CPU's division
    quotient = a / where(zero | minus, 1, b)
    rest = a - quotient * where(zero | minus, 1, b)
    low = (rest < 0) ^ (b < 0)
    quotient = where(low & (rest.equals(0) ^ rest.equals(rest)), quotient - 1, quotient)
    return where(zero, 0, where(minus, a.constant(0) - a, quotient))


def _floor(x: Lanes) -> Lanes:
    vector = x.value.type
    name = f"llvm.floor.v{vector.count}f{x.integer.width}"
    found = x.builder.module.globals.get(name)
    if found is None:
        found = ir.Function(x.builder.module, ir.FunctionType(vector, [vector]), name)
    return Lanes(x.builder, x.builder.call(found, [x.value]))


def _exp(x: Lanes) -> Lanes:
    """e^x also beyond what `lanes.exp` is for."""
    largest = LARGEST_EXPONENT[x.integer.width]
    half = vl.exp(where(x > largest, largest, x) * 0.5)  # its own limit is lower
    return where(x > largest, math.inf, half * half)


def _log(x: Lanes) -> Lanes:
    return where(x < 0.0, math.nan, vl.log(x))


def _tanh(x: Lanes) -> Lanes:
    """In float32 a polynomial; where a lane is too large for it, 1 - 2 / (e^(2 |x|) + 1) in another branch."""
    if not x.is_single:
        return vl.tanh(x)[0]
    builder, y, square = x.builder, vl.absolute(x), x * x
    small = x + x * square * vl.polynomial(square, TANH)
    fits = y < SMALL
    mask = builder.bitcast(fits.value, ir.IntType(x.value.type.count))
    before = builder.block
    with builder.if_then(builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 2**x.value.type.count - 1))):
        large = x.constant(1.0) - x.constant(2.0) / (vl.exp(where(y > 9.0, 9.0, y) * 2.0) + 1.0)
        mixed = where(fits, small, where(x < 0.0, large * -1.0, large)).value
        inside = builder.block
    found = builder.phi(mixed.type)
    found.add_incoming(small.value, before)
    found.add_incoming(mixed, inside)
    return Lanes(builder, found)


def _larger(a: Lanes, b: Lanes) -> Lanes:
    """NaN where either is."""
    return where(a > b, a, where(a.equals(a), b, a)) if a.is_float else where(a > b, a, b)


def _smaller(a: Lanes, b: Lanes) -> Lanes:
    return where(a < b, a, where(a.equals(a), b, a)) if a.is_float else where(a < b, a, b)


def _unequal(a: Lanes, b: Lanes) -> Lanes:
    builder = a.builder
    differ = builder.fcmp_unordered if a.is_float else builder.icmp_signed
    return Lanes(builder, differ("!=", a.value, b.value))


OPERATIONS: dict[str, Callable[..., Lanes]] = {
    "add": Lanes.__add__, "subtract": Lanes.__sub__, "multiply": Lanes.__mul__, "divide": _divide, "floor": _floor,
    "exp": _exp, "log": _log, "tanh": _tanh, "sqrt": vl.sqrt, "maximum": _larger,
    "minimum": _smaller, "where": where, "<": Lanes.__lt__, "<=": lambda a, b: b >= a, ">": Lanes.__gt__,
    ">=": Lanes.__ge__, "==": Lanes.equals, "!=": _unequal, "and": Lanes.__and__, "or": Lanes.__or__,
    "xor": Lanes.__xor__,
}  # fmt: skip

"""What a modifier computes for one score, as an expression: its `mod` is called with symbols instead of arrays.

A `Symbol` has the operators and the functions of an array, those of NumPy and of the array API that act on each element
alone. An `Expression` holds all symbols of some modifiers, each once and after those that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FLOAT, INTEGER, BOOLEAN = "float", "integer", "boolean"
DTYPES = {FLOAT: np.dtype(np.float32), INTEGER: np.dtype(np.int32), BOOLEAN: np.dtype(np.bool_)}
OF_LETTER = {"f": FLOAT, "i": INTEGER, "u": INTEGER, "b": BOOLEAN}
LARGEST_INTEGER = 2**31 - 1

# What decides where a symbol is computed: whether it differs between the queries of a panel, and between its keys.
BY_QUERY, BY_KEY = 1, 2
ARGUMENTS = {
    "score": (FLOAT, BY_QUERY | BY_KEY), "dscore": (FLOAT, BY_QUERY | BY_KEY), "b": (INTEGER, 0),
    "h": (INTEGER, BY_QUERY), "q_idx": (INTEGER, BY_QUERY), "kv_idx": (INTEGER, BY_KEY),
}  # fmt: skip


class Expression:
    """The symbols of some modifiers, in an order in which they can be computed."""

    def __init__(self) -> None:
        self.symbols: list[Symbol] = []
        self._known: dict[Any, Symbol] = {}

    def argument(self, name: str) -> Symbol:
        return self.symbol(name, (), *ARGUMENTS[name])

    def symbol(self, operation: str, operands: tuple[Any, ...], kind: str, varies: int = 0) -> Symbol:
        """The symbol of an operation, the same for the same operands; it varies as they do."""
        key = operation, kind, tuple((type(x), id(x) if isinstance(x, Symbol) else repr(x)) for x in operands)
        if key not in self._known:
            for x in operands:
                varies |= x.varies if isinstance(x, Symbol) else 0
            self._known[key] = Symbol(self, operation, operands, kind, varies)
            self.symbols.append(self._known[key])
        return self._known[key]

    def of(self, value: Any) -> Symbol:
        """A symbol as it is, a number as a constant."""
        if isinstance(value, Captured):
            value = value[()]
        if isinstance(value, Symbol):
            if value.expression is not self:
                raise TypeError("a symbol of another call was kept")
            return value
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if not isinstance(value, bool | int | float):
            raise TypeError(f"{type(value).__name__} is neither a number nor an array that is a field of the modifier")
        if type(value) is int and abs(value) > LARGEST_INTEGER:
            raise TypeError(f"{value} needs more than 32 bits")
        kind = BOOLEAN if isinstance(value, bool) else INTEGER if isinstance(value, int) else FLOAT
        return self.symbol("constant", (value,), kind)

    def used(self, *results: Symbol) -> list[Symbol]:
        """The symbols that results are made of, themselves included, in order."""
        found, left = set[int](), list(results)
        while left:
            symbol = left.pop()
            if id(symbol) not in found:
                found.add(id(symbol))
                left += [x for x in symbol.operands if isinstance(x, Symbol)]
        return [symbol for symbol in self.symbols if id(symbol) in found]


def _first(*operands: Any) -> Expression:
    found: Expression = next(x.expression for x in operands if isinstance(x, Symbol | Captured))
    return found


def _numbers(operation: str, *operands: Any) -> Symbol:
    """An operation on numbers of one kind: floating if one is."""
    expression = _first(*operands)
    symbols = [expression.of(x) for x in operands]
    kind = FLOAT if any(x.kind == FLOAT for x in symbols) else INTEGER
    return expression.symbol(operation, tuple(cast(x, kind) for x in symbols), kind)


def _floats(operation: str, *operands: Any) -> Symbol:
    expression = _first(*operands)
    return expression.symbol(operation, tuple(cast(expression.of(x), FLOAT) for x in operands), FLOAT)


def _compared(sign: str, a: Any, b: Any) -> Symbol:
    symbols = _numbers("pair", a, b).operands
    return _first(a, b).symbol(sign, symbols, BOOLEAN)


def _logical(operation: str, *operands: Any) -> Symbol:
    expression = _first(*operands)
    symbols = [expression.of(x) for x in operands]
    kind = BOOLEAN if all(x.kind == BOOLEAN for x in symbols) else INTEGER
    if any(x.kind == FLOAT for x in symbols):
        raise TypeError(f"`{operation}` needs booleans or integers")
    return expression.symbol(operation, tuple(cast(x, kind) for x in symbols), kind)


def _not(x: Any) -> Symbol:
    if _first(x).of(x).kind != BOOLEAN:
        raise TypeError("`~` needs booleans")
    return _logical("xor", x, True)


def _floor_divide(a: Any, b: Any) -> Symbol:
    quotient = _numbers("divide", a, b)
    return quotient if quotient.kind == INTEGER else _floats("floor", quotient)


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    expression = _first(condition, a, b)
    condition, a, b = cast(expression.of(condition), BOOLEAN), expression.of(a), expression.of(b)
    kind = FLOAT if FLOAT in (a.kind, b.kind) else INTEGER if INTEGER in (a.kind, b.kind) else BOOLEAN
    return expression.symbol("where", (condition, cast(a, kind), cast(b, kind)), kind)


def _power(a: Any, b: Any) -> Symbol:
    expression = _first(a, b)
    exponent, base = expression.of(b), expression.of(a)
    if exponent.operation != "constant":
        return _floats("exp", _numbers("multiply", _floats("log", base), exponent))
    number = exponent.operands[0]
    if number == 0.5:
        return _floats("sqrt", base)
    if number != int(number) or abs(number) > 64:
        return _floats("exp", _numbers("multiply", _floats("log", base), number))
    base = cast(base, FLOAT) if exponent.kind == FLOAT or number < 0 else base
    result, square, count = expression.of(1), base, abs(int(number))
    while count:
        result = _numbers("multiply", result, square) if count % 2 else result
        square, count = _numbers("multiply", square, square), count // 2
    return result if number >= 0 else _floats("divide", 1.0, result)


def _operation(rule: Callable[..., Symbol], name: str) -> Callable[..., Symbol]:
    return lambda *operands: rule(name, *operands)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _operation(_numbers, name) for name in ("add", "subtract", "multiply", "maximum", "minimum")},
    **{name: _operation(_floats, name) for name in ("exp", "log", "tanh", "sqrt", "floor")},
    "less": _operation(_compared, "<"), "less_equal": _operation(_compared, "<="),
    "greater": _operation(_compared, ">"), "greater_equal": _operation(_compared, ">="),
    "equal": _operation(_compared, "=="), "not_equal": _operation(_compared, "!="),
    "divide": _operation(_floats, "divide"), "floor_divide": _floor_divide, "pow": _power, "where": _where,
    "remainder": lambda a, b: _numbers("subtract", a, _numbers("multiply", _floor_divide(a, b), b)),
    "negative": lambda x: _numbers("subtract", 0, x), "positive": lambda x: x, "square": lambda x: x * x,
    "abs": lambda x: _numbers("maximum", x, _numbers("subtract", 0, x)),
    "clip": lambda x, low, high: _numbers("minimum", _numbers("maximum", x, low), high),
    "logical_and": _operation(_logical, "and"), "logical_or": _operation(_logical, "or"),
    "logical_xor": _operation(_logical, "xor"), "logical_not": _not,
}  # fmt: skip
ALIASES = {
    "true_divide": "divide", "power": "pow", "absolute": "abs", "bitwise_and": "logical_and", "invert": "logical_not",
    "bitwise_or": "logical_or", "bitwise_xor": "logical_xor", "bitwise_invert": "logical_not",
}  # fmt: skip
FUNCTIONS |= {alias: FUNCTIONS[name] for alias, name in ALIASES.items()}


def cast(symbol: Symbol, kind: str) -> Symbol:
    """The same number in another kind."""
    if symbol.kind == kind:
        return symbol
    if symbol.operation == "constant":
        number = {FLOAT: float, INTEGER: int, BOOLEAN: bool}[kind](symbol.operands[0])
        return symbol.expression.symbol("constant", (number,), kind)
    return symbol.expression.symbol("cast", (symbol,), kind)


class Namespace:
    """The functions of a symbol's namespace."""

    __name__ = "attnarray.symbols"  # array-api-compat compares namespaces by name
    float32, float64, int32, int64, bool = (np.dtype(x) for x in ("float32", "float64", "int32", "int64", "bool"))
    pi, e, inf, nan = np.pi, np.e, np.inf, np.nan

    def __getattr__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise TypeError(f"`{name}` is none of the functions that can be compiled: {', '.join(sorted(FUNCTIONS))}")
        return FUNCTIONS[name]

    @staticmethod
    def astype(x: Symbol, dtype: Any, **_: Any) -> Symbol:
        return x.astype(dtype)

    @staticmethod
    def asarray(x: Any, **_: Any) -> Any:
        return x


class _Operand:
    """What NumPy's functions and the array API ask of an array."""

    expression: Expression

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return Namespace()

    def __array_ufunc__(self, function: Any, method: str, *operands: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            raise TypeError(f"`numpy.{function.__name__}` is called in a form that cannot be compiled")
        return getattr(Namespace(), function.__name__)(*operands)

    def __array_function__(self, function: Any, _types: Any, args: Any, options: Any) -> Any:
        if function.__name__ == "astype":
            return Namespace.astype(*args, **options)
        return getattr(Namespace(), function.__name__)(*args, **options)

    def __bool__(self) -> bool:
        raise TypeError("`if` and `and` cannot be compiled where they depend on a score or an index: use `where`, `&`")


class Symbol(_Operand):
    """A number of each score."""

    def __init__(
        self, expression: Expression, operation: str, operands: tuple[Any, ...], kind: str, varies: int
    ) -> None:
        self.expression, self.operation, self.operands = expression, operation, operands
        self.kind, self.varies, self.dtype = kind, varies, DTYPES[kind]

    def astype(self, dtype: Any, copy: bool = True) -> Symbol:
        return cast(self, OF_LETTER[np.dtype(dtype).kind])

    __hash__ = object.__hash__


class Captured(_Operand):
    """An array among the fields of a modifier: its entries are looked up by as many indices as it has axes."""

    def __init__(self, expression: Expression, number: int, label: str, ndim: int, kind: str) -> None:
        self.expression, self.number, self.label, self.ndim, self.kind = expression, number, label, ndim, kind

    def __getitem__(self, indices: Any) -> Symbol:
        return self.expression.symbol("entry", (self.number, *self.indices(indices)), self.kind)

    def indices(self, indices: Any) -> tuple[Symbol, ...]:
        found = tuple(self.expression.of(x) for x in (indices if isinstance(indices, tuple) else (indices,)))
        if len(found) != self.ndim or any(x.kind != INTEGER for x in found):
            raise TypeError(f"`{self.label}` needs {self.ndim} integers as its indices to look up one number")
        return found


def _binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    function = FUNCTIONS[name]
    return lambda self, other: function(self, other), lambda self, other: function(other, self)


for _name, _function in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "and": "logical_and", "or": "logical_or", "xor": "logical_xor",
}.items():  # fmt: skip
    for _before, _method in zip(("__", "__r"), _binary(_function), strict=True):
        setattr(_Operand, f"{_before}{_name}__", _method)
for _name, _function in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(_Operand, f"__{_name}__", _binary(_function)[0])
for _name, _function in {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "logical_not"}.items():
    setattr(_Operand, f"__{_name}__", lambda self, function=FUNCTIONS[_function]: function(self))

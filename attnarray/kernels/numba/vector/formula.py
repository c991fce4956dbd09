"""Formulas as functions of vectors, from which `row_pass` and `panel_pass` make compiled loops.

The body of a formula is a function of `Lanes` that returns what it changes by name. Its annotations are the
kinds of its arguments; an argument annotated with a NamedTuple is a record of several, each with a kind of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attnarray.kernels.numba.runtime.call import kinds
from attnarray.kernels.numba.runtime.lazy import cgutils, intrinsic, ir, types
from attnarray.kernels.numba.vector.lanes import Lanes

# The kinds of a formula's arguments for the fields of a call (`runtime/call.py`).
FIELDS = {"Numbers": "Row", "Doubles": "Row", "Bytes": "Row", "Number": "Scalar"}
Body: TypeAlias = Callable[..., dict[str, Any]]
Values: TypeAlias = "dict[str, ir.Value]"


class Formula:
    """A body, and the kinds of its arguments by name: a field f of a record r is r.f, or f in what the body returns."""

    def __init__(self, body: Body, results: Sequence[str] = ()) -> None:
        self.body = body
        self.records: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        for name, parameter in inspect.signature(body).parameters.items():
            record = body.__globals__.get(parameter.annotation)
            if isinstance(record, type) and issubclass(record, tuple):
                self.records[name] = record
                self.kinds |= {f"{name}.{field}": FIELDS.get(kind, kind) for field, kind in kinds(record).items()}
            else:
                self.kinds[name] = parameter.annotation
        self.full_names = {name.partition(".")[2]: name for name in self.kinds if "." in name}
        self.arguments = [name for name in self._parameters() if self.kinds.get(name) not in results]

    def _parameters(self) -> list[str]:
        return list(inspect.signature(self.body).parameters)

    def named(self, *kinds: str) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind in kinds]

    def given(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """The types of arguments, those of records by field."""
        return {name: kind for name, some in self._by_name(arguments) for name, kind in self._fields(name, some)}

    def values(self, builder: ir.IRBuilder, values: Sequence[ir.Value]) -> Values:
        """The same for values."""
        pairs = self._by_name(values)
        unpacked = [
            (name, cgutils.unpack_tuple(builder, value) if name in self.records else value) for name, value in pairs
        ]
        return {name: value for name, some in unpacked for name, value in self._fields(name, some)}

    def _by_name(self, arguments: Sequence[Any]) -> list[tuple[str, Any]]:
        return list(zip(self.arguments, arguments, strict=True))

    def _fields(self, name: str, some: Any) -> list[tuple[str, Any]]:
        if name not in self.records:
            return [(name, some)]
        return [(f"{name}.{field}", one) for field, one in zip(self.records[name]._fields, some, strict=True)]

    def __call__(self, builder: ir.IRBuilder, seen: Values) -> Values:
        """Call the body on vectors; return those that it changes."""
        lanes = {name: Lanes(builder, value) for name, value in seen.items()}
        given = {
            name: self.records[name](*(lanes.get(f"{name}.{field}") for field in self.records[name]._fields))
            if name in self.records else lanes[name]
            for name in self._parameters()
        }  # fmt: skip
        changed = [pair for name, some in self.body(**given).items() for pair in self._fields(name, some)]
        return {self.full_names.get(name, name): lanes.value for name, lanes in changed}

    def compiled(
        self, leading: Sequence[str], returned: Callable[[Any], Any], emit: Callable[..., ir.Value | None]
    ) -> Any:
        """A compiled function of `leading` integers and then the arguments."""

        def run(_context: Any, *arguments: Any) -> Any:
            given = self.given(arguments[len(leading) :])

            def lower(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
                named = self.values(builder, values[len(leading) :])
                result = emit(context, builder, given, named, *values[: len(leading)])
                return context.get_dummy_value() if result is None else result

            return returned(given)(*[types.intp] * len(leading), *arguments[len(leading) :]), lower

        # Numba asks for the signature; star-arguments would be passed as one tuple.
        names = ("_context", *leading, *self.arguments)
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__name__ = self.body.__name__
        return intrinsic(run).real


def number_type(given: dict[str, Any]) -> Any:
    """The dtype of the first pointer to floating numbers: it determines the number of lanes."""
    return next(p.dtype for p in given.values() if isinstance(p, types.CPointer) and isinstance(p.dtype, types.Float))

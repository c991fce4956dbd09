"""The modifiers of a caller in the kernels of tiled attention: their code, and the arrays that they look up.

All modifiers of a call are one expression, compiled to two C functions: by Numba also where the kernels themselves are
precompiled. The code is kept for as long as the process runs, by the types of the modifiers and of their fields.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba import compiler_missing
from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention import symbols as sy
from attnarray.kernels.numba.attention.modifier_code import FIRST_SIZE, Gradient, backward_function, forward_function
from attnarray.kernels.numba.runtime.call import address

INDICES = ("b", "h", "q_idx", "kv_idx")


class Field(NamedTuple):
    """A field of a modifier: an array by its kind and number of axes, anything else by its value and type."""

    name: str
    ndim: int | None
    value: Any
    type: Any


class Modifiers:
    """The modifiers of one call, with their code and their arrays as it takes them."""

    def __init__(self, parts: tuple[Any, ...], real: Any) -> None:
        if compiler_missing():
            raise Declined(f"modifiers are compiled by Numba, and {compiler_missing()}")
        self.parts, self.real = parts, real
        fields = [[(name, value) for name, value in part._asdict().items()] for part in parts]
        keys = tuple(
            (type(part), tuple(_field(*field) for field in own)) for part, own in zip(parts, fields, strict=True)
        )
        try:
            self._code = _code(keys, real)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            raise Declined(f"a field of a modifier is neither an array nor hashable: {error}") from error
        given = [value for own in fields for _, value in own if isinstance(value, np.ndarray)]
        self.arrays = [_as_looked_up(array, label, real) for array, label in zip(given, self._code.labels, strict=True)]

    def write(self, integers: np.ndarray, gradients: list[np.ndarray] | None = None) -> np.ndarray:
        """Write the addresses of the code into the integers of a call; return those that must be kept alive."""
        captured = np.zeros(self._code.size, np.int64)
        for n, (array, offset) in enumerate(zip(self.arrays, self._code.offsets, strict=True)):
            gradient = 0 if gradients is None else address(gradients[n])
            captured[offset : offset + FIRST_SIZE + array.ndim] = address(array), gradient, *array.shape
        integers[ac.MODIFY], integers[ac.CAPTURED] = self._code.forward.address, address(captured)
        if gradients is not None:
            integers[ac.MODIFY_BACKWARD] = self._code.backward[0].address
        return captured

    def check(self, captured: np.ndarray) -> None:
        """Raise an error if an index was out of range."""
        if captured[0] != 0:
            n = int(captured[0]) - 1
            raise IndexError(
                f"`{self._code.labels[n]}` has shape {self.arrays[n].shape}, and is looked up by an index out of its "
                "range. Limit the indices, such as by `clip`."
            )

    def empty_gradients(self) -> list[np.ndarray]:
        """Zeros for the gradients of all arrays that have one, in float64; of one number for the others."""
        return [np.zeros(x.shape if x.dtype == self.real else 1) for x in self.arrays]

    def total(self, gradients: list[list[np.ndarray]]) -> tuple[Any, ...]:
        """The gradients of all modifiers, as values of their types, from those of the threads, added in order."""
        totals = [functools.reduce(np.add, some).astype(self.real) for some in zip(*gradients, strict=True)]
        found, left = [], iter(enumerate(totals))
        for part in self.parts:
            own = dict[str, Any]()
            for name, value in part._asdict().items():
                own[name] = None
                if isinstance(value, np.ndarray):
                    n, gradient = next(left)
                    own[name] = gradient if n in self._code.backward[1] else None
            found.append(type(part)(**own))
        return tuple(found)


def _field(name: str, value: Any) -> Field:
    if isinstance(value, np.ndarray):
        return Field(name, value.ndim, sy.OF_LETTER.get(value.dtype.kind), None)
    return Field(name, None, value, type(value))


def _as_looked_up(array: np.ndarray, label: str, real: Any) -> np.ndarray:
    """Contiguous, in the dtype that the code reads."""
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, real).reshape(array.shape)
    if array.dtype.kind == "b":
        return np.ascontiguousarray(array).reshape(array.shape).view(np.uint8)
    if array.size and max(abs(int(array.min())), abs(int(array.max()))) > sy.LARGEST_INTEGER:
        raise Declined(f"`{label}` has integers of more than 32 bits")
    return np.ascontiguousarray(array, np.int32).reshape(array.shape)


class _Code:
    """The C functions of modifiers of certain types and fields; each is compiled when it is first needed."""

    def __init__(self, keys: tuple[tuple[Any, tuple[Field, ...]], ...], real: Any) -> None:
        self._keys, self._real = keys, real
        arrays = [(n, field) for n, (_, fields) in enumerate(keys) for field in fields if field.ndim is not None]
        self.labels = [f"modifiers[{n}].{field.name}" for n, field in arrays]
        ends = np.cumsum([1, *(FIRST_SIZE + (field.ndim or 0) for _, field in arrays)]).tolist()
        self.offsets, self.size = ends[:-1], ends[-1]

    @functools.cached_property
    def forward(self) -> Any:
        expression, _, stages = self._stages()
        return forward_function(expression, stages[-1], self.offsets, self._real)

    @functools.cached_property
    def backward(self) -> tuple[Any, set[int]]:
        """And the numbers of the arrays that have gradients."""
        expression, parts, stages = self._stages()
        dscore, gradients = expression.argument("dscore"), list[Gradient]()
        for n, part in reversed(list(enumerate(parts))):
            given = (dscore, stages[n], *(expression.argument(name) for name in INDICES))
            dscore, found = _called(n, part, "mod_backward", lambda: _gradients(expression, part, given))  # noqa: B023
            gradients += found
        function = backward_function(expression, dscore, gradients, self.offsets, self._real)
        return function, {each.number for each in gradients}

    def _stages(self) -> tuple[sy.Expression, list[Any], list[sy.Symbol]]:
        """The modifiers with symbols for their arrays, and the score before and after each."""
        expression, parts, number = sy.Expression(), list[Any](), 0
        stages = [expression.argument("score")]
        for n, (kind, fields) in enumerate(self._keys):
            own = dict[str, Any]()
            for field in fields:
                own[field.name] = field.value
                if field.ndim is not None:
                    own[field.name] = sy.Captured(expression, number, self.labels[number], field.ndim, field.value)
                    number += 1
            part = kind(**own)
            parts.append(part)
            given = stages[-1], *(expression.argument(name) for name in INDICES)
            score = _called(n, part, "mod", lambda: expression.of(part.mod(*given)))  # noqa: B023
            if score.kind == sy.BOOLEAN:
                raise Declined(f"modifiers[{n}], a {kind.__name__}: `mod` returns a boolean")
            stages.append(sy.cast(score, sy.FLOAT))
        return expression, parts, stages


_code = functools.lru_cache(maxsize=256)(_Code)


def _gradients(expression: sy.Expression, part: Any, given: tuple[Any, ...]) -> tuple[sy.Symbol, list[Gradient]]:
    """The gradient of the score before a modifier, and those of the numbers that it looked up."""
    dscore, entries = type(part).entries(part, *given)
    found = []
    for name, indices, value in entries:
        array = getattr(part, name)
        found.append(Gradient(array.number, array.indices(indices), sy.cast(expression.of(value), sy.FLOAT)))
    return sy.cast(expression.of(dscore), sy.FLOAT), found


def _called(n: int, part: Any, method: str, call: Callable[[], Any]) -> Any:
    """Call a method with symbols; what it cannot do with them is left to array code."""
    try:
        return call()
    except Exception as error:
        reason = f"modifiers[{n}], a {type(part).__name__}: `{method}` cannot be compiled: {error}"
        raise Declined(reason) from error

"""The wording of every check on shapes, dtypes and values: what was given, what was expected, what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any

from attnarray.backend import Array, dtype_name

FLOATS = ("float16", "bfloat16", "float32", "float64")


def is_array(value: Any) -> bool:
    """Whether `value` has what every array has: a shape and a dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def shapes(**arrays: Array | None) -> str:
    """ "Shapes: query (2, 8, 5, 64), key (2, 8, 7, 32)." for the end of a message."""
    return "Shapes: " + ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items() if a is not None) + "."


def floating(**arrays: Array | None) -> str:
    """Check that all given arrays have one floating dtype; return its name. `None` entries are passed over."""
    names = {n: dtype_name(a.dtype) for n, a in arrays.items() if a is not None}
    distinct = set(names.values())
    if len(distinct) == 1 and distinct.issubset(FLOATS):
        return next(iter(distinct))
    for n, dtype in names.items():
        if dtype not in FLOATS:
            raise TypeError(
                f"`{n}` has dtype {dtype}, expected one of {', '.join(FLOATS)}. Convert it first, for example with "
                f'attnarray.asarray({n}, dtype="float32").'
            )
    listed = ", ".join(f"{n} {dtype}" for n, dtype in names.items())
    raise TypeError(f"The arrays have different dtypes: {listed}. Bring them to one dtype first.")


def boolean(name: str, array: Array) -> None:
    """Check that `array` is a boolean array."""
    if dtype_name(array.dtype) != "bool":
        raise TypeError(
            f"`{name}` has dtype {dtype_name(array.dtype)}, expected bool (True = keep). "
            f"Write it as a comparison, for example {name} != 0."
        )


def integer(name: str, array: Array) -> None:
    """Check that `array` is an array of integers."""
    if not dtype_name(array.dtype).startswith(("int", "uint")):
        raise TypeError(f"`{name}` has dtype {dtype_name(array.dtype)}, expected an integer dtype such as int64.")


def shape(name: str, array: Array, expected: tuple[int, ...], because: str) -> None:
    """Check the exact shape of `array`; `because` says where the expectation comes from."""
    if tuple(array.shape) != expected:
        raise ValueError(f"`{name}` has shape {tuple(array.shape)}, expected {expected}: {because}.")


def broadcasts(name: str, array: Array, target: tuple[int, ...], axes: str) -> None:
    """Check that `array` broadcasts, right-aligned, to `target`, whose axes are called `axes`."""
    given = tuple(array.shape)
    fits = len(given) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(given), reversed(target), strict=False)
    )
    if not fits:
        raise ValueError(
            f"`{name}` has shape {given}, which does not broadcast to {axes} = {target}. "
            "Each size, counted from the right, must be 1 or equal."
        )


def probability(name: str, value: float) -> float:
    """Check 0 <= value <= 1."""
    if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` is {value!r}, expected a probability from 0 to 1.")
    return float(value)


def positive(name: str, value: float) -> float:
    """Check for a finite number above 0."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` is {value!r}, expected a finite number above 0.")
    return float(value)


def axis(name: str, value: int, ndim: int) -> int:
    """Check that `value` names one of `ndim` axes; return it counted from 0."""
    if not isinstance(value, numbers.Integral) or not -ndim <= int(value) < ndim:
        raise ValueError(f"`{name}` is {value!r}, but the array has {ndim} axes: expected {-ndim} to {ndim - 1}.")
    return int(value) % ndim


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Check that `value` is one of the known choices."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}, expected one of {', '.join(map(repr, choices))}.")

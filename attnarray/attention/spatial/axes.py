"""Arrays (B, *size, heads, D) with one to three axes of positions, and options given for each of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attnarray import checks
from attnarray.backend import Array

T = TypeVar("T")
LAYOUTS = "(B, T, heads, D), (B, H, W, heads, D) or (B, Z, H, W, heads, D)"


def check_grid(query: Array, key: Array, value: Array, **others: Array | None) -> tuple[int, ...]:
    """Check query, key and value on one grid, and the dtypes of all arrays; return the size of the grid."""
    checks.required(query=query, key=key, value=value)
    checks.namespace(query=query, key=key, value=value, **others)
    checks.floating(query=query, key=key, value=value, **others)
    named = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim or not 4 <= query.ndim <= 6:
        raise ValueError(
            f"`query`, `key` and `value` have {query.ndim}, {key.ndim} and {value.ndim} axes; they must have equally "
            f"many: {LAYOUTS}. {named}"
        )
    if tuple(query.shape) != tuple(key.shape) or tuple(key.shape[:-1]) != tuple(value.shape[:-1]):
        raise ValueError(
            "`query`, `key` and `value` must have the same batch, positions and heads, and query and key the same D: "
            f"{LAYOUTS}. {named}"
        )
    return tuple(query.shape[1:-2])


def each_axis(name: str, value: Any, size: tuple[int, ...], check: Callable[[str, Any], T]) -> tuple[T, ...]:
    """A value for each axis of positions, each checked: one for all of them, or a tuple."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * len(size)
    if len(values) != len(size):
        raise ValueError(
            f"`{name}` is {checks.shown(value)}, but the arrays, {LAYOUTS}, have {size} positions: expected one number "
            "for each axis of positions, or one for all."
        )
    return tuple(check(name, each) for each in values)


def count(meaning: str, lowest: int = 1) -> Callable[[str, Any], int]:
    """A check for integers from `lowest` on."""
    return lambda name, value: checks.whole(name, value, lowest, 2**31 - 1, meaning)

"""A `Case`: arguments for one public function, made for any backend and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import attnarray
from attnarray import tree
from attnarray.backend import asarray

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Arguments for one public function.

    `arrays(rng)` makes the array arguments by parameter name, on the host in float64; `options` are the others.
    """

    function: str
    label: str
    arrays: Callable[[np.random.Generator], Arrays]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.function}[{self.label}]"

    @property
    def f(self) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(attnarray, self.function)
        return found

    def arguments(self, dtype: str = "float64", seed: int = 0) -> dict[str, Any]:
        """All arguments by name, the arrays in the current backend (see `use_backend`) with floats of `dtype`."""

        def convert(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            return asarray(value, dtype=dtype) if value.dtype == np.float64 else asarray(value)

        made = self.arrays(np.random.default_rng(seed))
        return {**{name: tree.map(convert, value) for name, value in made.items()}, **self.options}


def normal(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Arrays]:
    """Standard normal arrays of the given shapes."""
    return lambda rng: {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def also(
    make: Callable[[np.random.Generator], Arrays], **extra: Callable[[np.random.Generator], Any]
) -> Callable[[np.random.Generator], Arrays]:
    """The arrays of `make` and those drawn by `extra`."""
    return lambda rng: {**make(rng), **{name: draw(rng) for name, draw in extra.items()}}


def bits(*shape: int, keep: float = 0.6) -> Callable[[np.random.Generator], np.ndarray]:
    """A random boolean array that is True with probability `keep`."""
    return lambda rng: rng.random(shape) < keep

"""One or more `Case` per public triple: arguments with pairwise distinct sizes, for `attnarray check`, `bench` and the tests.

A new mechanism adds its cases here. `tests/naive/<function>.py` holds the twin that the forward is compared with.
"""

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
        return getattr(attnarray, self.function)

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


def _with(make: Callable[[np.random.Generator], Arrays], **extra: Callable[[np.random.Generator], Any]) -> Any:
    return lambda rng: {**make(rng), **{name: draw(rng) for name, draw in extra.items()}}


def _bits(*shape: int, keep: float = 0.6) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.random(shape) < keep


CASES: tuple[Case, ...] = (
    Case("softmax", "last axis", normal(x=(2, 3, 5))),
    Case("softmax", "axis 1", normal(x=(2, 3, 5)), {"axis": 1}),
    Case("softmax", "mask", _with(normal(x=(2, 3, 5)), mask=_bits(3, 5, keep=0.4))),
    Case("log_softmax", "last axis", normal(x=(2, 3, 5))),
    Case("log_softmax", "mask, axis 0", _with(normal(x=(4, 3)), mask=_bits(4, 3)), {"axis": 0}),
)

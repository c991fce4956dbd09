"""The array libraries that the tests run on: all that are installed, array-api-strict on its second device."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest

from attnarray import to_numpy, tree
from attnarray.backend import accumulator_dtype, asarray, available_backends, dtype_name, namespace_of, use_backend
from attnarray.cases import Case
from attnarray.checks import is_array

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Library(NamedTuple):
    """An array library and the device where the tests put their arrays; None is the library's own choice."""

    name: str
    device: Any = None
    dtypes: tuple[str, ...] = tuple(EPS)

    def array(self, host: Any, dtype: str | None = None) -> Any:
        """`host` in this library."""
        with use_backend(self.name):
            return asarray(host, dtype, device=self.device)

    def moved(self, values: Any) -> Any:
        """A tree with its arrays in this library; everything else stays as it is."""
        return tree.map(lambda leaf: self.array(leaf) if is_array(leaf) else leaf, values)

    def arguments(self, case: Case, dtype: str = "float64") -> dict[str, Any]:
        """The arguments of a case, with floats of `dtype`."""
        with use_backend(self.name):
            return self.moved(case.arguments(dtype))

    def cotangent(self, out: Any, seed: int = 0) -> Any:
        """A random tree like `out`; 0 where `out` is infinite, which small changes of inputs do not change."""
        rng = np.random.default_rng(seed)

        def draw(leaf: Any) -> Any:
            numbers = rng.standard_normal(leaf.shape) * np.isfinite(to_numpy(leaf).astype(np.float64))
            return self.array(np.asarray(numbers), dtype_name(leaf.dtype))

        return tree.map(draw, out)


NUMPY = Library("numpy")
STRICT = Library("array_api_strict", array_api_strict.Device("device1"), ("float64", "float32"))
JAX = Library("jax")
STATUSES = available_backends()
LIBRARIES = [STRICT if status.name == STRICT.name else Library(status.name) for status in STATUSES if status.available]
if JAX in LIBRARIES:  # without it JAX has neither float64 nor the random bits
    importlib.import_module("jax").config.update("jax_enable_x64", True)


def marks_of(library: Library) -> list[pytest.MarkDecorator]:
    names = {"cupy": ["gpu"], "torch": ["peers"], "jax": ["peers"]}.get(library.name, [])
    return [getattr(pytest.mark, name) for name in names]


def is_floating(value: Any) -> bool:
    return is_array(value) and dtype_name(value.dtype) in EPS


def accumulator_of(array: Any) -> Any:
    return accumulator_dtype(namespace_of(array), array.dtype)


def assert_close(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal shapes, and equal numbers up to `tolerance` of the largest one (of 1 where all are smaller)."""
    found, expected = (to_numpy(array).astype(np.float64) for array in (found, expected))
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_trees_close(found: Any, expected: Any, tolerance: float) -> None:
    """Leaf by leaf, whatever the containers: a Partial equals a plain pair."""
    pairs = zip(tree.flatten(found), tree.flatten(expected), strict=True)
    for (path, leaf), (_, other) in pairs:
        assert_close(leaf, other, tolerance, tree.format_path(path))

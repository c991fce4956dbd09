"""Detects unwritten memory: new arrays of kernels are filled with a number that no result may have.

As a script: the digest of the results of all cases, for processes whose `malloc` fills what compiled code allocates.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

import attnarray.kernels.numba as package
from attnarray import tree
from attnarray.cases import CASES
from attnarray.triples import find_triple
from tests.support.masked_calls import Masked, Sizes, calls

DTYPES = ("float32", "float64")
# One query of many keys; more queries than a panel has lanes, and more features than a register.
LARGER = (Sizes(queries=1, keys=70), Sizes(1, 4, 2, 33, 150, 40, 6))
TILED = ("scaled_dot_product", "attention_partial", "additive", "local", "recurrent", "graph")  # kernels with scratch
Run = Callable[[], Any]


class _Numpy:
    """NumPy, with new arrays full of one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self._filled(np.empty(*args, **kwargs))

    def empty_like(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self._filled(np.empty_like(*args, **kwargs))

    def _filled(self, array: np.ndarray) -> np.ndarray:
        array.fill({"f": self.number, "b": True}.get(array.dtype.kind, -1))
        return array


@contextmanager
def poisoned(number: float) -> Iterator[None]:
    """New arrays in the Python code of kernels hold `number`. Kernels must be compiled before, which needs NumPy."""
    modules = []
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        with suppress(ModuleNotFoundError):  # what only Numba needs, where there is none
            modules.append(importlib.import_module(found.name))
    modules = [module for module in modules if getattr(module, "np", None) is np]
    try:
        for module in modules:
            module.np = _Numpy(number)
        yield
    finally:
        for module in modules:
            module.np = np


def larger_calls(sizes: Sizes) -> dict[str, Masked]:
    return {name: call for name, call in calls(sizes).items() if name.startswith(TILED)}


def runs(dtype: str) -> dict[str, Run]:
    """The results and the gradients of every case, and of larger calls of functions with masks."""
    found: dict[str, Run] = {}
    for case in CASES:
        found[case.name] = lambda case=case: _of_case(case, dtype)
    for sizes in LARGER:
        for name, call in larger_calls(sizes).items():
            found[f"{name}, {sizes}"] = lambda call=call: call.filled(0.0, dtype).run(0.0)[:2]
    return found


def _of_case(case: Any, dtype: str) -> Any:
    triple = find_triple(case.f)
    out, ctx = triple.fwd(**case.arguments(dtype))
    return out, triple.bwd(tree.map(np.ones_like, out), ctx)


def _digest() -> str:
    found = hashlib.sha256()
    for dtype in DTYPES:
        for run in runs(dtype).values():
            for _, array in tree.flatten(run()):
                found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(np.frombuffer(np.empty(2**15, np.uint8).tobytes()[2**10 :], np.uint8)[0], _digest())
    sys.exit()

"""Calls of all layers and models as their triples are called, with new arrays for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import tree
from attnarray.cases import Case
from attnarray.triples import find_triple
from tests.support import layer_examples
from tests.support.libraries import NUMPY


class Call(NamedTuple):
    """A triple, or a layer or model with its parameters, and the arguments of a call."""

    function: Any
    given: dict[str, Any]
    dtype: str = "float64"

    def arguments(self) -> dict[str, Any]:
        """New arrays for each call."""
        given = self.given
        if isinstance(self.function, Case):
            given = self.function.arguments(self.dtype)
        elif not hasattr(self.function, "__wrapped__") and hasattr(self.function, "init"):
            given = {"params": self.function.init(aa.Philox(0), self.dtype), **given}

        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, np.ndarray):
                return leaf
            return leaf.astype(self.dtype) if leaf.dtype.kind == "f" else leaf.copy()

        return tree.map(fresh, given)

    @property
    def triple(self) -> Any:
        return find_triple(self.function.f if isinstance(self.function, Case) else self.function)


def cotangent(out: Any) -> Any:
    """The cotangent of all results; only of the logits if the others have no gradient."""
    return NUMPY.cotangent(getattr(out, "logits", out))


LAYERS = {name: Call(example.layer, example.arguments) for name, example in layer_examples.CALLS}


LAYERS |= {
    f"{name}, plain": Call(plain.layer, plain.arguments)
    for name, example in layer_examples.CALLS
    if len((plain := example.without_extras()).arguments) < len(example.arguments)
}


def arrays(node: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """All NumPy arrays within, also those of dataclasses."""
    if isinstance(node, np.ndarray):
        yield path, node
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        for field in dataclasses.fields(node):
            yield from arrays(getattr(node, field.name), f"{path}.{field.name}")
    elif isinstance(node, dict | list | tuple):
        names = node if isinstance(node, dict) else getattr(node, "_fields", range(len(node)))
        values = node.values() if isinstance(node, dict) else node
        for name, child in zip(names, values, strict=True):
            yield from arrays(child, f"{path}.{name}")

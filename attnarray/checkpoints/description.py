"""Conversion of trees to JSON and arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray import optim, tree
from attnarray.backend import Array, asarray, dtype_name
from attnarray.checkpoints.files import DTYPES
from attnarray.checks import is_array, require_array, shown
from attnarray.random import Philox

KNOWN: tuple[type, ...] = (optim.AdamWState, optim.SGDState, Philox)
DEEPEST = 100  # levels of nesting; Python's recursion limit is 1,000, and loading takes several calls per level
LARGEST_BITS = 14_000  # of an integer; Python does not read more than 4,300 digits


class Described(NamedTuple):
    """A tree as JSON values, and its arrays by name.

    Every node is a list of its kind and its content: ["dict", [[key, node], ...]], ["array", name], ["value", 3].
    """

    tree: Any
    arrays: dict[str, Array]
    types: Sequence[type] = ()  # NamedTuples and dataclasses that are not in KNOWN


def described(state: Any) -> Described:
    """Convert a tree; an error names what cannot be converted."""
    arrays: dict[str, Array] = {}
    types = {kind.__name__: kind for kind in KNOWN}
    return Described(_described(state, (), arrays, types), arrays, tuple(types.values())[len(KNOWN) :])


def _described(node: Any, path: tree.Path, arrays: dict[str, Array], types: dict[str, type]) -> Any:
    def inner(key: Any, child: Any) -> Any:
        return _described(child, (*path, key), arrays, types)

    if node is None or type(node) in (bool, float, str) or (type(node) is int and node.bit_length() <= LARGEST_BITS):
        return ["value", node]
    where = tree.format_path(path)
    if len(path) > DEEPEST:
        raise TypeError(
            f"`state` is nested more than {DEEPEST} levels deep, perhaps recursively, at {where:.80}... Flatten it."
        )
    if is_array(node):
        _check_array(node, where)
        name = where.encode("utf-8", "backslashreplace").decode()  # lone surrogates are not valid text
        while name in arrays or name == "__metadata__":  # reserved by the format; and keys may contain dots
            name += "'"
        arrays[name] = node
        return ["number" if isinstance(node, np.generic) else "array", name]
    if type(node) is dict:
        wrong = [key for key in node if type(key) not in (str, int)]
        if wrong:
            raise TypeError(f"`state` has the key {wrong[0]!r} at {where}, expected strings or integers.")
        return ["dict", [[key, inner(key, child)] for key, child in node.items()]]
    if type(node) in (list, tuple):
        return [type(node).__name__, [inner(n, child) for n, child in enumerate(node)]]
    fields = _fields(type(node))
    if fields and not isinstance(node, dict | list):
        if types.setdefault(type(node).__name__, type(node)) is not type(node):
            raise TypeError(
                f"`state` holds two classes called {type(node).__name__!r}, the second at {where}: rename one."
            )
        return ["class", type(node).__name__, [[field, inner(field, getattr(node, field))] for field in fields]]
    if type(node) is int:  # too long to print
        raise TypeError(
            f"`state` holds an integer of {node.bit_length()} bits at {where}, expected {LARGEST_BITS} at most."
        )
    raise TypeError(
        f"`state` holds {shown(node)} at {where}, a {type(node).__name__}, which cannot be saved. "
        "Give arrays, numbers, strings, or a description of it, such as the `bit_generator.state` of a NumPy generator."
    )


def _check_array(array: Any, where: str) -> None:
    """Check that an array has no data besides its numbers."""
    if not isinstance(array, np.generic):
        require_array("state" if where == tree.format_path(()) else f"state.{where}", array)
    if dtype_name(array.dtype) not in DTYPES:
        raise TypeError(f"`state` holds {shown(array)} at {where}, expected a dtype of {', '.join(DTYPES)}.")


def _fields(kind: type) -> tuple[str, ...]:
    """The field names of a NamedTuple or a dataclass; none for other classes."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(getattr(kind, "_fields", ())) if issubclass(kind, tuple) else ()


def restored(found: Described, path: Path, convert: Callable[[Any], Any] = asarray) -> Any:
    """Restore a tree, with converted arrays and classes from `found.types` and KNOWN."""
    types = {kind.__name__: kind for kind in (*KNOWN, *found.types)}

    def inner(node: Any) -> Any:
        kind, content = node[0], node[1]
        if kind == "array":
            return convert(found.arrays[content])
        if kind == "number":
            return found.arrays[content][()]
        if kind == "dict":
            return {key: inner(child) for key, child in content}
        if kind == "list":
            return [inner(child) for child in content]
        if kind == "tuple":
            return tuple([inner(child) for child in content])
        if kind == "class":
            return _object(content, {field: inner(child) for field, child in node[2]}, types, path)
        return content

    return inner(found.tree)


def _object(name: str, given: dict[str, Any], types: dict[str, type], path: Path) -> Any:
    """Make an object of the class with this name."""
    if name not in types:
        raise ValueError(
            f"`{path}` holds a {name}, a class that is not known. Give it: load_state(path, types=({name},))."
        )
    kind, names = types[name], _fields(types[name])
    if set(names) != set(given):
        raise ValueError(
            f"`{path}` holds a {name} of {', '.join(given)}, but that class has {', '.join(names)}: the class has "
            "changed."
        )
    if dataclasses.is_dataclass(kind):  # some of its fields are computed
        given = {field.name: given[field.name] for field in dataclasses.fields(kind) if field.init}
    return kind(**given)

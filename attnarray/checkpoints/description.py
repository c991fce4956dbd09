"""A tree of anything that can be saved as JSON beside its arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray import optim, tree
from attnarray.backend import Array, asarray, dtype_name
from attnarray.checks import FLOATS, is_array, shown
from attnarray.random import Philox

KNOWN: tuple[type, ...] = (optim.AdamWState, optim.SGDState, Philox)
DTYPES = (*FLOATS, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


class Described(NamedTuple):
    """A tree in lists, texts and numbers, and its arrays by the names that stand in it.

    Every place is a list of what it is and its content: ["dict", [[key, place], ...]], ["array", name], ["value", 3].
    """

    tree: Any
    arrays: dict[str, Array]


def described(state: Any) -> Described:
    """The tree in this form; an error names what has none."""
    arrays: dict[str, Array] = {}
    return Described(_described(state, (), arrays, {}), arrays)


def _described(node: Any, path: tree.Path, arrays: dict[str, Array], types: dict[str, type]) -> Any:
    def inner(key: Any, child: Any) -> Any:
        return _described(child, (*path, key), arrays, types)

    if node is None or type(node) in (bool, int, float, str):
        return ["value", node]
    if is_array(node):
        name = tree.format_path(path)
        if dtype_name(node.dtype) not in DTYPES:
            raise TypeError(f"`state` holds {shown(node)} at {name}, expected a dtype of {', '.join(DTYPES)}.")
        while name in arrays:  # keys may have dots in them
            name += "'"
        arrays[name] = node
        return ["number" if isinstance(node, np.generic) else "array", name]
    if type(node) is dict:
        wrong = [key for key in node if type(key) not in (str, int)]
        if wrong:
            raise TypeError(
                f"`state` has the key {wrong[0]!r} at {tree.format_path(path)}, expected texts or integers."
            )
        return ["dict", [[key, inner(key, child)] for key, child in node.items()]]
    if type(node) in (list, tuple):
        return [type(node).__name__, [inner(n, child) for n, child in enumerate(node)]]
    if _fields(node) and not isinstance(node, type):
        name = type(node).__name__
        if types.setdefault(name, type(node)) is not type(node):
            raise TypeError(
                f"`state` holds two classes called {name!r}, the second at {tree.format_path(path)}: rename one."
            )
        return ["class", name, [[field, inner(field, getattr(node, field))] for field in _fields(node)]]
    raise TypeError(
        f"`state` holds {shown(node)} at {tree.format_path(path)}, a {type(node).__name__}, which cannot be saved. "
        "Give arrays, numbers, texts, or what describes it, such as the `bit_generator.state` of a NumPy generator."
    )


def _fields(kind: Any) -> tuple[str, ...]:
    """The names of what a NamedTuple or a dataclass is made of; none for anything else."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    return tuple(getattr(kind, "_fields", ())) if isinstance(kind, tuple) or _is_tuple(kind) else ()


def _is_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple)


def restored(found: Described, path: Path, types: Sequence[type]) -> Any:
    """The tree again, with classes out of `types` and of those that are known."""
    return _restored(found.tree, found.arrays, path, {kind.__name__: kind for kind in (*KNOWN, *types)})


def _restored(place: Any, arrays: dict[str, Any], path: Path, types: dict[str, type]) -> Any:
    def inner(child: Any) -> Any:
        return _restored(child, arrays, path, types)

    kind, content = place[0], place[1]
    if kind == "array":
        return asarray(arrays[content])
    if kind == "number":
        return arrays[content][()]
    if kind == "dict":
        return {key: inner(child) for key, child in content}
    if kind in ("list", "tuple"):
        children = [inner(child) for child in content]
        return children if kind == "list" else tuple(children)
    if kind == "class":
        if content not in types:
            raise ValueError(
                f"`{path}` holds a {content}, a class that is not known here. Give it: load_state(path, "
                f"types=({content},))."
            )
        given = {field: inner(child) for field, child in place[2]}
        names = _fields(types[content])
        if set(names) != set(given):
            raise ValueError(
                f"`{path}` holds a {content} of {', '.join(given)}, but that class has {', '.join(names)}: the class "
                "has changed since."
            )
        return types[content](**given)
    return content

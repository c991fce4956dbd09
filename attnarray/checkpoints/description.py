"""A tree of anything that can be saved as JSON beside its arrays, and back."""

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
DEEPEST = 100  # nested in each other; Python's limit of calls is 1,000, and loading takes some for each
LARGEST_BITS = 14_000  # of an integer; Python does not read more than 4,300 digits


class Described(NamedTuple):
    """A tree in lists, texts and numbers, and its arrays by the names that stand in it.

    Every node is a list of its kind and its content: ["dict", [[key, node], ...]], ["array", name], ["value", 3].
    """

    tree: Any
    arrays: dict[str, Array]
    types: Sequence[type] = ()  # NamedTuples and dataclasses in it that are none of KNOWN


def described(state: Any) -> Described:
    """The tree in this form; an error names what has none."""
    arrays: dict[str, Array] = {}
    types = {kind.__name__: kind for kind in KNOWN}
    return Described(_described(state, (), arrays, types), arrays, tuple(types.values())[len(KNOWN) :])


def _described(node: Any, path: tree.Path, arrays: dict[str, Array], types: dict[str, type]) -> Any:
    def inner(key: Any, child: Any) -> Any:
        return _described(child, (*path, key), arrays, types)

    if node is None or type(node) in (bool, float, str) or (type(node) is int and node.bit_length() <= LARGEST_BITS):
        return ["value", node]
    place = tree.format_path(path)
    if len(path) > DEEPEST:
        raise TypeError(f"`state` is nested over {DEEPEST} times, perhaps in itself, at {place:.80}... Flatten it.")
    if is_array(node):
        _check_array(node, place)
        name = place.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no text to others
        while name in arrays or name == "__metadata__":  # the format's own name; and keys may have dots in them
            name += "'"
        arrays[name] = node
        return ["number" if isinstance(node, np.generic) else "array", name]
    if type(node) is dict:
        wrong = [key for key in node if type(key) not in (str, int)]
        if wrong:
            raise TypeError(f"`state` has the key {wrong[0]!r} at {place}, expected texts or integers.")
        return ["dict", [[key, inner(key, child)] for key, child in node.items()]]
    if type(node) in (list, tuple):
        return [type(node).__name__, [inner(n, child) for n, child in enumerate(node)]]
    fields = _fields(type(node))
    if fields and not isinstance(node, dict | list):
        if types.setdefault(type(node).__name__, type(node)) is not type(node):
            raise TypeError(
                f"`state` holds two classes called {type(node).__name__!r}, the second at {place}: rename one."
            )
        return ["class", type(node).__name__, [[field, inner(field, getattr(node, field))] for field in fields]]
    if type(node) is int:  # too long for its digits to be shown
        raise TypeError(
            f"`state` holds an integer of {node.bit_length()} bits at {place}, expected {LARGEST_BITS} at most."
        )
    raise TypeError(
        f"`state` holds {shown(node)} at {place}, a {type(node).__name__}, which cannot be saved. "
        "Give arrays, numbers, texts, or what describes it, such as the `bit_generator.state` of a NumPy generator."
    )


def _check_array(array: Any, place: str) -> None:
    """Check that an array is nothing more than its numbers."""
    if not isinstance(array, np.generic):
        require_array("state" if place == tree.format_path(()) else f"state.{place}", array)
    if dtype_name(array.dtype) not in DTYPES:
        raise TypeError(f"`state` holds {shown(array)} at {place}, expected a dtype of {', '.join(DTYPES)}.")


def _fields(kind: type) -> tuple[str, ...]:
    """The names of the fields of a NamedTuple or a dataclass; none for any other class."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(getattr(kind, "_fields", ())) if issubclass(kind, tuple) else ()


def restored(found: Described, path: Path, convert: Callable[[Any], Any] = asarray) -> Any:
    """The tree again, with arrays converted, and with classes out of `found.types` and of those that are known."""
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
    """An object of the class of that name."""
    if name not in types:
        raise ValueError(
            f"`{path}` holds a {name}, a class that is not known here. Give it: load_state(path, types=({name},))."
        )
    kind, names = types[name], _fields(types[name])
    if set(names) != set(given):
        raise ValueError(
            f"`{path}` holds a {name} of {', '.join(given)}, but that class has {', '.join(names)}: the class has "
            "changed since."
        )
    if dataclasses.is_dataclass(kind):  # which makes some of its fields of the others
        given = {field.name: given[field.name] for field in dataclasses.fields(kind) if field.init}
    return kind(**given)

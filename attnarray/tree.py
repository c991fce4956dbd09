"""Trees: nested dicts, lists, tuples and NamedTuples of arrays, such as parameters, gradients and contexts.

`None` is a leaf that means "not given" and is kept. Arrays are not copied.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from attnarray.backend import Array, dtype_name
from attnarray.checks import is_array

__all__ = ["add", "flatten", "format_path", "get", "map", "nbytes", "replace", "summary"]

Tree: TypeAlias = Any
Path: TypeAlias = tuple[str | int, ...]


def __dir__() -> list[str]:
    return __all__


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:  # noqa: A001 - the name tree.map says it best
    """Apply `function` to each leaf of `tree`, and to the corresponding leaves of `others`.

    Raises
    ------
    ValueError
        If another tree does not have the same structure; the message names the path.

    Examples
    --------
    >>> from attnarray import tree
    >>> tree.map(lambda a, b: a + b, {"w": 1, "b": [2, None]}, {"w": 10, "b": [20, None]})
    {'w': 11, 'b': [22, None]}
    """
    return _map(function, (), tree, *others)


def _map(function: Callable[..., Any], path: Path, tree: Tree, *others: Tree) -> Tree:
    if not _is_branch(tree):
        if any(_is_branch(other) for other in others):
            raise ValueError(f"The trees differ at {format_path(path)}: one has a leaf where another has a branch.")
        if len({leaf is None for leaf in (tree, *others)}) > 1:
            raise ValueError(f"The trees differ at {format_path(path)}: one has nothing where another has a leaf.")
        return None if tree is None else function(tree, *others)
    items = dict(_children(tree))
    for other in others:
        if not _is_branch(other) or dict(_children(other)).keys() != items.keys():  # in any order
            raise ValueError(f"The trees differ at {format_path(path)}: {_describe(tree)} against {_describe(other)}.")
    columns = [dict(_children(other)) for other in others]
    mapped = {key: _map(function, (*path, key), child, *(c[key] for c in columns)) for key, child in items.items()}
    return _like(tree, mapped)


def flatten(tree: Tree) -> list[tuple[Path, Any]]:
    """All leaves that are not None, each with its path.

    Examples
    --------
    >>> from attnarray import tree
    >>> tree.flatten({"layer": {"weight": 1.0, "bias": None}, "scale": 2.0})
    [(('layer', 'weight'), 1.0), (('scale',), 2.0)]
    """
    return list(_walk((), tree))


def _walk(path: Path, tree: Tree) -> Iterator[tuple[Path, Any]]:
    if not _is_branch(tree):
        if tree is not None:
            yield path, tree
        return
    for key, child in _children(tree):
        yield from _walk((*path, key), child)


def add(first: Tree, second: Tree) -> Tree:
    """The sum of trees, leaf by leaf: for the gradients of tied or reused parameters.

    Examples
    --------
    >>> from attnarray import tree
    >>> tree.add({"w": 1.0}, {"w": 2.0})
    {'w': 3.0}
    """
    return map(operator.add, first, second)


def nbytes(tree: Tree) -> int:
    """The bytes that the array leaves of `tree` hold; an array that appears twice counts once.

    Works on contexts too: `tree.nbytes(ctx)` is the memory that a forward pass saves for its backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import tree
    >>> x = np.zeros((2, 3))
    >>> tree.nbytes({"a": x, "b": x})
    48
    """
    arrays: dict[int, int] = {}
    for leaf in _arrays(tree):
        bits = "".join(filter(str.isdigit, dtype_name(leaf.dtype))) or "8"  # the one name without a number is bool
        arrays[id(leaf)] = math.prod(leaf.shape) * int(bits) // 8
    return sum(arrays.values())


def _arrays(tree: Tree) -> Iterator[Array]:
    for _, leaf in flatten(tree):
        if is_array(leaf):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _arrays([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])


def summary(tree: Tree) -> str:
    """`tree` in one line: dtypes and shapes of its arrays, the number of arrays in branches, and all bytes.

    Contexts, gradients, caches and the states of optimizers are printed like that.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import tree
    >>> tree.summary({"weight": np.zeros((2, 3)), "layers": [np.zeros(4), np.zeros(5)], "step": 7})
    'dict(weight=float64 (2, 3), layers=list of 2 arrays, step=7; 120 bytes)'
    """
    if not _is_branch(tree):
        return _short(tree)
    pairs = [_short(child) if isinstance(key, int) else f"{key}={_short(child)}" for key, child in _children(tree)]
    return f"{type(tree).__name__}({', '.join(pairs)}; {_size(nbytes(tree))})"


def _short(node: Any) -> str:
    if is_array(node):
        return f"{dtype_name(node.dtype)} {tuple(node.shape)}"
    if count := sum(1 for _ in _arrays([node])):
        return f"{type(node).__name__} of {count} array{'s' * (count > 1)}"
    text = " ".join(repr(node).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _size(count: int) -> str:
    """1234567 as "1.23 MB"."""
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.4g} {('bytes', 'kB', 'MB', 'GB')[power]}"


_shortened: set[str] = set()  # modules


def shorten_reprs() -> None:
    """Make the loaded NamedTuples of this package show their `summary` if they hold arrays."""
    for name, module in list(sys.modules.items()):
        if name.startswith("attnarray.") and name not in _shortened:
            if not getattr(module.__spec__, "_initializing", False):  # else it may define more classes
                _shortened.add(name)
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and kind.__module__ == name and hasattr(kind, "_fields"):
                    kind.__repr__ = _repr  # type: ignore[assignment]


def _repr(self: Any) -> str:
    if any(True for _ in _arrays(self)):
        return summary(self)
    fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
    return f"{type(self).__name__}({fields})"


def get(tree: Tree, path: Path) -> Any:
    """The leaf or branch at `path`."""
    for key in path:
        tree = getattr(tree, str(key)) if hasattr(tree, "_fields") else tree[key]
    return tree


def replace(tree: Tree, path: Path, value: Any) -> Tree:
    """The tree with `value` at `path`; the branches along the path are new, all others are shared.

    Examples
    --------
    >>> from attnarray import tree
    >>> tree.replace({"layer": {"weight": 1.0, "bias": None}}, ("layer", "weight"), 2.0)
    {'layer': {'weight': 2.0, 'bias': None}}
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    items = {**dict(_children(tree)), key: replace(get(tree, (key,)), rest, value)}
    return _like(tree, items)


def format_path(path: Path) -> str:
    """A path as text: ("layer", "weight") is "layer.weight"; the empty path is "the root"."""
    return ".".join(str(key) for key in path) or "the root"


def _is_branch(tree: Tree) -> bool:
    return isinstance(tree, dict | list | tuple)


def _children(tree: Tree) -> Iterator[tuple[str | int, Tree]]:
    if isinstance(tree, dict):
        yield from tree.items()
    elif hasattr(tree, "_fields"):
        yield from zip(tree._fields, tree, strict=True)
    else:
        yield from enumerate(tree)


def _like(tree: Tree, items: dict[Any, Tree]) -> Tree:
    """A branch of the type of `tree` with these items."""
    if isinstance(tree, dict):
        return items
    return type(tree)(*items.values()) if hasattr(tree, "_fields") else type(tree)(items.values())


def _describe(tree: Tree) -> str:
    if not _is_branch(tree):
        return "a leaf"
    return f"{type(tree).__name__} with {', '.join(str(key) for key, _ in _children(tree)) or 'nothing'}"

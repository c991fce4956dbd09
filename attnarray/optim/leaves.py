"""Shared code of the optimizers: updates leaf by leaf, with errors that name the path, and checks of options."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

from attnarray import checks, tree
from attnarray.backend import Array, accumulator_dtype, device_of, dtype_name, namespace_of
from attnarray.magnitude import check_number
from attnarray.numpy_arrays import check_plain

Tree: TypeAlias = tree.Tree


def stepped(p: Array, direction: Array, rate: float, decay: float) -> Array:
    """decay * p - rate * direction."""
    new = direction * -rate
    new += p if decay == 1 else p * decay
    return new


def update(
    function: Callable[..., tuple[Array, ...]], count: int, params: Tree, grads: Tree, **states: Tree
) -> list[Tree]:
    """`function` leaf by leaf, and its `count` results as trees like `params`; the first is the new parameters."""
    leaves = dict(tree.flatten(params))
    others = {"grads": grads, **states}
    columns = {name: _aligned(name, other, leaves) for name, other in others.items()}
    results = []
    for path, p in leaves.items():
        row = {name: column[path] for name, column in columns.items()}
        _check_leaf(path, p, row)
        new, *kept = function(wide(p), *(wide(array) for array in row.values()))
        xp = namespace_of(p)
        results.append((narrow(new, p), *(xp.asarray(array) for array in kept)))
    streams = [iter([result[n] for result in results]) for n in range(count)]
    return [tree.map(lambda _, stream=stream: next(stream), params) for stream in streams]


def _aligned(name: str, other: Tree, leaves: dict[tree.Path, Any]) -> dict[tree.Path, Any]:
    given = dict(tree.flatten(other))
    for path in [*leaves, *given]:
        if path not in given or path not in leaves:
            owner = "params" if path in leaves else name
            raise ValueError(
                f"`params` and `{name}` differ at {tree.format_path(path)}: only `{owner}` has an array there. "
                "Give trees of the same structure."
            )
    return given


def _check_leaf(path: tree.Path, p: Array, row: dict[str, Array]) -> None:
    where = tree.format_path(path)
    for name, array in {"params": p, **row}.items():
        check_array(name, path, array)
        if tuple(array.shape) != tuple(p.shape):
            raise ValueError(
                f"`{name}` has shape {tuple(array.shape)} at {where}, expected {tuple(p.shape)}, the shape of the "
                "parameter."
            )
    checks.floating(**{f"params.{where}": p, f"grads.{where}": row["grads"]})
    namespace_of(p, *row.values())


def check_array(name: str, path: tree.Path, leaf: Any) -> None:
    if not checks.is_array(leaf):
        raise TypeError(f"`{name}` holds {type(leaf).__name__} at {tree.format_path(path)}, expected an array.")
    check_plain(leaf, f"{name}.{tree.format_path(path)}")


def check_options(state: Any, expected: type, **rates: float) -> None:
    if not isinstance(state, expected):
        function = expected.__name__.removesuffix("State").lower()
        raise TypeError(
            f"`state` is {type(state).__name__}, expected {expected.__name__}: take it from {function}_init(params) "
            f"or from the {function} step before."
        )
    for name, value in rates.items():
        if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise ValueError(f"`{name}` is {value!r}, expected a finite number, 0 or above.")


def check_numbers(params: Tree, **computed: float) -> None:
    """Check that the dtypes in which the parameters are updated hold the numbers of a step."""
    dtypes = {dtype_name(leaf.dtype) for _, leaf in tree.flatten(params) if checks.is_array(leaf)}
    for dtype in sorted(dtypes & set(checks.FLOATS)):
        for name, number in computed.items():
            check_number(name, number, dtype, small=name != "eps")


def check_decays(**decays: float) -> None:
    for name, value in decays.items():
        if not isinstance(value, numbers.Real) or not 0 <= value < 1:
            raise ValueError(f"`{name}` is {value!r}, expected a number from 0 to below 1.")


def zeros_like(p: Array) -> Array:
    xp = namespace_of(p)
    return xp.zeros(tuple(p.shape), dtype=accumulator_dtype(xp, p.dtype), device=device_of(p))


def wide(array: Array) -> Array:
    """In the dtype that updates are computed in. NumPy's scalars become arrays, as 0-d arrays turn into scalars."""
    xp = namespace_of(array)
    return xp.astype(xp.asarray(array), accumulator_dtype(xp, array.dtype), copy=False)


def narrow(value: Array, like: Array) -> Array:
    xp = namespace_of(like)
    return xp.astype(xp.asarray(value), like.dtype, copy=False)

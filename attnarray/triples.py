"""The convention that holds the library together: `f`, `f_fwd`, `f_bwd` stand together and are found by name."""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any, NamedTuple


class Triple(NamedTuple):
    """A differentiable function with its forward that keeps a context and its backward."""

    f: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]


def triple_of(function: Callable[..., Any]) -> Triple:
    """The triple of a function (by name, in its own module) or of a layer (its methods `fwd` and `bwd`).

    Raises
    ------
    TypeError
        If there is no forward or backward beside the function.
    """
    if hasattr(function, "fwd") and hasattr(function, "bwd"):
        return Triple(function, function.fwd, function.bwd)
    name = getattr(function, "__name__", repr(function))
    module = sys.modules.get(getattr(function, "__module__", ""), None)
    beside = ChainMap(vars(module) if module else {}, getattr(function, "__globals__", {}))
    parts = {name + suffix: beside.get(name + suffix) for suffix in ("_fwd", "_bwd")}
    missing = [part for part, found in parts.items() if found is None]
    if missing:
        stem = name.removesuffix("_fwd").removesuffix("_bwd")
        hint = (
            f"Give {stem} itself."
            if stem != name and stem in beside
            else "Give a differentiable function such as attnarray.softmax, or define what is missing."
        )
        raise TypeError(
            f"{name} has no backward: expected {name}_fwd and {name}_bwd in the same module, but it lacks "
            f"{' and '.join(missing)}. {hint}"
        )
    return Triple(function, *parts.values())  # type: ignore[arg-type]


def by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call as keywords."""
    signature = inspect.signature(function)
    named = signature.bind(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


def vjp(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """Run `function` and return (out, pullback): `pullback(dout)` gives the gradients of sum(out * dout).

    Parameters
    ----------
    function : callable
        Any function of the library that has `_fwd` and `_bwd` beside it, a layer, or a function of your own with both
        in its module: see `gradcheck`.
    *args, **kwargs
        Its arguments.

    Returns
    -------
    out : array or NamedTuple of arrays
        As from `_fwd`: read-only where the context holds it too.
    pullback : callable
        dout -> NamedTuple of gradients, one field per differentiable input. May be called more than once.

    Raises
    ------
    TypeError
        If the function has no backward.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> out, pullback = aa.vjp(aa.relu, np.array([-1.0, 2.0]))
    >>> pullback(np.array([5.0, 5.0])).x.tolist()
    [0.0, 5.0]
    """
    triple = triple_of(function)
    out, ctx = triple.fwd(*args, **kwargs)

    def pullback(dout: Any, **cotangents: Any) -> Any:
        return triple.bwd(dout, ctx, **cotangents)

    return out, pullback

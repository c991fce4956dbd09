"""The convention of the library: `f`, `f_fwd`, `f_bwd` are in one module and are found by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Triple(NamedTuple):
    """A differentiable function, its forward with context, and its backward."""

    f: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]


def find_triple(function: Callable[..., Any]) -> Triple:
    """The triple of a function (by name, in its own module) or of a layer (its methods `fwd` and `bwd`).

    Raises
    ------
    TypeError
        If there is no forward or backward in the module of the function.
    """
    if hasattr(function, "fwd") and hasattr(function, "bwd"):
        return Triple(function, function.fwd, function.bwd)
    name = getattr(function, "__name__", repr(function))
    module = sys.modules.get(getattr(function, "__module__", ""), None)
    own = getattr(function, "__globals__", {})  # a notebook or `exec` may run in a namespace that is not a module
    parts = {part: getattr(module, part, own.get(part)) for part in (f"{name}_fwd", f"{name}_bwd")}
    missing = [part for part, found in parts.items() if found is None]
    if missing:
        stem = name.removesuffix("_fwd").removesuffix("_bwd")
        hint = (
            f"Give {stem} itself."
            if stem != name and hasattr(module, stem)
            else "Give a differentiable function such as attnarray.softmax, or define what is missing."
        )
        raise TypeError(
            f"{name} has no backward: expected {name}_fwd and {name}_bwd in the same module, but it lacks "
            f"{' and '.join(missing)}. {hint}"
        )
    return Triple(function, *parts.values())  # type: ignore[arg-type]


def argument_gradient(grads: Any, name: str) -> Any:
    """The gradient of the argument `name`; None without one. That of a floating mask is called that of a bias."""
    if name.endswith("_mask") and not hasattr(grads, name):
        name = {"attn_mask": "bias", "memory_mask": "memory_bias"}.get(name, name)
    return getattr(grads, name, None)


def by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call as keywords."""
    signature = inspect.signature(function)
    try:
        named = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{name}() does not take these arguments: {error}.") from None
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


def vjp(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """Run `function` and return (out, pullback): `pullback(dout)` gives the gradients of sum(out * dout).

    Parameters
    ----------
    function : callable
        Any function of the library with `_fwd` and `_bwd`, a layer, or your own function `f` with
        `f_fwd` and `f_bwd` in the same module. `f_fwd` takes the arguments of `f` and returns (out, ctx);
        `f_bwd(dout, ctx)` returns a NamedTuple, whose fields have the names of the parameters of `f` that it gives the
        gradients of.
    *args, **kwargs
        Its arguments.

    Returns
    -------
    out : array or NamedTuple of arrays
        As from `_fwd`: read-only if the context holds it, too.
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

    A triple of your own, at the top level of a script, module or notebook:

    >>> from typing import NamedTuple
    >>> class SquareGrads(NamedTuple):
    ...     x: np.ndarray
    >>> def square(x):
    ...     return x * x
    >>> def square_fwd(x):
    ...     return x * x, x
    >>> def square_bwd(dout, ctx):
    ...     return SquareGrads(2 * ctx * dout)
    >>> print(aa.gradcheck(square, np.array([1.0, 2.0])))
    square: gradients against central differences (tolerance 1e-07)
      x      2 elements  error ...  ok
    """
    triple = find_triple(function)
    out, ctx = triple.fwd(*args, **kwargs)

    def pullback(dout: Any, **cotangents: Any) -> Any:
        return triple.bwd(dout, ctx, **cotangents)

    return out, pullback

r"""Functions on JAX's arrays, for `grad` and `jit`: the forward and the backward of this package as callbacks.

`bridges.jax.NAME` is the function NAME of this package for JAX's arrays on a CPU; `differentiable` makes one of any
function with `_fwd` and `_bwd`. Shapes are checked when JAX traces. `vmap` calls once for each element.

The backward runs the forward again, since a context cannot pass through a traced program; forward mode is an error of
JAX.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> from attnarray.bridges import jax as bridge
>>> x = jnp.ones((2, 3))
>>> jax.jit(jax.grad(lambda x: (bridge.softmax(x) ** 2).sum()))(x).shape
(2, 3)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import attnarray
from attnarray import tree
from attnarray.triples import argument_gradient, find_triple

try:
    import jax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("attnarray.bridges.jax needs JAX, which is not installed: pip install jax") from error


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which has `_fwd` and `_bwd` in its module, for JAX's arrays.

    Parameters
    ----------
    function : callable
        A function such as `attnarray.softmax` or one of your own.

    Returns
    -------
    callable
        Takes the arguments of `function` with JAX's arrays, also inside of trees. All other arguments are static.

    Raises
    ------
    TypeError
        If `function` has no backward; errors of `function` come when JAX traces.

    Examples
    --------
    >>> import jax.numpy as jnp, attnarray as aa
    >>> from attnarray.bridges import jax as bridge
    >>> bridge.differentiable(aa.silu)(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    triple = find_triple(function)

    @functools.wraps(function)
    def on_arrays(*args: Any, **keywords: Any) -> Any:
        given = inspect.signature(function).bind(*args, **keywords).arguments
        _check_bits(given)
        arrays = {name: value for name, value in given.items() if _has_arrays(value)}
        static = {name: value for name, value in given.items() if name not in arrays}

        def forward(arrays: Any) -> Any:
            return tree.map(np.asarray, triple.f(**_numpy(arrays), **static))

        def backward(arrays: Any, dout: Any) -> Any:
            grads = triple.bwd(_numpy(dout), triple.fwd(**_numpy(arrays), **static)[1])
            return {name: _like(value, argument_gradient(grads, name)) for name, value in arrays.items()}

        @jax.custom_vjp
        def call(arrays: Any) -> Any:
            return jax.pure_callback(forward, _result_shapes(forward, arrays), arrays, vmap_method="sequential")

        def pull(arrays: Any, dout: Any) -> tuple[Any]:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
            grads = jax.pure_callback(backward, shapes, arrays, dout, vmap_method="sequential")
            return (jax.tree.map(_cotangent, arrays, grads),)

        call.defvjp(lambda arrays: (call(arrays), arrays), pull)
        return call(arrays)

    return on_arrays


def _check_bits(given: dict[str, Any]) -> None:
    """Check that JAX does not narrow NumPy's arrays, as it does silently."""
    if jax.config.jax_enable_x64:
        return
    for name, value in given.items():
        for leaf in jax.tree.leaves(value):
            if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype == np.float64:
                raise TypeError(
                    f"`{name}` is float64, but JAX runs without 64 bits and would compute in float32. Enable them by "
                    f'jax.config.update("jax_enable_x64", True) before the first array, or give {name} in float32.'
                )


def _has_arrays(value: Any) -> bool:
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def _numpy(arrays: Any) -> Any:
    return jax.tree.map(np.asarray, arrays)


def _like(value: Any, grad: Any) -> Any:
    """The gradient in the structure of the argument, 0 where there is none."""
    if grad is None:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), value)
    return jax.tree.map(lambda x, g: np.asarray(g, dtype=x.dtype), value, grad)


def _cotangent(array: Any, grad: Any) -> Any:
    """JAX takes cotangents of integers as arrays of float0."""
    return grad if jax.numpy.issubdtype(array.dtype, jax.numpy.floating) else np.zeros(array.shape, jax.dtypes.float0)


def _result_shapes(forward: Callable[..., Any], arrays: Any) -> Any:
    """The shapes and dtypes of the result, found with zeros; so errors come when JAX traces."""
    out = forward(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arrays))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out)


def __getattr__(name: str) -> Any:
    if name not in attnarray.TRIPLES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = differentiable(getattr(attnarray, name))
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *attnarray.TRIPLES])

"""Check a hand-derived backward against differences of the forward, in float64, element by element."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from attnarray import tree
from attnarray.backend import Array, Namespace, device_of, dtype_name, namespace_of, to_numpy
from attnarray.checks import FLOATS, is_array
from attnarray.triples import triple_of

# Five-point stencil: f'(x) = (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h, exact for polynomials up to degree 4.
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
# A gradient whose largest entry is below this is compared absolutely: differences do not resolve it better.
SMALLEST_SCALE = 1e-3
# Of the first step, where that one finds a difference.
SECOND_STEP = 0.01


class InputCheck(NamedTuple):
    """The comparison for one input: `error` is the largest difference, relative to the gradient's largest entry."""

    name: str
    elements: int
    error: float
    ok: bool


class GradcheckReport(NamedTuple):
    """All comparisons of one `gradcheck`; true when every one holds."""

    function: str
    inputs: tuple[InputCheck, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.inputs)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{self.function}: gradients against central differences (tolerance {self.tolerance:.0e})"]
        for check in self.inputs:
            verdict = "ok" if check.ok else "WRONG"
            lines.append(f"  {check.name:<24} {check.elements:>6} elements  error {check.error:.1e}  {verdict}")
        return "\n".join(lines)


def gradcheck(
    function: Callable[..., Any],
    *args: Any,
    wrt: Sequence[str] | None = None,
    step: float = 1e-3,
    tolerance: float = 1e-7,
    max_elements: int = 512,
    seed: int = 0,
    **kwargs: Any,
) -> GradcheckReport:
    r"""Compare every gradient of `function` with fourth-order central differences of its forward, in float64.

    .. math::
        \frac{\partial L}{\partial x} \approx \frac{L(x - 2h) - 8 L(x - h) + 8 L(x + h) - L(x + 2h)}{12 h},
        \qquad L = \sum \mathrm{out} \cdot \mathrm{dout}, \quad \mathrm{dout} \sim N(0, 1)

    Parameters
    ----------
    function : callable
        A function with `_fwd` and `_bwd` beside it, or a layer. Your own triples work too.
    *args, **kwargs
        Its arguments. Floating arrays, also inside dicts, are taken to float64; they are not changed.
    wrt : sequence of str, optional
        The parameter names to check; all that the backward returns a gradient for by default.
    step : float
        h. Points closer than 2 h to a kink (ReLU at 0) give a wrong difference, not a wrong gradient: entries that
        disagree are looked at once more, with h / 100.
    tolerance : float
        The largest error allowed, relative to the largest entry of the gradient.
    max_elements : int
        Inputs with more elements are sampled at so many places.
    seed : int
        For dout and the sampling.

    Returns
    -------
    GradcheckReport
        True in a condition when all gradients hold; printed, it is a table.

    Raises
    ------
    TypeError
        If the function has no backward.
    ValueError
        If `wrt` names no differentiable input that was given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> bool(aa.gradcheck(aa.silu, np.array([[0.3, -1.2], [2.0, 0.1]])))
    True
    """
    triple = triple_of(function)
    arguments = {name: _to_float64(value) for name, value in _by_name(triple.f, args, kwargs).items()}
    rng = np.random.default_rng(seed)
    out, ctx = triple.fwd(**arguments)
    cotangent = tree.map(lambda leaf: _cotangent_like(leaf, rng), out)
    grads = triple.bwd(cotangent, ctx)
    found = {name: grad for name, grad in zip(grads._fields, grads, strict=True) if grad is not None}
    names = list(found) if wrt is None else [wrt] if isinstance(wrt, str) else list(wrt)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"`wrt` names {unknown}, but gradients were returned for {list(found)}.")
    missing = [name for name in grads._fields if name not in found and _is_floating(arguments.get(name))]
    if missing and wrt is None:
        raise ValueError(f"{triple.bwd.__name__} returns no gradient for {missing}, which were given.")

    def loss(changed: dict[str, Any]) -> float:
        outs = triple.f(**changed)
        return sum(
            _dot(leaf, weight)
            for (_, leaf), (_, weight) in zip(tree.flatten(outs), tree.flatten(cotangent), strict=True)
        )

    checks = []
    for name in names:
        for path, grad in tree.flatten(found[name]):
            label = ".".join([name, *map(str, path)])
            expected = tuple(tree.get(arguments[name], path).shape)
            if tuple(grad.shape) != expected:
                raise ValueError(f"The gradient of `{label}` has shape {tuple(grad.shape)}, expected {expected}.")
            analytic = to_numpy(grad).astype(np.float64).reshape(-1)
            places = _places(analytic.size, max_elements, rng)
            differences = functools.partial(_differences, loss, arguments, name, path)
            error = _largest_error(differences, analytic, places, step, tolerance)
            checks.append(InputCheck(label, len(places), error, bool(error <= tolerance)))
    return GradcheckReport(getattr(function, "__name__", type(function).__name__), tuple(checks), tolerance)


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call as keywords."""
    signature = inspect.signature(function)
    named = signature.bind(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


def _places(size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(size) if size <= most else rng.choice(size, most, replace=False)


def _largest_error(
    differences: Callable[[np.ndarray, float], np.ndarray],
    analytic: np.ndarray,
    places: np.ndarray,
    step: float,
    tolerance: float,
) -> float:
    """The largest distance of a gradient from its differences, relative to the largest of these.

    Where the two disagree, a smaller step decides: a kink that lay within the first one is then mostly out of reach.
    """
    numeric = differences(places, step)

    def errors() -> np.ndarray:
        scale = max(float(np.max(np.abs(numeric), initial=0.0)), SMALLEST_SCALE)
        return np.asarray(np.abs(analytic[places] - numeric) / scale)

    wrong = ~(errors() <= tolerance)
    if np.any(wrong):
        numeric[wrong] = differences(places[wrong], SECOND_STEP * step)
    return float(np.max(errors(), initial=0.0))


def _differences(
    loss: Callable[[dict[str, Any]], float],
    arguments: dict[str, Any],
    name: str,
    path: tree.Path,
    places: np.ndarray,
    step: float,
) -> np.ndarray:
    """The derivative of the loss with respect to some entries of a leaf."""
    leaf = tree.get(arguments[name], path)
    xp = namespace_of(leaf)
    host = np.array(to_numpy(leaf), dtype=np.float64)
    flat = host.reshape(-1)
    numeric = np.zeros(len(places))
    for n, place in enumerate(places):
        value = flat[place]
        for offset, weight in STENCIL:
            flat[place] = value + offset * step
            changed = _replace(arguments[name], path, _like(xp, host, leaf))
            numeric[n] += weight / step * loss({**arguments, name: changed})
        flat[place] = value
    return numeric


def _like(xp: Namespace, host: np.ndarray, leaf: Array) -> Array:
    return xp.asarray(host.copy(), device=device_of(leaf))


def _replace(node: Any, path: tree.Path, value: Array) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, dict):
        return {**node, key: _replace(node[key], rest, value)}
    items = list(node)
    place = node._fields.index(key) if hasattr(node, "_fields") else int(key)
    items[place] = _replace(items[place], rest, value)
    return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)


def _to_float64(value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return tree.map(_to_float64, value) if any(is_array(leaf) for leaf in _leaves(value)) else value
    if is_array(value) and dtype_name(value.dtype) in FLOATS:
        xp = namespace_of(value)
        return xp.astype(value, xp.float64)
    return value


def _is_floating(value: Any) -> bool:
    return any(is_array(leaf) and dtype_name(leaf.dtype) in FLOATS for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    return (leaf for _, leaf in tree.flatten(value))


def _cotangent_like(leaf: Array, rng: np.random.Generator) -> Array:
    # The lse of a fully masked row is -inf and constant; a NaN must be seen.
    host = rng.standard_normal(leaf.shape) * ~np.isinf(to_numpy(leaf))
    xp = namespace_of(leaf)
    return xp.asarray(host, dtype=leaf.dtype, device=device_of(leaf))


def _dot(leaf: Array, weight: Array) -> float:
    values = to_numpy(leaf).astype(np.float64)
    return float(np.sum(np.where(np.isinf(values), 0.0, values) * to_numpy(weight)))

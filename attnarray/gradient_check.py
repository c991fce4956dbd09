"""Check a hand-derived backward against central differences of the forward, in float64, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks, tree
from attnarray.backend import Array, device_of, dtype_name, library_name, namespace_of, to_numpy
from attnarray.checks import FLOATS, is_array
from attnarray.memory_layout import overlaps, with_layout
from attnarray.triples import Triple, by_name, find_triple

# Five-point stencil: f'(x) = (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h, exact for polynomials up to degree 4.
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
# Smaller gradients, by their largest entry, are compared absolutely, as differences do not resolve them. With small
# outputs differences do: there the limit is the error of a difference due to so many roundings of the loss.
SMALLEST_SCALE, ROUNDINGS = 1e-3, 1000
# Relative to the first step, for entries that disagree.
SECOND_STEP = 0.01


class InputCheck(NamedTuple):
    """The comparison for one input: `error` is the largest difference, relative to the gradient's largest entry.

    `elements` of its `size` were compared.
    """

    name: str
    elements: int
    error: float
    ok: bool
    size: int


class GradcheckReport(NamedTuple):
    """All comparisons of one `gradcheck`; true if all agree."""

    function: str
    inputs: tuple[InputCheck, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.inputs)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.inputs), default=0)
        lines = [f"{self.function}: gradients against central differences (tolerance {self.tolerance:.0e})"]
        for check in self.inputs:
            verdict = ("ok" if check.ok else "WRONG") if check.size else "empty, nothing to check"
            count = f"{check.elements:>6} elements" + (f" of {check.size}" if check.elements < check.size else "")
            lines.append(f"  {check.name:<{width}} {count}  error {check.error:.1e}  {verdict}")
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
        A function with `_fwd` and `_bwd` in the same module, or a layer; also your own, see `vjp`. Or a modifier of
        `attend` alone: its arguments are then scores (B, H, T, S) and optionally `q_offset`.
    *args, **kwargs
        Its arguments. Floating arrays, also inside dicts, are converted to float64; they are not changed. NumPy arrays
        keep their layout in memory, so that the function is checked for that layout; an array whose elements share
        memory, as those of a broadcast one do, is copied while one of them is perturbed.
    wrt : sequence of str, optional
        The parameter names to check; all that the backward returns a gradient for by default.
    step : float
        h. Points closer than 2 h to a kink (ReLU at 0) give a wrong difference, not a wrong gradient: entries that
        disagree are compared again, with h / 100.
    tolerance : float
        The largest error allowed, relative to the largest entry of the gradient.
    max_elements : int
        Inputs with more elements are checked at so many random ones.
    seed : int
        For dout and the sampling.

    Returns
    -------
    GradcheckReport
        True in a condition if all gradients agree; printed, it is a table.

    Raises
    ------
    TypeError
        If the function has no backward, or a gradient is not of the dtype and library of its input.
    ValueError
        If there is nothing to compare: `wrt` names no differentiable input that was given, all inputs are empty or no
        output is finite; if a gradient is missing or not of the shape of its input; if the function changes its
        arguments or the cotangent in place; or if an option is out of its range.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> bool(aa.gradcheck(aa.silu, np.array([[0.3, -1.2], [2.0, 0.1]])))
    True
    >>> print(aa.gradcheck(aa.KERPLE(np.ones(2), np.ones(2)), np.random.default_rng(0).standard_normal((1, 2, 3, 4))))
    KERPLE: gradients against central differences (tolerance 1e-07)
      scores          24 elements  error ...  ok
      modifier.r1      2 elements  error ...  ok
      modifier.r2      2 elements  error ...  ok
    """
    step, tolerance = checks.positive("step", step), checks.positive("tolerance", tolerance)
    max_elements = checks.whole("max_elements", max_elements, 1, 2**63, "how many elements of an input are compared")
    is_modifier = isinstance(function, tuple) and hasattr(function, "apply")
    triple = _modifier_triple(function) if is_modifier else find_triple(function)
    arguments = {name: _to_float64(value) for name, value in by_name(triple.f, args, kwargs).items()}
    arguments |= {"modifier": tree.map(_to_float64, function)} if is_modifier else {}
    rng = np.random.default_rng(seed)
    loss, grads = _analytic(triple, arguments, rng)
    found = _found(triple.bwd.__name__, grads, arguments, wrt)
    results = []
    for name, grad in found.items():
        for path, leaf in tree.flatten(grad):
            label = tree.format_path((name, *path))
            _check_step(label, tree.get(arguments[name], path), step)
            analytic = np.asarray(to_numpy(leaf)).reshape(-1)
            indices = _sampled_indices(analytic.size, max_elements, rng)
            differences = functools.partial(_differences, loss, arguments, name, path)
            error = _largest_error(differences, loss, analytic, indices, step, tolerance)
            results.append(InputCheck(label, len(indices), error, bool(error <= tolerance), analytic.size))
    if not any(check.size for check in results):
        raise ValueError(f"Nothing was compared: {[check.name for check in results]} have no elements.")
    return GradcheckReport(getattr(function, "__name__", type(function).__name__), tuple(results), tolerance)


class _ModifierGrads(NamedTuple):
    scores: Any
    modifier: Any


def _modifier_triple(modifier: Any) -> Triple:
    """The triple of a modifier of `attend` by itself."""
    kind = type(modifier).__name__
    if not callable(getattr(modifier, "backward", None)):
        missing = "mod_backward" if getattr(modifier, "COMPILED", False) else "backward"
        raise TypeError(f"{kind} has no method `{missing}`. attnarray.attend says what it takes.")

    def fwd(scores: Any, q_offset: int = 0, modifier: Any = modifier) -> tuple[Any, Any]:
        checks.required(scores=scores)
        if scores.ndim != 4:
            raise ValueError(f"`scores` has shape {tuple(scores.shape)}, expected (B, H, T, S).")
        xp = namespace_of(scores)
        b, h, q_idx, kv_idx = (
            xp.reshape(xp.arange(size, device=device_of(scores)), tuple(size if n == axis else 1 for n in range(4)))
            for axis, size in enumerate(scores.shape)
        )
        indices = b, h, q_idx + q_offset, kv_idx
        return modifier.apply(scores, *indices), (modifier, scores, indices)

    def bwd(dout: Any, ctx: Any) -> _ModifierGrads:
        own, scores, indices = ctx
        return _ModifierGrads(*own.backward(dout, scores, *indices))

    def f(scores: Any, q_offset: int = 0, modifier: Any = modifier) -> Any:
        return fwd(scores, q_offset, modifier)[0]

    f.__name__, bwd.__name__ = kind, f"{kind}.backward"
    return Triple(f, fwd, bwd)


class _Loss:
    """sum out * dout of a function; `size` is the largest sum of the absolute terms so far."""

    def __init__(self, function: Callable[..., Any], dout: list[np.ndarray]) -> None:
        self.function, self.dout, self.size = function, dout, 0.0

    def __call__(self, arguments: dict[str, Any]) -> float:
        outs = [leaf for _, leaf in tree.flatten(self.function(**arguments))]
        terms = [_terms(leaf, weight) for leaf, weight in zip(outs, self.dout, strict=True) if np.any(weight)]
        self.size = max(self.size, sum(float(np.sum(np.abs(term))) for term in terms))
        return sum(float(np.sum(term)) for term in terms)


def _terms(leaf: Array, weight: np.ndarray) -> np.ndarray:
    values = to_numpy(leaf).astype(np.float64)
    return np.asarray(np.where(np.isinf(values), 0.0, values) * weight)


def _analytic(triple: Triple, arguments: dict[str, Any], rng: np.random.Generator) -> tuple[_Loss, Any]:
    """The loss for a random cotangent, and the gradients that the backward returns for it."""
    before = [(path, np.array(to_numpy(leaf))) for path, leaf in tree.flatten(arguments) if _is_floating(leaf)]
    out, ctx = triple.fwd(**arguments)
    cotangent = tree.map(lambda leaf: _cotangent_like(leaf, rng), out)
    dout = [np.array(to_numpy(leaf)) for _, leaf in tree.flatten(cotangent)]
    if not any(np.any(weight) for weight in dout):
        raise ValueError("Nothing can be compared: no output is a finite floating number, which a gradient belongs to.")
    grads = triple.bwd(cotangent, ctx)
    for path, kept in before:
        if not np.array_equal(to_numpy(tree.get(arguments, path)), kept, equal_nan=True):
            changed = tree.format_path(path)
            raise ValueError(f"The function changes its argument `{changed}` in place. Let it work on a copy.")
    for (_, leaf), kept in zip(tree.flatten(cotangent), dout, strict=True):
        if not np.array_equal(to_numpy(leaf), kept):
            raise ValueError(f"{triple.bwd.__name__} changes the cotangent in place. Let it work on a copy.")
    return _Loss(triple.f, dout), grads


def _found(backward: str, grads: Any, arguments: dict[str, Any], wrt: Sequence[str] | None) -> dict[str, Any]:
    """The gradients to compare, by name: checked to be those of all floating arguments, with their types and shapes."""
    if not hasattr(grads, "_fields"):
        raise TypeError(
            f"{backward} returns {checks.shown(grads)}, expected a NamedTuple with one field for each gradient, named "
            f"as the parameter that it belongs to, one of {list(arguments)}."
        )
    found = {name: grad for name, grad in zip(grads._fields, grads, strict=True) if grad is not None}
    names = list(found if wrt is None else [wrt] if isinstance(wrt, str) else wrt)
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        named = f"names {unknown}" if names else f"is {wrt}"
        raise ValueError(f"`wrt` {named}, but gradients were returned for {list(found)}.")
    chosen = {name: found[name] for name in names}
    floats = {path: leaf for path, leaf in tree.flatten(arguments) if _is_floating(leaf)}
    returned = {path for path, _ in tree.flatten(chosen)}
    expected = names if wrt is not None else grads._fields
    missing = [tree.format_path(path) for path in floats if path[0] in expected and path not in returned]
    if missing:
        raise ValueError(f"{backward} returns no gradient for {missing}, which were given.")
    for path, grad in tree.flatten(chosen):
        label = tree.format_path(path)
        if path not in floats:
            raise ValueError(
                f"{backward} returns a gradient for `{label}`, but no floating array was given by that name. Pass the "
                "array that it belongs to as that argument."
            )
        _check_gradient(label, grad, floats[path])
    return chosen


def _check_gradient(label: str, grad: Any, leaf: Array) -> None:
    """Check that a gradient has the library, dtype and shape of its input."""
    if not is_array(grad) or library_name(grad) != library_name(leaf):
        raise TypeError(f"The gradient of `{label}` is of {type(grad)}, expected an array of {library_name(leaf)}.")
    if dtype_name(grad.dtype) != dtype_name(leaf.dtype):
        given, expected = dtype_name(grad.dtype), dtype_name(leaf.dtype)
        raise TypeError(f"The gradient of `{label}` has dtype {given}, expected {expected}, that of the input.")
    if tuple(grad.shape) != tuple(leaf.shape):
        raise ValueError(
            f"The gradient of `{label}` has shape {tuple(grad.shape)}, expected {tuple(leaf.shape)}, that of the input."
        )


def _check_step(label: str, leaf: Array, step: float) -> None:
    """Check that the step changes every number."""
    host = to_numpy(leaf)
    lost = np.isfinite(host) & (host + step == host)
    if np.any(lost):
        raise ValueError(
            f"`step` is {step}, which is lost in the rounding of {host[lost][0]} in `{label}`: give a larger step, or "
            "smaller numbers."
        )


def _sampled_indices(size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(size) if size <= most else rng.choice(size, most, replace=False)


def _largest_error(
    differences: Callable[[np.ndarray, float], np.ndarray],
    loss: _Loss,
    analytic: np.ndarray,
    indices: np.ndarray,
    step: float,
    tolerance: float,
) -> float:
    """The largest distance of a gradient from its differences, relative to the largest of these.

    Where the two disagree, a smaller step decides, which mostly avoids a kink within the first one.
    """
    numeric = differences(indices, step)
    rounding = ROUNDINGS * np.finfo(np.float64).eps * loss.size / step
    smallest = max(min(SMALLEST_SCALE, rounding / tolerance), float(np.finfo(np.float64).tiny))

    def errors() -> np.ndarray:
        scale = max(float(np.max(np.abs(numeric), initial=0.0)), smallest)
        return np.asarray(np.abs(analytic[indices] - numeric) / scale)

    wrong = ~(errors() <= tolerance)
    if np.any(wrong):
        numeric[wrong] = differences(indices[wrong], SECOND_STEP * step)
    return float(np.max(errors(), initial=0.0))


def _differences(
    loss: Callable[[dict[str, Any]], float],
    arguments: dict[str, Any],
    name: str,
    path: tree.Path,
    indices: np.ndarray,
    step: float,
) -> np.ndarray:
    """The derivative of the loss with respect to some entries of a leaf, counted in row-major order."""
    leaf = tree.get(arguments[name], path)
    host = np.array(to_numpy(leaf), dtype=np.float64, order="C")
    flat = host.reshape(-1)  # a view, since it is C-contiguous
    numeric = np.zeros(len(indices))
    for n, index in enumerate(indices):
        value = flat[index]
        for offset, weight in STENCIL:
            flat[index] = value + offset * step
            changed = tree.replace(arguments[name], path, _like(host, leaf))
            numeric[n] += weight / step * loss({**arguments, name: changed})
        flat[index] = value
    return numeric


def _like(host: np.ndarray, leaf: Any) -> Any:
    """The numbers of `host` in an array of the library, device and layout of `leaf`."""
    if library_name(leaf) != "numpy":
        return namespace_of(leaf).asarray(host.copy(), device=device_of(leaf))
    return host.copy() if overlaps(leaf) else with_layout(leaf, host)


def _to_float64(value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return tree.map(_to_float64, value) if any(is_array(leaf) for _, leaf in tree.flatten(value)) else value
    if not _is_floating(value):
        return value
    if isinstance(value, np.generic):  # an option may be one, but not an array
        return np.float64(value)
    xp = namespace_of(value)
    return xp.astype(value, xp.float64) if library_name(value) != "numpy" else with_layout(np.asarray(value), value)


def _is_floating(value: Any) -> bool:
    return is_array(value) and dtype_name(value.dtype) in FLOATS


def _cotangent_like(leaf: Array, rng: np.random.Generator) -> Array:
    # The lse of a fully masked row is -inf and constant; a NaN must be reported. Integer outputs have no gradient.
    values = to_numpy(leaf)
    host = rng.standard_normal(values.shape) * (~np.isinf(values) if _is_floating(leaf) else 0.0)
    xp = namespace_of(leaf)
    return xp.asarray(host, dtype=leaf.dtype, device=device_of(leaf))

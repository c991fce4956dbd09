"""Score modifiers written for one score: compiled into the kernels, array code everywhere else."""

from __future__ import annotations

from typing import Any, TypeVar

from attnarray import checks
from attnarray.attention.parts import check_result, several
from attnarray.backend import Array, device_of, dtype_name, namespace_of, scatter_add

T = TypeVar("T")


def compiled_modifier(kind: type[T]) -> type[T]:
    r"""Decorate a modifier of `attend` that is written for one score, so that kernels compile it.

    A NamedTuple with two methods, and arrays and constants as its fields:

    - `mod(self, score, b, h, q_idx, kv_idx)` returns the new score of one pair of query and key. It looks numbers of
      its arrays up by as many indices as they have axes: `self.slope[h]`.
    - `mod_backward(self, dscore, score, b, h, q_idx, kv_idx)` returns the gradient of the score, and as a value of the
      same type for each array the indices of the number that was looked up and its gradient: `Distance((h, dslope))`;
      a list of such pairs for several. Gradients of the same number are summed. A modifier without gradients of its own
      returns `self`.

    .. math:: ds = d\tilde s\, \frac{\partial m}{\partial s}, \qquad
        da_n = \sum_{(i, j)\ \text{that look up}\ a_n} d\tilde s_{ij}\, \frac{\partial m_{ij}}{\partial a_n}

    Both methods use operators and functions that act on each element alone, of NumPy or of `namespace_of(score)`: `+`,
    `//`, `<`, `&`, `abs`, `where`, `exp`, `log`, `tanh`, `sqrt`, `minimum`, `clip` ... and `where` for a condition.
    With dot products and a softmax on NumPy arrays, Numba compiles them for a few tenths of a second when they are
    first used, and they run on scores that are in the cache, forward and backward. Everywhere else the same
    methods run on blocks of scores, as array code; `explain` says which, and why.

    Constants are compiled in; a number that changes from call to call belongs in an array of shape (). The result is a
    modifier as `attend` takes them: it has `apply` and `backward`.

    Parameters
    ----------
    kind : a NamedTuple class

    Raises
    ------
    TypeError
        If the class is no NamedTuple, or has no method `mod`.

    References
    ----------
    Score modifiers in this form: Dong et al., "Flex attention", 2024, arXiv:2412.05496.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from typing import NamedTuple
    >>> @aa.compiled_modifier
    ... class CappedDistance(NamedTuple):
    ...     slope: np.ndarray  # (H,)
    ...     def mod(self, score, b, h, q_idx, kv_idx):
    ...         return 5.0 * np.tanh(score / 5.0) - self.slope[h] * abs(q_idx - kv_idx)
    ...     def mod_backward(self, dscore, score, b, h, q_idx, kv_idx):
    ...         dslope = -dscore * abs(q_idx - kv_idx)
    ...         return dscore * (1.0 - np.tanh(score / 5.0) ** 2), CappedDistance((h, dslope))
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> modifier = CappedDistance(np.array([0.5, 0.25]))
    >>> aa.attend(q, k, v, modifiers=[modifier], is_causal=True).shape
    (1, 2, 4, 8)
    >>> bool(aa.gradcheck(aa.attend, q, k, v, modifiers=[modifier], is_causal=True))
    True
    """
    if not isinstance(kind, type) or not issubclass(kind, tuple) or not hasattr(kind, "_fields"):
        raise TypeError(f"`kind` is {checks.shown(kind)}, expected a class that is a NamedTuple of its arrays.")
    if not callable(getattr(kind, "mod", None)):
        raise TypeError(f"{kind.__name__} has no method `mod`. attnarray.compiled_modifier says what it takes.")
    methods: dict[str, Any] = {"COMPILED": True, "apply": _apply}
    if hasattr(kind, "mod_backward"):
        methods |= {"entries": _entries, "backward": _backward}
    for name, method in methods.items():
        setattr(kind, name, method)
    return kind


def _apply(self: Any, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
    """The modified scores of a block."""
    return _full(self, "mod", self.mod(scores, b, h, q_idx, kv_idx), scores)


def _backward(self: Any, dscores: Array, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Any:
    """The gradients of scores and arrays."""
    dscores, found = self.entries(dscores, scores, b, h, q_idx, kv_idx)
    totals = dict[str, Any](dict.fromkeys(self._fields))
    for name, indices, gradient in found:
        gradient = _full(self, "mod_backward", gradient, scores, f" for `{name}`")
        added = _array_gradient(getattr(self, name), indices, gradient)
        totals[name] = added if totals[name] is None else totals[name] + added
    return _full(self, "mod_backward", dscores, scores), type(self)(**totals)


def _entries(self: Any, dscore: Any, *arguments: Any) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """The gradient of the score, and by name the indices and gradients of what was looked up."""
    dscore, gradients = several(self, "mod_backward", self.mod_backward(dscore, *arguments), 2)
    kind = type(self)
    if type(gradients) is not kind:
        expected = f"a {kind.__name__} of pairs of indices and gradients, or `self` if it has none"
        raise TypeError(f"`{kind.__name__}.mod_backward` returned {checks.shown(gradients)}, expected {expected}.")
    found = []
    for name, given, some in zip(self._fields, self, gradients, strict=True):
        if some is None or some is given or not hasattr(given, "ndim") or name in getattr(kind, "NO_GRADIENT", ()):
            continue
        for pair in some if isinstance(some, list) else [some]:
            if not isinstance(pair, tuple) or len(pair) != 2:
                given, expected = checks.shown(pair), "(indices, gradient) of the number that was looked up"
                raise TypeError(
                    f"`{kind.__name__}.mod_backward` returned {given} for `{name}`, expected {expected}, or a list of "
                    "such pairs."
                )
            found.append((name, *pair))
    return dscore, found


def _full(part: Any, method: str, result: Any, scores: Array, of: str = "") -> Array:
    """What a method returned, broadcast to the scores."""
    xp = namespace_of(scores)
    if isinstance(result, int | float) and not isinstance(result, bool):
        result = xp.full_like(scores, result)
    if checks.is_array(result) and dtype_name(result.dtype) not in ("bool", *checks.FLOATS):
        result = xp.astype(result, scores.dtype)
    if checks.is_array(result) and result.ndim <= 4 and all(
        size in (1, full) for size, full in zip(result.shape[::-1], scores.shape[::-1], strict=False)
    ):  # fmt: skip
        result = xp.broadcast_to(result, scores.shape)
    check_result(part, method, result, scores.shape, of, scores)
    return xp.astype(result, scores.dtype, copy=False)


def _array_gradient(array: Array, indices: Any, gradient: Array) -> Array:
    """Sum the gradients (B, H, rows, S) of entries of an array; first over the axes that no index depends on."""
    xp = namespace_of(gradient)
    indices = indices if isinstance(indices, tuple) else (indices,)
    if len(indices) != array.ndim:
        raise ValueError(f"A gradient has {len(indices)} indices, but its array has shape {tuple(array.shape)}.")
    places: Any = xp.zeros((1, 1, 1, 1), dtype=xp.int64, device=device_of(gradient))
    for index, size in zip(indices, array.shape, strict=True):
        index = xp.astype(xp.asarray(index, device=device_of(gradient)), xp.int64)
        places = places * size + xp.where(index < 0, index + size, index)
    summed = tuple(axis for axis in range(4) if places.shape[axis] == 1)
    if summed:
        gradient = xp.sum(gradient, axis=summed, keepdims=True)
    places = xp.broadcast_to(places, gradient.shape)
    count = 1
    for size in array.shape:
        count *= size
    total = scatter_add(xp.reshape(gradient, (-1, 1)), xp.reshape(places, (-1,)), count)
    return xp.reshape(total, tuple(array.shape))

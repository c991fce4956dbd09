"""The three parts that attention is made of: a scorer, score modifiers and a normalizer.

Each is a NamedTuple of arrays and numbers with a forward and, directly below it, its backward; the gradient of one is a
value of the same type, with None for numbers. `attend` takes those of a caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from attnarray import checks
from attnarray.backend import Array, dtype_name, namespace_of
from attnarray.numpy_arrays import read_only

T = TypeVar("T")
FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}

# A part may have a method `check(name, heads, dim)`, which `attend` calls with the sizes of the queries.
# Arrays are Any in these protocols, so that a part of a caller may name the arrays of one library.


class Scorer(Protocol):
    """Scores of queries and keys.

    Class attributes, all optional: PER_QUERY, the names of arrays (B, H, T, ...) to cut to the rows, as q is; GROUPED,
    whether keys may have fewer heads than queries; HELD, the number of arrays of the size of the scores that are held
    at a time; OVERWRITABLE, whether `scores` returns a new array, which is copied otherwise.

    A scorer that adds to dot products can have `attention` compute all but that: `split(q, k, rows, scale)` gives
    queries q' and a bias (B, H, rows, S) with scale s = scale q' . k + bias, and `split_backward(dq', dbias, q, k,
    rows, scale)` the gradients of q and of the arrays.
    """

    def scores(self, q: Any, k: Any, rows: slice) -> Any:
        """From queries (B, H, rows, D) and keys (B, Hkv, S, D) the scores (B, H, rows, S) before all modifiers."""

    def backward(self, dscores: Any, q: Any, k: Any, rows: slice) -> tuple[Any, Any, Any]:
        """The gradients of q, of k, and of the arrays as a value of the same type."""


class Modifier(Protocol):
    """Scores from scores.

    `scores` is (B, H, rows, S). The indices broadcast to it: b and h count batches and heads, q_idx are the positions
    of the queries (i + q_offset), kv_idx those of the keys.
    """

    def apply(self, scores: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """The modified scores."""

    def backward(self, dscores: Any, scores: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> tuple[Any, Any]:
        """From the gradient of the modified scores those of `scores` and of the arrays, as a value of the same type."""


class Normalizer(Protocol):
    """Weights from scores.

    A method `weights_again(scores, kept, rows)`, if there is one, gives the weights in the backward pass instead of
    `weights`. Class attributes, both optional: PER_QUERY, the names of arrays (B|1, H|1, T|1, ...) to cut to the rows;
    HIDES, whether a weight of 0 hides its value even where no mask does.
    """

    def weights(self, scores: Any, rows: slice) -> tuple[Any, Any]:
        """From scores (B, H, rows, S) the weights, and what is kept of each row: (B, H, rows, ...) arrays or None."""

    def backward(self, dweights: Any, dkept: Any, weights: Any, kept: Any, scores: Any, rows: slice) -> tuple[Any, Any]:
        """The gradient of the scores, and that of the arrays as a value of the same type.

        `dkept` is the cotangent of what was kept, or None. Gradients of hidden scores, which are -inf, do not matter.
        """


def declare(**attributes: Any) -> Callable[[type[T]], type[T]]:
    """Set class attributes of a NamedTuple, which type checkers would take for fields if they stood in its body."""

    def set_all(part: type[T]) -> type[T]:
        for name, value in attributes.items():
            setattr(part, name, value)
        return part

    return set_all


# What methods return is checked where the engine calls them, as kernels trust shapes. What they are given is read-only,
# as far as NumPy can say so, since the engine uses it again and queries and keys may be arrays of the caller.


def call_scores(scorer: Any, q: Any, k: Any, rows: slice) -> Any:
    """The scores (B, H, rows, S) of a scorer, checked."""
    scores = scorer.scores(read_only(q), read_only(k), rows)
    check_result(scorer, "scores", scores, (*q.shape[:3], k.shape[2]), like=q)
    return scores


def call_scores_backward(scorer: Any, dscores: Any, q: Any, k: Any, rows: slice) -> tuple[Any, Any, Any]:
    """The gradients of queries, keys and scorer, checked."""
    dq, dk, dscorer = several(scorer, "backward", scorer.backward(dscores, read_only(q), read_only(k), rows), 3)
    check_result(scorer, "backward", dq, q.shape, " for the queries", q)
    check_result(scorer, "backward", dk, k.shape, " for the keys", k)
    return dq, dk, dscorer


def call_weights(normalizer: Any, scores: Any, rows: slice) -> tuple[Any, Any]:
    """The weights of a normalizer, checked, and what it keeps."""
    weights, kept = several(normalizer, "weights", normalizer.weights(read_only(scores), rows), 2)
    check_result(normalizer, "weights", weights, scores.shape, like=scores)
    for each in kept if hasattr(kept, "_fields") else (kept,):
        if each is not None and (not checks.is_array(each) or tuple(each.shape[:3]) != tuple(scores.shape[:3])):
            expected = f"None or arrays of shape {(*scores.shape[:3], '...')}".replace("'", "")
            raise TypeError(f"`{type(normalizer).__name__}.weights` keeps {checks.shown(each)}, expected {expected}.")
    return weights, kept


def several(part: Any, method: str, results: Any, count: int) -> Any:
    """What a method returned, checked for a tuple of so many values."""
    if not isinstance(results, tuple | list) or len(results) != count:
        given = f"{len(results)} values" if isinstance(results, tuple | list) else checks.shown(results)
        raise TypeError(
            f"`{type(part).__name__}.{method}` returned {given}, expected {count} values; attnarray.attend says which."
        )
    return results


def check_result(
    part: Any, method: str, result: Any, shape: tuple[int, ...], of: str = "", like: Array | None = None
) -> None:
    """Check what a method returned for a floating array of a shape, no masked one, and as precise as `like`."""
    if checks.is_array(result):
        namespace_of(result)
    least = 0 if like is None else FLOAT_BITS[dtype_name(like.dtype)]
    if not checks.is_array(result) or FLOAT_BITS.get(dtype_name(result.dtype), -1) < least:
        wrong: type[Exception] = TypeError
    elif tuple(result.shape) != tuple(shape):
        wrong = ValueError
    else:
        return
    given, expected = checks.shown(result), f"a floating array of shape {tuple(shape)}"
    if wrong is TypeError and like is not None:
        expected += f" and at least the precision of {dtype_name(like.dtype)}"
    raise wrong(f"`{type(part).__name__}.{method}` returned {given}{of}, expected {expected}.")

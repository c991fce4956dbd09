"""The three parts that attention is made of: a scorer, score modifiers and a normalizer.

Each is a NamedTuple of arrays and numbers with a forward and, directly below it, its backward; the gradient of one is a
value of the same type, with None for numbers. `attend` takes those of a caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

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

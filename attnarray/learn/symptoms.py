"""What wrong results of any function have in common: a sign, a factor, a transposed array, a sum that is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from attnarray.learn.calls import Case

SAME = 1e-6  # two results are the same: the mistakes that are compared differ by far more


class Pair(NamedTuple):
    """The result of one call and the right one."""

    given: np.ndarray
    right: np.ndarray
    case: Case


def same(a: np.ndarray, b: np.ndarray, tolerance: float = SAME) -> bool:
    """Whether two arrays have one shape, and their numbers agree relative to the largest."""
    if a.shape != b.shape:
        return False
    if a.dtype == bool or b.dtype == bool:
        return bool(np.array_equal(a, b))
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = max(float(np.max(np.abs(b[finite]), initial=0.0)), 1e-9)
    return bool(np.max(np.abs(a[finite] - b[finite]), initial=0.0) <= tolerance * scale)


def symptom(label: str, pairs: list[Pair], others: dict[str, list[np.ndarray]]) -> str:
    """One sentence on a wrong result, or "". `others` are the right values of the other results."""
    for find in (_shape, _nonfinite, _order, _zero, _mask, _digits, _factor, _transposed, _rows, _elsewhere):
        sentence = find(label, pairs, others)
        if sentence:
            return sentence
    return ""


def _all(pairs: list[Pair], holds: Callable[[Pair], bool]) -> bool:
    return bool(pairs) and all(map(holds, pairs))


def _shape(label: str, pairs: list[Pair], _: object) -> str:
    if _all(pairs, lambda pair: pair.given.shape == pair.right.shape):
        return ""
    pairs = [pair for pair in pairs if pair.given.shape != pair.right.shape][:1]
    given, right = pairs[0].given, pairs[0].right
    says = f"`{label}` has shape {given.shape}, expected {right.shape}"
    if _all(pairs, lambda pair: same(pair.given.reshape(-1), pair.right.reshape(-1))):
        return f"{says}; its numbers are right. Is an axis too many or too few (keepdims)?"
    if _all(pairs, lambda pair: same(_unbroadcast(pair.given, pair.right.shape), pair.right)):
        return f"{says}: sum over the axes that were broadcast in the forward."
    if _all(pairs, lambda pair: pair.given.ndim > 1 and same(np.swapaxes(pair.given, -1, -2), pair.right)):
        return f"{says}: it is the right result, transposed."
    if _all(pairs, lambda pair: pair.given.shape == ()):
        return f"{says}: is a sum or a maximum taken over all axes (without axis=...)?"
    return f"{says}."


def _unbroadcast(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum over the axes that `shape` lacks, or has with size 1."""
    if array.ndim < len(shape):
        return array
    array = array.sum(tuple(range(array.ndim - len(shape))))
    axes = tuple(n for n, size in enumerate(shape) if size == 1 != array.shape[n])
    return array.sum(axes, keepdims=True)


def _order(label: str, pairs: list[Pair], others: dict[str, list[np.ndarray]]) -> str:
    for other, right in others.items():
        if all(same(pair.given, values) for pair, values in zip(pairs, right, strict=True)):
            return f"`{label}` is what `{other}` should be. Check the order of what is returned."
    return ""


def _nonfinite(label: str, pairs: list[Pair], _: object) -> str:
    for pair in pairs:
        count = int(np.sum(~np.isfinite(pair.given) & np.isfinite(pair.right)))
        if count:
            return (
                f"`{label}` is NaN or infinite in {count} of {pair.given.size} entries of one call: does exp overflow, "
                "or is 0 divided by 0, or infinity subtracted from infinity?"
            )
    return ""


def _zero(label: str, pairs: list[Pair], _: object) -> str:
    zero = _all(pairs, lambda pair: not np.any(pair.given))
    return f"`{label}` is 0 everywhere." if zero else ""


def _mask(label: str, pairs: list[Pair], _: object) -> str:
    if not _all(pairs, lambda pair: pair.given.dtype == pair.right.dtype == bool):
        return ""
    if _all(pairs, lambda pair: same(pair.given, ~pair.right)):
        return f"`{label}` is inverted: True means that the query may attend to the key."
    missing, extra = (any(np.any(a & ~b) for a, b in rows) for rows in (
        [(pair.right, pair.given) for pair in pairs], [(pair.given, pair.right) for pair in pairs]
    ))  # fmt: skip
    return f"`{label}` allows {'too much' if not missing else 'too little' if not extra else 'some wrong pairs'}."


def _digits(label: str, pairs: list[Pair], _: object) -> str:
    if not _all(pairs, lambda pair: same(pair.given, pair.right, 1e-3)):
        return ""
    return (
        f"`{label}` is almost right, to three digits or more. Is something computed in float32, or approximated in "
        "another way, or a small constant such as eps left out?"
    )


def _factor(label: str, pairs: list[Pair], _: object) -> str:
    factors = []
    for pair in pairs:
        largest = np.argmax(np.abs(pair.right)) if pair.right.size else 0
        right = float(pair.right.reshape(-1)[largest]) if pair.right.size else 0.0
        if not right or not same(pair.given, pair.right * (factor := float(pair.given.reshape(-1)[largest]) / right)):
            return ""
        factors.append((factor, pair.case))
    if all(abs(factor + 1) < SAME for factor, _ in factors):
        return f"`{label}` has the wrong sign."
    for name, value in _known_factors(pairs[0].case):
        if all(abs(factor - value(case)) <= SAME * abs(value(case)) for factor, case in factors):
            return f"`{label}` is the right result times {name}."
    shown = " and ".join(f"{factor:.4g}" for factor, _ in factors[:2])
    return (
        f"`{label}` is the right result times a number ({shown}, in two calls): is there a factor too many or too few?"
    )


def _known_factors(case: Case) -> Iterator[tuple[str, Callable[[Case], float]]]:
    for name, value in (("2", 2.0), ("1/2", 0.5), ("-2", -2.0)):
        yield name, lambda _, value=value: value  # type: ignore[misc]
    for axis in case.sizes:
        for name, power in (
            ("{}", 1.0),
            ("1 / {}", -1.0),
            ("sqrt({})", 0.5),
            ("1 / sqrt({})", -0.5),
            ("1 / {}^2", -2.0),
        ):
            yield name.format(axis), lambda other, axis=axis, power=power: other.sizes[axis] ** power  # type: ignore[misc]
    for name, number in case.arguments.items():
        if isinstance(number, float) and number:
            yield f"`{name}`", lambda other, name=name: other.arguments[name]  # type: ignore[misc]
            yield f"1 / `{name}`", lambda other, name=name: 1 / other.arguments[name]  # type: ignore[misc]


def _transposed(label: str, pairs: list[Pair], _: object) -> str:
    if _all(pairs, lambda pair: pair.given.ndim > 1 and same(np.swapaxes(pair.given, -1, -2), pair.right)):
        return f"`{label}` is the right result, transposed."
    return ""


def _rows(label: str, pairs: list[Pair], _: object) -> str:
    if not _all(pairs, lambda pair: pair.right.ndim > 1 and pair.right.shape[-1] > 1):
        return ""
    if _all(pairs, lambda pair: _constant(pair.given - pair.right)):
        return f"Each row of `{label}` is off by one number, the same along the last axis: is a sum or a mean left out?"
    with np.errstate(all="ignore"):
        if _all(pairs, lambda pair: _constant(pair.given / pair.right)):
            return f"Each row of `{label}` is off by one factor, the same along the last axis."
    return ""


def _constant(array: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(array))) and same(array, np.broadcast_to(array[..., :1], array.shape))


def _elsewhere(label: str, pairs: list[Pair], _: object) -> str:
    """Where the wrong entries are, if that is a part of the array."""
    arguments = pairs[0].case.arguments
    masks = [name for name, value in arguments.items() if isinstance(value, np.ndarray) and value.dtype.kind == "b"]
    for name in masks:
        for hidden, words in ((True, "allows"), (False, "hides")):
            if _all(pairs, lambda pair, name=name, hidden=hidden: _inside(pair, name, hidden)):  # type: ignore[misc]
                return f"`{label}` is wrong only where `{name}` {words} a pair."
    wrong = next((_wrong(pair) for pair in pairs if np.any(_wrong(pair))), np.zeros(()))
    if wrong.ndim > 1 and wrong.shape[-2] > 1:
        rows = np.flatnonzero(wrong.reshape(-1, *wrong.shape[-2:]).any((0, 2)))
        if len(rows) == 1:
            return f"Only row {rows[0]} of `{label}` is wrong (of {wrong.shape[-2]}; axis {wrong.ndim - 2})."
    return ""


def _inside(pair: Pair, name: str, allowed: bool) -> bool:
    mask = pair.case.arguments[name]
    if mask.shape[-2:] != pair.right.shape[-2:] or mask.ndim > pair.right.ndim:
        return False
    return not np.any(_wrong(pair) & (np.broadcast_to(mask, pair.right.shape) != allowed))


def _wrong(pair: Pair) -> np.ndarray:
    scale = max(float(np.max(np.abs(pair.right), initial=0.0)), 1e-9)
    return np.asarray(~(np.abs(pair.given - pair.right) <= SAME * scale))

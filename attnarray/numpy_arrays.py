"""What NumPy's arrays have and those of other libraries have not: subclasses with rules of their own."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
PLAIN = (np.ndarray, np.memmap)


def check_plain(value: Any, name: str = "") -> None:
    """Check that `value` is of no subclass of `numpy.ndarray` that computes by rules of its own."""
    if not isinstance(value, np.ndarray) or type(value) in PLAIN:
        return
    hint = f"numpy.asarray({name or 'x'})"
    if isinstance(value, np.ma.MaskedArray):
        hint = f"{name or 'x'}.filled(0). Its mask goes into a boolean mask, where the function takes one"
    raise TypeError(
        f"{f'`{name}`' if name else 'An array'} has type {type(value).__name__}, which computes by rules of its own, "
        f"expected a plain array. Convert it: {hint}."
    )


def plain(data: Any) -> np.ndarray:
    """Numbers, lists of them and arrays of any subclass as an array of NumPy; one with a mask would lose that."""
    for part in data if isinstance(data, list | tuple) else (data,):
        if isinstance(part, np.ma.MaskedArray):
            check_plain(part)
    return np.asarray(data)


def read_only(array: Any) -> Any:
    """An output that its context holds too, as a read-only view: to change it would change the gradients.

    Arrays of other libraries are returned as they are: they cannot be made read-only.
    """
    if isinstance(array, np.ndarray):
        array = array[...]  # a view, sooner made than by view(), as setflags is sooner done than flags
        array.setflags(write=False)
    return array


def writable(result: T) -> T:
    """The output, or all outputs, of a forward whose context is dropped: the caller may change them."""
    if isinstance(result, np.ndarray):
        result.setflags(write=True)
    elif isinstance(result, tuple | list):
        for part in result:
            writable(part)
    return result


def in_layout_of(like: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` in float64, in memory as `like` is: the order and direction of the axes, gaps, what shares memory.

    Gaps are one number wide, whatever their width in `like`, and hold NaN.
    """
    if like.size == 0:
        return np.zeros(like.shape)
    steps = _overlapping_steps(like) if overlaps(like) else _packed_steps(like)
    ends = [(size - 1) * step for size, step in zip(like.shape, steps, strict=True)]
    first, last = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    memory = np.full(last - first + 1, np.nan)
    strides = [step * memory.itemsize for step in steps]
    array = np.ndarray(like.shape, memory.dtype, memory.data, -first * memory.itemsize, strides)
    array[...] = values
    array.flags.writeable = like.flags.writeable
    return array


def overlaps(array: np.ndarray) -> bool:
    """Whether elements of `array` share memory, as those of a broadcast array do."""
    reach = array.itemsize
    for axis in _from_inside(array):
        if abs(array.strides[axis]) < reach:
            return True
        reach += (array.shape[axis] - 1) * abs(array.strides[axis])
    return False


def _from_inside(array: np.ndarray) -> list[int]:
    """The axes with more than one element, from the smallest stride to the largest."""
    axes = [axis for axis in range(array.ndim) if array.shape[axis] > 1 and array.size]
    return sorted(axes, key=lambda axis: abs(array.strides[axis]))


def _packed_steps(like: np.ndarray) -> list[int]:
    """Strides, counted in elements, of an array in memory like `like`, whose elements share none."""
    steps, reach, taken = [0] * like.ndim, like.itemsize, 1
    for axis in _from_inside(like):
        size, stride = like.shape[axis], like.strides[axis]
        step = taken + (abs(stride) > reach)
        steps[axis] = step if stride > 0 else -step
        reach, taken = reach + (size - 1) * abs(stride), taken + (size - 1) * step
    return steps


def _overlapping_steps(like: np.ndarray) -> list[int]:
    """Those of `like` itself; where they are no whole numbers of elements, those of one element for all."""
    if any(stride % like.itemsize for stride in like.strides):
        return _packed_steps(np.empty(like.shape))
    return [stride // like.itemsize for stride in like.strides]

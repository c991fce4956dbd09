"""The layout of NumPy's arrays in memory: order and direction of the axes, gaps, elements that share memory."""

from __future__ import annotations

import numpy as np


def with_layout(like: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` in float64 with the memory layout of `like`: order and direction of axes, gaps, shared memory.

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
    """Strides, counted in elements, of an array with the layout of `like`, if its elements share no memory."""
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

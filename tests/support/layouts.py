"""The same numbers in other memory layouts."""

from __future__ import annotations

import numpy as np


def every_second(array: np.ndarray) -> np.ndarray:
    """The same numbers as every second element of a larger array, with garbage between them."""
    rubbish = np.nan if array.dtype.kind == "f" else 1
    wide = np.full([2 * size + 1 for size in array.shape], rubbish, array.dtype)
    view = wide[(*[slice(1, None, 2)] * array.ndim, ...)]
    view[...] = array
    return view


def backwards(array: np.ndarray) -> np.ndarray:
    """The same numbers with negative strides on all axes."""
    flip = (*[slice(None, None, -1)] * array.ndim, ...)
    return array[flip].copy()[flip]


def column_major(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="F")


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    room = np.zeros(array.nbytes + 1, np.uint8)
    found = np.ndarray(array.shape, array.dtype, room.data, offset=1)
    found[...] = array
    return found

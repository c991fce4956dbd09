"""Features of NumPy's arrays alone: subclasses that override arithmetic, and read-only arrays."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
PLAIN = (np.ndarray, np.memmap)  # other subclasses may override arithmetic


def check_plain(value: Any, name: str = "") -> None:
    """Check that `value` is of no subclass of `numpy.ndarray` that overrides arithmetic."""
    if not isinstance(value, np.ndarray) or type(value) in PLAIN:
        return
    hint = f"numpy.asarray({name or 'x'})"
    if isinstance(value, np.ma.MaskedArray):
        hint = f"{name or 'x'}.filled(0). Its mask goes into a boolean mask, where the function takes one"
    raise TypeError(
        f"{f'`{name}`' if name else 'An array'} has type {type(value).__name__}, which overrides arithmetic, "
        f"expected a plain array. Convert it: {hint}."
    )


def plain(data: Any) -> np.ndarray:
    """Numbers, lists of them and arrays of any subclass as a NumPy array; a masked array would lose its mask."""
    _refuse_masked(data)
    return np.asarray(data)


def _refuse_masked(data: Any) -> None:
    if isinstance(data, np.ma.MaskedArray):
        check_plain(data)
    elif isinstance(data, list | tuple):
        for part in data:
            _refuse_masked(part)


def read_only(array: Any) -> Any:
    """An output that its context holds, too, as a read-only view: changing it would change the gradients.

    Arrays of other libraries are returned as they are: they cannot be made read-only.
    """
    if isinstance(array, np.ndarray):
        array = array[...]  # a view; indexing is faster than view(), and setflags than flags
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

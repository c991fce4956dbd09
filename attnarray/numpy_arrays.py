"""What NumPy's arrays have and those of other libraries have not: subclasses with rules of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

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

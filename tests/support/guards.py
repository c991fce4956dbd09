"""Arrays that NumPy makes meanwhile: not initialized, they hold NaN, and what is written around them is seen."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

AROUND = 64  # numbers on both sides
Made = list[tuple[np.ndarray, int]]


@contextlib.contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Within the block, numpy.empty and numpy.zeros make such arrays; the list has what they are parts of."""
    made: Made = []

    def array(make: Any, fill: float, shape: Any, dtype: Any = float, **options: Any) -> np.ndarray:
        if options:  # in array code
            return np.asarray(make(shape, dtype, **options))
        size = int(np.prod(shape))
        around = np.full(size + 2 * AROUND, 123.0, dtype)
        around[AROUND : AROUND + size] = fill
        made.append((around, size))
        return around[AROUND : AROUND + size].reshape(shape)

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", functools.partial(array, np.empty, np.nan))
        patch.setattr(np, "zeros", functools.partial(array, np.zeros, 0.0))
        yield made


def assert_nothing_around(made: Made) -> None:
    assert made
    for around, size in made:
        assert np.all(np.delete(around, slice(AROUND, AROUND + size)) == 123.0)

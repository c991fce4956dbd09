"""Arrays next to protected pages: an access beyond the array ends the process."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attnarray.kernels.numba.attention import call as attention_call
from attnarray.kernels.numba.attention import tiled as attention


def protected(memory: mmap.mmap, first: int, past: int) -> None:
    """Protect the bytes [first, past), which are whole pages, from reads and writes."""
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if past > first and mprotect(address + first, past - first, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def _copied(x: np.ndarray, memory: mmap.mmap, at: int) -> np.ndarray:
    array = np.frombuffer(memory, x.dtype, x.size, at).reshape(x.shape)
    array[...] = x
    return array


def before_a_guard(x: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last one before a protected page."""
    size = -(-max(x.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    protected(memory, size, size + mmap.PAGESIZE)
    return _copied(x, memory, size - x.nbytes)


def behind_a_guard(x: np.ndarray) -> np.ndarray:
    """A copy whose first byte is the first one after a protected page."""
    memory = mmap.mmap(-1, mmap.PAGESIZE + max(x.nbytes, 1))
    protected(memory, 0, mmap.PAGESIZE)
    return _copied(x, memory, mmap.PAGESIZE)


def rows_alone(x: np.ndarray, first: int, past: int) -> np.ndarray:
    """A copy of (B, H, N, D) whose rows outside [first, past) are protected; these are whole pages."""
    row, page = x.shape[-1] * x.itemsize, mmap.PAGESIZE
    assert page % row == first * row % page == past * row % page == x.shape[2] * row % page == 0
    memory = mmap.mmap(-1, x.nbytes)
    array = _copied(x, memory, 0)
    matrix = x.shape[2] * row
    for start in range(0, x.nbytes, matrix):
        protected(memory, start, start + first * row)
        protected(memory, start + past * row, start + matrix)
    return array


class _Numpy:
    """NumPy, with new arrays placed by `place`."""

    def __init__(self, place: Callable[[np.ndarray], np.ndarray]) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = float) -> np.ndarray:
        return self.place(np.empty(shape, dtype))

    def zeros_like(self, x: np.ndarray) -> np.ndarray:
        return self.place(np.zeros(x.shape, x.dtype))

    def zeros(self, shape: Any, dtype: Any = float) -> np.ndarray:
        return self.place(np.zeros(shape, dtype))


@contextmanager
def new_arrays(place: Callable[[np.ndarray], np.ndarray], *modules: Any) -> Iterator[None]:
    """New arrays of these modules, by default those of attention, are placed by `place`."""
    modules = modules or (attention, attention_call)
    try:
        for module in modules:
            module.np = _Numpy(place)
        yield
    finally:
        for module in modules:
            module.np = np

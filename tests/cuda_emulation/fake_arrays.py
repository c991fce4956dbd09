"""The arrays of a CuPy without a GPU: NumPy's in a class that refuses what CuPy refuses."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar, NamedTuple

import numpy as np


class State:
    """State for tests to read or set."""

    synchronisations = 0
    launches = 0
    seed = 0
    device = 0
    capability = "90"
    devices = 1
    memory_left = 2**62
    shared = 227 * 1024


class Memory(NamedTuple):
    device_id: int
    ptr: int


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __array_priority__ = 100
    known: ClassVar[weakref.WeakValueDictionary[int, ndarray]] = weakref.WeakValueDictionary()  # by address

    def __init__(self, held: Any, device: Any = None) -> None:
        if isinstance(held, tuple):  # CuPy's own: a shape and a dtype
            held, device = empty(held, device).held, None
        self.held = held
        self.device_id = State.device if device is None else device

    @property
    def data(self) -> Memory:
        address = self.held.ctypes.data
        self.known[address] = self
        return Memory(self.device_id, address)

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return wrapped(getattr(function, method)(*(bare(x) for x in inputs), **options))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.held, name)
        if not callable(found):
            return wrapped(found)
        return lambda *args, **options: wrapped(found(*map(bare, args), **{k: bare(v) for k, v in options.items()}))

    def __getitem__(self, place: Any) -> Any:
        return wrapped(self.held[bare(place)])

    def __setitem__(self, place: Any, value: Any) -> None:
        self.held[bare(place)] = bare(value)

    def __len__(self) -> int:
        return len(self.held)

    def _waited(self) -> np.ndarray:
        State.synchronisations += 1
        return self.held

    def get(self) -> np.ndarray:
        return self._waited().copy()

    def item(self) -> Any:
        return self._waited().item()

    def __float__(self) -> float:
        return float(self._waited())

    def __int__(self) -> int:
        return int(self._waited())

    def __bool__(self) -> bool:
        return bool(self._waited())


ndarray.__module__ = "cupy"  # by which the dispatch knows it


def bare(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.held
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}: a NumPy array among CuPy's")
    return type(value)(map(bare, value)) if type(value) in (tuple, list) else value


def wrapped(value: Any) -> Any:
    return ndarray(value) if isinstance(value, np.ndarray) else value


class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Poisoned, so that memory that a kernel does not write shows."""
    held = np.empty(shape, dtype)
    if held.nbytes > State.memory_left:
        raise OutOfMemoryError(f"Out of memory allocating {held.nbytes:,} bytes")
    held.view(np.uint8).fill(255) if held.size and held.ndim else held.fill(0)  # 255s are NaN in every dtype
    return ndarray(held)

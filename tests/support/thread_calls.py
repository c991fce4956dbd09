"""Attention with known results, bit by bit, and helpers for tests of threads."""

from __future__ import annotations

import ctypes

import numpy as np

import attnarray as aa
from attnarray.kernels.numba.runtime import team
from attnarray.kernels.numba.runtime import team_code as code

THREADS = 3


class Interrupt(BaseException):
    """As KeyboardInterrupt, but pytest does not stop."""


def send(thread: int, kind: type[BaseException] = Interrupt) -> None:
    """Raise an exception in a thread at one of its next bytecodes."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in(ctypes.c_ulong(thread), ctypes.py_object(kind)) == 1


def word(address: int, at: int) -> int:
    return ctypes.c_int64.from_address(address + at).value


def teams() -> list[int]:
    found, address = [], team.read(code.TEAMS)
    while address:
        found.append(address)
        address = word(address, code.NEXT)
    return found


class Problem:
    """Attention of a size, forward and backward, with known results, bit by bit."""

    def __init__(self, seed: int) -> None:
        sizes = [(1, 4, 64, 32), (2, 2, 48, 16), (1, 2, 2, 64)]
        self.arrays = np.random.default_rng(seed).standard_normal((3, *sizes[seed % 3])).astype(np.float32)
        self.expected = self.compute()

    def compute(self) -> list[np.ndarray]:
        out, pullback = aa.vjp(aa.scaled_dot_product_attention, *self.arrays, is_causal=True)
        return [out, *pullback(self.arrays[2])]

    def check(self) -> None:
        for found, expected in zip(self.compute(), self.expected, strict=True):
            np.testing.assert_array_equal(found, expected)

"""Waiting of threads for each other within one call of compiled code."""

from __future__ import annotations

import ctypes
import functools

from attnarray.kernels.numba.runtime.atomics import load, pause
from attnarray.kernels.numba.runtime.c_calls import call_getter
from attnarray.kernels.numba.runtime.jit import jit

LINE = 64  # bytes of a cache line: words that different threads write lie that far apart
SPINS = 2000  # before a thread that waits lets others run


@functools.cache
def yield_function() -> int:
    """The address of `sched_yield`; 0 where there is none."""
    try:
        return ctypes.cast(ctypes.PyDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


def wait_for(address: int, number: int, yields: int) -> None:
    """Spin until the word at an address is at least `number`; `yields` is `yield_function()`."""
    spun = 0
    while load(address) < number:
        pause()
        spun += 1
        if spun > SPINS and yields != 0:
            call_getter(yields)


wait_for = jit(wait_for, inner=True)

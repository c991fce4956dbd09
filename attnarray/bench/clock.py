"""Clocks: seconds per call on the host, or on a GPU between CUDA events with the L2 cache flushed before each call."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

L2_FLUSH_FACTOR = 2  # times the cache size is overwritten, as replacement is not strictly LRU


class Clock(Protocol):
    """The interface of a clock."""

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        """Seconds per call, over `repeats` calls."""

    def synchronize(self) -> None:
        """Wait until all started work is done."""


class HostClock:
    """The wall clock of the host: one reading before and one after all repeats."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        with _no_collection():
            start = self._now()
            for _ in range(repeats):
                run()
            return (self._now() - start) / repeats

    def synchronize(self) -> None:
        """Calls on the host end when they return."""


class CudaClock:
    """CUDA events around each call. The flush keeps the GPU busy meanwhile, so that launches are not counted."""

    def __init__(self, cupy: Any = None) -> None:
        self._cupy = importlib.import_module("cupy") if cupy is None else cupy
        device = self._cupy.cuda.Device()
        size = L2_FLUSH_FACTOR * int(device.attributes["L2CacheSize"])
        self._flushed = self._cupy.empty(size, dtype="uint8")

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        event = self._cupy.cuda.Event
        pairs = [(event(), event()) for _ in range(repeats)]
        with _no_collection():
            for start, stop in pairs:
                self._flushed.fill(0)
                start.record()
                run()
                stop.record()
            self.synchronize()
        milliseconds = sum(self._cupy.cuda.get_elapsed_time(start, stop) for start, stop in pairs)
        return float(milliseconds) / 1000 / repeats

    def synchronize(self) -> None:
        self._cupy.cuda.Device().synchronize()


def clock_for(backend: str) -> Clock:
    """The clock for arrays of `backend`."""
    return CudaClock() if backend == "cupy" else HostClock()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A garbage collection within a sample would count as time of that peer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

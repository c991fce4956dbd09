"""Tells when Numba compiles a kernel, as the first call may take seconds where it is not precompiled.

Listeners of `attnarray.kernels.compilations` hear of each kernel. Where there are none, one line says it after half a
second: on a terminal to stderr, else by logging.
"""

from __future__ import annotations

import logging
import sys
import threading

from numba.core import event

from attnarray.kernels import compiling

PACKAGE = __name__.removesuffix("runtime.compilations")
SECONDS = 0.5  # what takes less needs no word


class Listener(event.Listener):  # type: ignore[misc]
    """Hears of everything that Numba compiles, one after the other, where a function may need others first."""

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None

    def on_start(self, event: event.Event) -> None:
        self._depth += 1
        kernel = event.data["dispatcher"]
        if not kernel.py_func.__module__.startswith(PACKAGE):  # Numba's own functions, and those of others
            return
        name, kept = f"{kernel.py_func.__module__}.{kernel.py_func.__name__}", bool(kernel.stats.cache_path)
        if not compiling(name.removeprefix(PACKAGE), kept) and self._timer is None and not SAID.is_set():
            self._timer = threading.Timer(SECONDS, _say, [name.removeprefix(PACKAGE), kept])
            self._timer.daemon = True
            self._timer.start()

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None


SAID = threading.Event()


def _say(kernel: str, kept: bool) -> None:
    """One line, once in a process."""
    SAID.set()
    how = "once: attnarray warmup does it ahead" if kept else "in each process: no folder for a cache can be written"
    line = f"Compiling {kernel} and the kernels that follow, {how}."
    if sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr)
    else:
        logging.getLogger(PACKAGE.partition(".")[0]).info(line)


def register() -> None:
    """Hear of everything that Numba compiles from now on."""
    event.register("numba:compile", Listener())

"""Announce when Numba compiles a kernel, as the first call may take seconds where it is not precompiled.

Listeners of `attnarray.kernels.compilations` are called for each kernel. Where there are none, one line is printed
after half a second: to stderr if it is a terminal, else by logging.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading

from numba.core import event

from attnarray.kernels import compiling

PACKAGE = __name__.removesuffix("runtime.compilations")
SECONDS = 0.5  # what takes less is not announced


class Listener(event.Listener):  # type: ignore[misc]
    """Called by Numba for all that it compiles; calls are nested where a function needs others first."""

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None

    def on_start(self, event: event.Event) -> None:
        self._depth += 1
        kernel = event.data["dispatcher"]
        if not kernel.py_func.__module__.startswith(PACKAGE):  # Numba's own functions, and those of others
            return
        name, kept = f"{kernel.py_func.__module__}.{kernel.py_func.__name__}", bool(kernel.stats.cache_path)
        if not compiling(name.removeprefix(PACKAGE), kept) and self._timer is None and not ANNOUNCED.is_set():
            self._timer = threading.Timer(SECONDS, _announce, [name.removeprefix(PACKAGE), kept])
            self._timer.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread can be started, or the interpreter shuts down
                self._timer.start()

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None


ANNOUNCED = threading.Event()


def _announce(kernel: str, kept: bool) -> None:
    """One line, once in a process."""
    ANNOUNCED.set()
    how = "once: attnarray warmup does it ahead" if kept else "in each process: no folder for a cache can be written"
    line = f"Compiling {kernel} and the kernels that follow, {how}."
    if sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr)
    else:
        logging.getLogger(PACKAGE.partition(".")[0]).info(line)


def register() -> None:
    """Listen to all that Numba compiles from now on."""
    event.register("numba:compile", Listener())

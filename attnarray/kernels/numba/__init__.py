"""CPU kernels on NumPy arrays, compiled by Numba when first called and cached on disk where that is possible."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Iterator

from attnarray.kernels import compiling


@functools.cache
def unavailable() -> str:
    """Why no Numba kernel can be used here; empty when they can."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    # Numba cannot be imported again after an exception (Ctrl-C) has interrupted its import, so none may.
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_import_numba()), daemon=True)
    if not sys.is_finalizing():
        with contextlib.suppress(RuntimeError):  # no thread can be started
            thread.start()
            thread.join()
    return found[0] if found else _import_numba()


def _import_numba() -> str:
    """Import Numba; return why that fails, or ""."""
    try:
        importlib.import_module("numba")
    except ImportError as error:  # also when it is installed but does not support this version of NumPy
        return "numba is not installed" if error.name == "numba" else f"importing numba failed ({error})"
    return ""


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Within the block, kernels that Numba compiles rather than loads from its cache are reported to `compiling`."""
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, event: event.Event) -> None:
            kernel = event.data["dispatcher"]
            package, _, module = kernel.py_func.__module__.partition(f"{__name__}.")
            if not package:  # and not one of Numba's own functions
                compiling(f"{module}.{kernel.py_func.__name__}", bool(kernel.stats.cache_path))

        def on_end(self, event: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield

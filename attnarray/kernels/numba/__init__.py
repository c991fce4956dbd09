"""CPU kernels on NumPy arrays: precompiled, or compiled by Numba when first called and cached on disk if possible."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import threading

from attnarray.kernels.numba.runtime.library import library, load


def mode_in_use() -> str:
    """The mode of `use_kernels` that kernels run in by default or on request: "compiled" or "numba"."""
    return "numba" if library() is None else "compiled"


@functools.cache
def unavailable(mode: str) -> str:
    """Why no kernel can be used here; empty when they can. `mode` is that of `use_kernels`."""
    if sys.implementation.name != "cpython":
        return f"kernels find the data of arrays where CPython has them, this is {sys.implementation.name}"
    precompiled, reason = load()
    if mode != "numba" and precompiled is not None:
        return ""
    if mode == "compiled":
        return reason
    no_compiler = compiler_missing()
    if mode == "numba" or not no_compiler:
        return no_compiler
    why = f"{no_compiler}, and {reason}"
    logging.getLogger(__package__.partition(".")[0]).warning(
        "attnarray computes with array code, several times slower than its kernels: %s. "
        "pip install 'attnarray[jit]' lets Numba compile them.", why,
    )  # fmt: skip
    return why


@functools.cache
def compiler_missing() -> str:
    """Why Numba cannot compile here."""
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
        for name in ("numba", "numba.extending", "numba.np.arrayobj", "numba.core.ccallback"):
            importlib.import_module(name)
        importlib.import_module("attnarray.kernels.numba.runtime.compilations").register()
    except ImportError as error:  # also when it is installed but does not support this version of NumPy
        return "numba is not installed" if error.name == "numba" else f"importing numba failed ({error})"
    return ""

"""CPU kernels on NumPy arrays, compiled by Numba when first called and cached on disk where that is possible."""

from __future__ import annotations

import functools
import importlib
import os


@functools.cache
def unavailable() -> str:
    """Why no Numba kernel can be used here; empty when they can."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        importlib.import_module("numba")
    except ImportError as error:  # also when it is there but does not know this version of NumPy
        return "numba is not installed" if error.name == "numba" else f"importing numba failed ({error})"
    return ""

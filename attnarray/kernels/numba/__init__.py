"""CPU kernels on NumPy arrays, compiled by Numba when first called and cached on disk where that is possible."""

from __future__ import annotations

import functools
import importlib.util
import os


@functools.cache
def unavailable() -> str:
    """Why no Numba kernel can be used here; empty when they can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    return ""

"""Compilation by Numba: the options that every kernel shares, and the fallback without a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from numba.core.ccallback import CFunc

from attnarray.kernels.numba.runtime.cache import KernelCache
from attnarray.kernels.numba.runtime.cpus import thread_count

# No `nnan` or `ninf`: masked scores are -inf, and NaN that is not masked must propagate.
FASTMATH = frozenset({"contract", "reassoc", "nsz", "arcp", "afn"})

# Where rounding is intended, as in `exp`, sums must not be reassociated.
EXACT = frozenset({"contract", "nsz", "arcp", "afn"})

OPTIONS = {
    "nogil": True,
    "fastmath": set(FASTMATH),
    "error_model": "numpy",
}  # numpy: no checks for division by zero, which prevent vector code


def jit(
    *functions: Callable[..., Any], fastmath: frozenset[str] = FASTMATH, inner: bool = False, inline: bool = False
) -> Any:
    """Compile one function, or a list of some, lazily without the GIL, and cache them on disk if that is possible.

    Kernels are plain functions of a module: a closure over another kernel would never be found in the cache again.
    `inner` functions are called by compiled code alone; `inline` puts them into the caller before it is compiled, which
    saves seconds where a large function has one caller.
    """
    options = {**OPTIONS, "fastmath": set(fastmath), "inline": "always" if inline else "never"}
    options |= {"no_cfunc_wrapper": True, "no_cpython_wrapper": inner}
    compiled = [_cached(numba.njit(function, **options)) for function in functions]
    return compiled if len(compiled) > 1 else compiled[0]


def c_function(function: Callable[..., Any], signature: Any) -> Any:
    """Compile `function` as a C function of the signature, and cache it; its code is at `.address` while it lives."""
    options = {**OPTIONS, "fastmath": set(EXACT)}
    compiled = _cached(CFunc(function, (signature.args, signature.return_type), {}, options))
    compiled.compile()
    return compiled


def _cached(compiled: Any) -> Any:
    with contextlib.suppress(RuntimeError):  # no folder can be written
        compiled._cache = KernelCache(compiled.__wrapped__)
    return compiled


def vector_unit() -> str:
    """The widest vector instructions that LLVM may use here."""
    features = get_host_cpu_features()
    widest = [name for name in ("avx512f", "avx2", "avx", "neon") if features.get(name)]
    return f"{widest[0] if widest else 'none known'} ({get_host_cpu_name()})"


def facts() -> dict[str, Any]:
    """Threads, vector unit and the folder that the caches lie in, for `attnarray info`."""
    try:
        threads: int | str = thread_count()
    except ValueError as error:
        threads = str(error)
    compiled = jit(facts)
    folder = compiled.stats.cache_path and Path(
        compiled.stats.cache_path
    )  # of this module; those of others lie beside it
    folder = folder and (folder.parents[1] if folder.name == "__pycache__" else folder.parent)
    return {
        "kernel threads": threads,
        "vector unit": vector_unit(),
        "kernel cache": str(folder or "") or "none can be written: kernels compile anew in each process",
    }

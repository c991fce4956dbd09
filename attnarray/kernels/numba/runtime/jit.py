"""Kernels: functions that Numba compiles when they are first called, or that a precompiled library has.

Numba compiles here alone, with the options that all kernels share, and without a cache if no folder can be written.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnarray.kernels import MODE
from attnarray.kernels.numba.runtime.cpus import thread_count
from attnarray.kernels.numba.runtime.lazy import Lazy, real_function
from attnarray.kernels.numba.runtime.library import PREFIX, Entry, library, load

# No `nnan` or `ninf`: masked scores are -inf, and NaN that is not masked must propagate.
FASTMATH = frozenset({"contract", "reassoc", "nsz", "arcp", "afn"})

# Where rounding is intended, as in `exp`, sums must not be reassociated.
EXACT = frozenset({"contract", "nsz", "arcp", "afn"})

OPTIONS = {
    "nogil": True,
    "fastmath": set(FASTMATH),
    "error_model": "numpy",
}  # numpy: no checks for division by zero, which prevent vector code


class Kernel(Lazy):
    """A function of integers, arrays and numbers, which runs compiled; `real` is Numba's dispatcher."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(lambda: _cached(_numba().njit(real_function(function), **options)))
        self.function = function
        self.name = f"{function.__module__.removeprefix(PREFIX)}:{function.__name__}"
        self._by_mode: dict[str, Any] = {}

    def __call__(self, *args: Any) -> Any:
        return (self._by_mode.get(MODE.get()) or self.chosen())(*args)

    def chosen(self) -> Any:
        """What runs with the mode of `use_kernels`: that of a library, or what Numba compiles."""
        mode, precompiled = MODE.get(), library()
        if mode not in self._by_mode:
            self._by_mode[mode] = self.real if precompiled is None else precompiled.entry(self.name)
        return self._by_mode[mode]


class CFunction(Lazy):
    """A function of 64-bit integers, and with such a result, that C calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(self._compile)
        self.function = function

    @property
    def address(self) -> int:
        """The address of its code, valid as long as this object."""
        precompiled = library()
        found: int = self.real.address if precompiled is None else precompiled.function_address(self.symbol)
        return found

    @property
    def symbol(self) -> str:
        """Its name in a library."""
        return f"attnarray_{self.function.__name__}"

    def _compile(self) -> Any:
        ccallback, types = importlib.import_module("numba.core.ccallback"), importlib.import_module("numba.types")
        arguments = (types.int64,) * self.function.__code__.co_argcount
        options = {**OPTIONS, "fastmath": set(EXACT)}
        compiled = _cached(ccallback.CFunc(real_function(self.function), (arguments, types.int64), {}, options))
        compiled.compile()
        return compiled


def entry_and_parts(kernel: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> tuple[Any, Sequence[Any]]:
    """What a thread calls for the parts of a kernel, and its arguments."""
    if not isinstance(kernel, Kernel):
        return kernel, parts
    chosen = kernel.chosen()
    return chosen.prepared(parts) if isinstance(chosen, Entry) else (chosen, parts)


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
    kernels = [Kernel(function, options) for function in functions]
    return kernels if len(kernels) > 1 else kernels[0]


def _numba() -> Any:
    """Numba. Code in its cache may hold inline assembly, and LLVM without a parser for that ends the process."""
    importlib.import_module("llvmlite.binding").initialize_native_asmparser()
    return importlib.import_module("numba")


def _cached(compiled: Any) -> Any:
    cache = importlib.import_module("attnarray.kernels.numba.runtime.cache")
    with contextlib.suppress(RuntimeError):  # no folder can be written
        compiled._cache = cache.KernelCache(compiled.__wrapped__)
    return compiled


def vector_unit() -> str:
    """The widest vector instructions that kernels may use here."""
    precompiled = library()
    if precompiled is not None:
        return precompiled.level
    binding = importlib.import_module("llvmlite.binding")
    features = binding.get_host_cpu_features()
    widest = [name for name in ("avx512f", "avx2", "avx", "neon") if features.get(name)]
    return f"{widest[0] if widest else 'none known'} ({binding.get_host_cpu_name()})"


def facts() -> dict[str, Any]:
    """Threads, vector unit and the folder of the cache, for `attnarray info`."""
    try:
        threads: int | str = thread_count()
    except ValueError as error:
        threads = str(error)
    found = {"kernel threads": threads, "vector unit": vector_unit()}
    _, reason = load()
    precompiled = library()
    if precompiled is not None:
        return {**found, "precompiled kernels": f"{precompiled.level}{reason and f' ({reason})'}"}
    folder = jit(facts).real.stats.cache_path  # of this module: others have theirs beside it
    if folder:
        folder = Path(folder).parents[1] if Path(folder).name == "__pycache__" else Path(folder).parent
    return {
        **found,
        "precompiled kernels": f"none: {reason}",
        "kernel cache": str(folder or "") or "none can be written: kernels compile anew in each process",
    }

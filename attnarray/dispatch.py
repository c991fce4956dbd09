"""Which kernel: an `@accelerated` function is the reference, and runs a kernel of `kernels/table.py` if one fits.

The choice is separate from the array library: arrays decide where to compute, this decides the code. By default NumPy
arrays go to a Numba kernel and CuPy arrays to a CUDA kernel if the table has one that does not decline, else to the
reference.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, cast, get_args

import numpy as np

from attnarray.backend import type_library
from attnarray.kernels import MODE, Declined, noting
from attnarray.kernels import compilations as compilations
from attnarray.kernels.table import BACKEND_OF_LIBRARY, KERNELS, MODES_OF_BACKEND

P = ParamSpec("P")
R = TypeVar("R")
KernelMode = Literal["auto", "reference", "compiled", "numba", "cuda"]
MODES: tuple[KernelMode, ...] = get_args(KernelMode)

_TRACE: ContextVar[list[Choice] | None] = ContextVar("attnarray_trace", default=None)


def ignoring_fp_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate array code whose masked NaN and infinities are computed with and then dropped.

    NumPy must neither warn nor raise for them. Kernels never do.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # In a separate context, so that the setting is restored wherever an exception is raised.
        return cast(R, copy_context().run(_run_quietly, function, args, kwargs))

    return call


def _run_quietly(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with np.errstate(all="ignore"):
        return function(*args, **kwargs)


class Choice(NamedTuple):
    """The code that ran for a function: `kernel` is a mode of `use_kernels`; `reason` is why none faster."""

    function: str
    kernel: str
    reason: str


class Explanation(NamedTuple):
    """What `explain` found: one `Choice` per accelerated function that the call reached, in order."""

    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        if not self.choices:
            return "No accelerated function is involved: plain array code runs."
        width = max(len(choice.function) for choice in self.choices)
        lines = []
        for choice in self.choices:
            why = f"  ({choice.reason})" if choice.reason else ""
            lines.append(f"{choice.function:<{width}}  {choice.kernel}{why}")
        return "\n".join(lines)


class KernelUnavailableError(RuntimeError):
    """A kernel asked for with `use_kernels` does not exist, does not fit or cannot be loaded; the message says why."""


def accelerated(reference: Callable[P, R]) -> Callable[P, R]:
    """Mark a function on arrays whose body is the reference, and may be replaced by kernels.

    The first positional argument is an array, whose library selects the kernel backend.
    """
    name = f"{reference.__module__.removeprefix('attnarray.')}:{reference.__name__}"
    quiet_reference = ignoring_fp_errors(reference)

    @functools.wraps(reference)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        mode = MODE.get()
        trace = _TRACE.get()
        reason = "asked for by use_kernels"
        if mode != "reference":
            kernel, backend, reason = _choose(name, type(args[0]), mode)  # type: ignore[arg-type]
            if kernel is not None:
                try:
                    if trace is None:
                        return cast(R, kernel(*args, **kwargs))
                    with noting() as notes:
                        result = cast(R, kernel(*args, **kwargs))
                    used = _package(backend).mode_in_use() if backend in MODES_OF_BACKEND else backend
                    trace.append(Choice(name, used, "; ".join(notes)))
                    return result
                except Declined as declined:
                    reason = str(declined)
            if mode != "auto" and (mode not in _modes(backend) or backend in KERNELS.get(name, {})):
                raise KernelUnavailableError(
                    f"use_kernels({mode!r}) was asked for, but {name} cannot run there: {reason}. "
                    "Use use_kernels('auto') to take the fastest that can."
                )
        if trace is not None:
            trace.append(Choice(name, "reference", reason))
        return quiet_reference(*args, **kwargs)

    call.reference = reference  # type: ignore[attr-defined]
    return call


@functools.lru_cache(maxsize=1024)
def _choose(name: str, kind: Any, mode: str) -> tuple[Callable[..., Any] | None, str, str]:
    """The kernel of a function for arrays of a type, or None; its backend; why there is no kernel."""
    backend = BACKEND_OF_LIBRARY.get(type_library(kind), "")
    kernel, reason = _find(name, backend, mode)
    return kernel, backend, reason


@functools.cache
def _find(name: str, backend: str, mode: str) -> tuple[Callable[..., Any] | None, str]:
    """The kernel for `name` on `backend` ("numba", "cuda"; "" for libraries without kernels), or why there is none."""
    if not backend:
        return None, "there are kernels for NumPy and CuPy arrays only"
    modes = _modes(backend)
    if mode not in ("auto", *modes):
        return None, f"{mode} kernels do not run on these arrays, {' and '.join(modes)} kernels do"
    row = KERNELS.get(name, {}).get(backend)
    if row is None:
        return None, f"there is no {backend} kernel for it yet"
    unavailable = _package(backend).unavailable(mode)
    if unavailable:
        return None, unavailable
    module, _, function = row.partition(":")
    return getattr(importlib.import_module(f"attnarray.kernels.{backend}.{module}"), function), ""


def _modes(backend: str) -> tuple[str, ...]:
    return MODES_OF_BACKEND.get(backend, (backend,))


def _package(backend: str) -> Any:
    return importlib.import_module(f"attnarray.kernels.{backend}")


def kernel_mode() -> KernelMode:
    """The mode that `use_kernels` set here, for code that runs elsewhere."""
    return cast(KernelMode, MODE.get())


@contextlib.contextmanager
def use_kernels(mode: KernelMode) -> Iterator[None]:
    """Within the block, choose what accelerated functions run; safe in threads and coroutines.

    Parameters
    ----------
    mode : {"auto", "reference", "compiled", "numba", "cuda"}
        "auto" takes the fastest that fits; "reference" takes the array code; "compiled" (the CPU kernels of a
        wheel), "numba" (the same, compiled when first called) and "cuda" are strict: where there is such a kernel and
        it cannot run, they raise `KernelUnavailableError` with the reason instead of falling back.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    >>> with aa.use_kernels("reference"):
    ...     y = aa.scaled_dot_product_attention(x, x, x)
    """
    if mode not in MODES:
        raise ValueError(f"Unknown kernels {mode!r}; expected one of {', '.join(map(repr, MODES))}.")
    token = MODE.set(mode)
    try:
        yield
    finally:
        MODE.reset(token)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which kernel runs for this call, and why not a faster one. The call is run once.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    >>> with aa.use_kernels("reference"):
    ...     print(aa.explain(aa.scaled_dot_product_attention, x, x, x))
    attention.engine:attention            reference  (asked for by use_kernels)
    attention.normalizers:masked_softmax  reference  (asked for by use_kernels)
    """
    if not callable(function):
        raise TypeError(
            f"`function` has type {type(function).__name__}, expected a function and then its arguments: "
            "explain(attnarray.softmax, x)."
        )
    trace: list[Choice] = []
    context = copy_context()
    context.run(_TRACE.set, trace)
    context.run(function, *args, **kwargs)
    return Explanation(tuple(dict.fromkeys(trace)))


def record(function: str, code: str, reason: str) -> None:
    """Say to `explain` what ran, from array code that chooses between ways itself."""
    trace = _TRACE.get()
    if trace is not None:
        trace.append(Choice(function, code, reason))


class KernelStatus(NamedTuple):
    """One row of the kernel table on this machine; `reason` is empty when the kernel can be used."""

    function: str
    backend: str
    reason: str


def available_kernels() -> list[KernelStatus]:
    """Every kernel of the table, with the reason why it cannot be used here, if so."""
    return [
        KernelStatus(name, backend, _find(name, backend, "auto")[1]) for name, row in KERNELS.items() for backend in row
    ]


def thread_count() -> int:
    """How many threads the CPU kernels use at most; ValueError if ATTNARRAY_NUM_THREADS is no number."""
    count: int = importlib.import_module("attnarray.kernels.numba.runtime.cpus").thread_count()
    return count


def cpu_count() -> int:
    """The CPUs that this process may use, by its affinity and the quota of its container."""
    count: int = importlib.import_module("attnarray.kernels.numba.runtime.cpus").cpu_count()
    return count


def cpu_quota() -> float | None:
    """The quota of CPUs of this process's container, None without one."""
    quota: float = importlib.import_module("attnarray.kernels.numba.runtime.cpus").cpu_quota(Path("/proc/self"))
    return None if math.isinf(quota) else quota


def threads_and_cache() -> dict[str, Any]:
    """How many threads the CPU kernels use and where their compiled code is kept."""
    if _package("numba").unavailable("auto"):
        return {}
    facts: dict[str, Any] = importlib.import_module("attnarray.kernels.numba.runtime.jit").facts()
    return facts


def tensor_core_tiles() -> list[dict[str, Any]]:
    """The tiles that attention on a GPU's tensor cores can be compiled for."""
    listing: list[dict[str, Any]] = importlib.import_module("attnarray.kernels.cuda.attention_plan").listing()
    return listing


def kernel_modules() -> list[str]:
    """The modules of the kernels that this machine can use."""
    found = [_find(name, backend, "auto")[0] for name, row in KERNELS.items() for backend in row]
    return list(dict.fromkeys(kernel.__module__ for kernel in found if kernel is not None))


def warmup(dtypes: tuple[str, ...] = ("float32",), advance: Callable[[str], None] | None = None) -> dict[str, float]:
    """Compile (or load from the cache) every kernel that this machine can use, so that later calls need not.

    With precompiled kernels there is nothing to compile.

    Parameters
    ----------
    dtypes : tuple of str
        The dtypes to compile for: "float32", "float64".
    advance : callable, optional
        Called with the name of each module of kernels before it is compiled, to show progress.

    Returns
    -------
    dict
        Kernel module -> seconds it took.

    Examples
    --------
    >>> import attnarray as aa
    >>> seconds = aa.warmup(("float32",))
    """
    seconds: dict[str, float] = {}
    for module in kernel_modules():
        if advance is not None:
            advance(module.removeprefix("attnarray.kernels."))
        start = time.perf_counter()
        for dtype in dtypes:
            importlib.import_module(module).warmup(dtype)
        seconds[module] = time.perf_counter() - start
    return seconds

"""Splits a kernel's rows over threads of our own: kernels are serial and release the GIL, so any thread may call them.

Numba's own thread layers do not survive a fork (omp) or concurrent callers (workqueue); a Python thread pool does both.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

_pool: ThreadPoolExecutor | None = None


def thread_count() -> int:
    """ATTNARRAY_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that this process may use."""
    for variable in ("ATTNARRAY_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_rows(kernel: Callable[..., Any], rows: int, work: int, *args: Any) -> None:
    """Call kernel(start, stop, *args) over [0, rows), in parallel when `work` elements are worth it.

    Each row is computed by one thread, and alike by any: results do not depend on the number of threads.
    """
    threads = threads_for(work, rows)
    if threads == 1:
        kernel(0, rows, *args)
        return
    bounds = [rows * n // threads for n in range(threads + 1)]
    run_parts(kernel, [(start, stop, *args) for start, stop in itertools.pairwise(bounds)])


def run_parts(kernel: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> None:
    """Call kernel(*part) for each part, the first one on this thread and the others beside it."""
    if len(parts) == 1:
        kernel(*parts[0])
        return
    busy = [_cpu()]
    others = [_shared_pool().submit(_elsewhere, busy, kernel, *part) for part in parts[1:]]
    kernel(*parts[0])
    for other in others:
        other.result()


def _elsewhere(busy: list[int], kernel: Callable[..., Any], *part: Any) -> None:
    """Call kernel(*part) on a CPU that is not among the `busy` ones, and add it to them.

    Linux may wake a thread on the CPU that it was woken from and leave it there, so that one of the two waits although
    another CPU is idle; most of all after another library's threads have moved ours. Affinity moves it at once.
    """
    if _cpu() in busy and hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        if allowed - set(busy):
            with contextlib.suppress(OSError):  # where a sandbox forbids it
                os.sched_setaffinity(0, allowed - set(busy))
                os.sched_setaffinity(0, allowed)
    busy.append(_cpu())
    kernel(*part)


@functools.cache
def _cpu_function() -> Callable[[], int]:
    """The C library's `sched_getcpu`; -1 where there is none."""
    try:
        return cast(Callable[[], int], ctypes.PyDLL(None).sched_getcpu)
    except (AttributeError, OSError, TypeError):
        return lambda: -1


def _cpu() -> int:
    """The number of the CPU that this thread runs on."""
    return _cpu_function()()


# Waking a thread takes about half as long as this many elements of masked softmax, one nanosecond each.
MIN_WORK_PER_THREAD = 2**16


def threads_for(work: float, most: int) -> int:
    """How many threads are worth their waking for `work` nanoseconds of one thread, and at most `most` parts."""
    worth = min(int(work // MIN_WORK_PER_THREAD), most)
    return min(thread_count(), worth) if worth > 1 else 1


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="attnarray")
    return _pool


def _forget_pool() -> None:
    """The threads of the parent do not exist in a forked child: the child makes its own when it needs them."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)

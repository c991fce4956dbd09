"""The most memory that one call takes beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what proc_pid_clear_refs(5) takes to set the peak back to the present


def peak_extra_bytes(run: Callable[[], Any], backend: str) -> int | None:
    """Bytes at the peak of one call of `run`, less those before it; None where that cannot be measured.

    On the host by Linux's account of resident memory, in pages. On a GPU by what is no longer free afterwards: memory
    pools do not give back within a call, and they are emptied before it.
    """
    gc.collect()
    return _on_device(run) if backend == "cupy" else _on_host(run)


def _on_host(run: Callable[[], Any]) -> int | None:
    if not CLEAR.exists():
        return None
    return_free_memory()
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # some containers forbid it
        return None
    before = kilobytes("VmRSS")
    result = run()
    peak = kilobytes("VmHWM")
    del result
    return max(0, peak - before) * 1024


def return_free_memory() -> None:
    """Give the system what the GNU allocator keeps: free memory there would hide what a call takes.

    It gives back the top of the first heap alone, so the command starts with one heap for all threads: MALLOC_ARENA_MAX
    in threads.py.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def kilobytes(field: str) -> int:
    """A figure of the system's account of this process."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{field}:")


def _on_device(run: Callable[[], Any]) -> int:
    cupy = importlib.import_module("cupy")
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    before, _ = cupy.cuda.runtime.memGetInfo()
    result = run()
    cupy.cuda.Device().synchronize()
    after, _ = cupy.cuda.runtime.memGetInfo()
    del result
    return max(0, int(before - after))

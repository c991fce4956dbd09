"""The peak memory of one call, less the memory in use before it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # resets the peak, see proc_pid_clear_refs(5)


def peak_extra_bytes(run: Callable[[], Any], backend: str) -> int | None:
    """Bytes at the peak of one call of `run`, less those before it; None where that cannot be measured.

    On the host by Linux's account of resident memory, in pages. On a GPU by what is no longer free afterwards: memory
    pools free nothing within a call, and they are emptied before it.
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
    """Return free memory of the GNU allocator to the system: it would hide the memory of a call.

    It returns only the top of the first heap, so the command starts with one heap for all threads: MALLOC_ARENA_MAX
    in threads.py.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def kilobytes(field: str) -> int:
    """A field of the system's memory statistics of this process."""
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

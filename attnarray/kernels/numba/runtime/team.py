"""Threads that run parts of a kernel in parallel with their caller: they spin briefly between tasks, and then sleep.

Waking a sleeping thread takes tens of microseconds, and so does waking a caller that sleeps meanwhile: as long as a
small kernel. So both first spin for about as long as waking takes, without the GIL. Numba's own
thread layers do not survive a fork (omp) or concurrent callers (workqueue); these threads are plain ones, and each
caller has a team of its own.

All that must not be interrupted is compiled, see `team_code.py`: an exception at any bytecode of this module comes
before any part has begun, or after all have ended. Neither threads nor the memory that they read is ever freed, so that
daemon threads may go on while the interpreter shuts down.
"""

from __future__ import annotations

import _thread
import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from attnarray.kernels.numba.runtime import team_code as code

SPIN, HAND_OVER = 1e-4, 3e-6  # seconds; the caller holds the GIL for a moment when it offers a job


def _memory(size: int) -> int:
    """The address of zeros that are never freed."""
    allocate = ctypes.pythonapi.PyMem_RawCalloc
    allocate.argtypes, allocate.restype = (ctypes.c_size_t, ctypes.c_size_t), ctypes.c_void_p
    address = allocate(1, size)
    if not address:
        raise MemoryError
    return int(address)


SHARED = _memory(code.SHARED_BYTES)


class _Entries(NamedTuple):
    run: Callable[[Callable[..., Any], tuple[Any, ...], int, int], int]
    spin: Callable[[int, int], int]


@functools.cache
def _entries() -> _Entries:
    """The compiled functions; constants for threads are written to the shared memory."""
    word, thing = ctypes.c_int64, ctypes.py_object
    run = _entry(code.run, thing, thing, word, word)
    work, spin = _entry(code.work, word), _entry(code.spin, word, word)
    constants = {
        code.START: _thread.start_new_thread,
        code.START_ARGUMENTS: (work, (SHARED,)),
        code.EXCEPTION: Exception,
    }
    write({at: id(_immortal(value)) for at, value in constants.items()})
    write(cpu_functions())
    each = min(_seconds(spin, 1000) for _ in range(3)) / 1000
    write({code.SPINS: int(SPIN / each), code.HAND_OVER: int(HAND_OVER / each)})
    return _Entries(run, spin)


def _entry(function: Any, *kinds: Any) -> Any:
    """A compiled function, called with the GIL held; exceptions that it sets are raised."""
    return ctypes.PYFUNCTYPE(ctypes.c_int64, *kinds)(function.address)


def run_parallel(kernel: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> None:
    """Call kernel(*part) for each part, the first one on this thread and the others in parallel.

    Threads take the parts in order, this one too when it is done with the first. No part begins after an exception in
    this thread; an exception in another one is raised here in the end. Where no thread can be started, this one takes
    all parts; also when the interpreter shuts down, and in a finalizer or signal handler during compilation, since
    threads would wait for the compiler.
    """
    if sys.is_finalizing() or is_compiling():
        for part in parts:
            kernel(*part)
    elif _entries().run(kernel, tuple(parts), len(parts) - 1, SHARED):
        raise RuntimeError("This process was forked while threads computed for it: call again.")


def cpu_functions() -> dict[int, int]:
    """The addresses of the C functions that get and set the CPU of a thread; none where they are missing."""
    names = {code.GETCPU: "sched_getcpu", code.GETAFFINITY: "sched_getaffinity", code.SETAFFINITY: "sched_setaffinity"}
    try:
        library = ctypes.PyDLL(None)
        return {at: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for at, name in names.items()}
    except (AttributeError, OSError, TypeError):
        return {}


def team_sizes() -> list[int]:
    """How many workers each team has."""
    sizes, team = [], _word(SHARED + code.TEAMS).value
    while team:
        sizes.append(_word(team + code.WORKERS).value)
        team = _word(team + code.NEXT).value
    return sizes


def write(words: dict[int, int]) -> None:
    """Set words of the shared memory."""
    for at, word in words.items():
        _word(SHARED + at).value = word


def read(at: int) -> int:
    """A word of the shared memory."""
    return _word(SHARED + at).value


def _word(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(address)


def _immortal(value: Any) -> Any:
    """An object that is never freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


def _seconds(spin: Callable[[int, int], int], count: int) -> float:
    start = time.perf_counter()
    spin(SHARED + code.SHARED_BYTES - 8, count)  # a word that stays 0
    return time.perf_counter() - start


def is_compiling() -> bool:
    lock = _compiler_lock()
    return lock is not None and bool(lock.is_locked())


def _compiler_lock() -> Any:
    """Numba's, if it has been imported."""
    return getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)


_STOPPED: list[Any] = []


def _stop_compiling() -> None:
    lock = _compiler_lock()
    if lock is not None:
        lock.acquire()
        _STOPPED.append(lock)


def _go_on() -> None:
    if _STOPPED:
        _STOPPED.pop().release()


# A C function, as it must not be interrupted. A forked child has none of the threads of its parent.
forget_teams = functools.partial(ctypes.memset, SHARED + code.TEAMS, 0, 8)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_teams)
    # A forked child would wait forever for a compiling thread of its parent, which it does not have.
    os.register_at_fork(before=_stop_compiling, after_in_parent=_go_on, after_in_child=_go_on)

"""Threads that run parts of a kernel beside their caller: they wait awake for a moment, and then asleep.

To wake a sleeping thread takes tens of microseconds, and so does the way back to a caller who sleeps meanwhile: as much
as a small kernel. So both first look at a counter again and again, for about as long as waking takes, without the
interpreter's lock. Numba's own thread layers do not survive a fork (omp) or concurrent callers (workqueue); these
threads are plain ones, and each caller has a team of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attnarray.kernels.numba.jit import jit
from attnarray.kernels.numba.memory import ahead, pointer

GIVEN, DONE = 0, 8  # counters of tasks, each in a cache line of its own
AWAKE, HAND_OVER, MISSED = 1e-4, 3e-6, 1e-3  # seconds
PAUSES = {"x86_64": "llvm.x86.sse2.pause", "amd64": "llvm.x86.sse2.pause"}  # by machine; others look without


class Worker(threading.Thread):
    """A thread that runs one task after the other. `give` and `wait` take turns."""

    def __init__(self) -> None:
        super().__init__(name="attnarray", daemon=True)
        self.counters = np.zeros(16, np.int64)
        self.changed = threading.Condition()
        self.task: tuple[Any, ...] = ()
        self.error: BaseException | None = None
        self.is_awaited = False
        self.cpu = -1  # where it ran last
        self.start()

    def give(self, busy: list[int], kernel: Callable[..., Any], part: Sequence[Any]) -> None:
        """Have the thread call kernel(*part), on a CPU that is not among the `busy` ones."""
        self.task = busy, kernel, part
        with self.changed:
            self.counters[GIVEN] += 1
            self.changed.notify_all()

    def wait(self) -> BaseException | None:
        """Until the task is done; the error that it ended with."""
        number = self.counters[GIVEN]
        if not await_count(self.counters, DONE, number, spins(AWAKE)):
            self.is_awaited = True
            with self.changed:
                while self.counters[DONE] != number:
                    self.changed.wait(MISSED)  # the thread may have looked just before it was awaited
            self.is_awaited = False
        error, self.error = self.error, None
        return error

    def run(self) -> None:
        """All tasks, for ever."""
        number = 0
        while True:
            if not next_task(self.counters, number, spins(AWAKE), spins(HAND_OVER)):
                with self.changed:
                    while self.counters[GIVEN] == number:
                        self.changed.wait()
            number += 1
            busy, kernel, part = self.task
            try:
                leave(busy)
                busy.append(cpu())
                self.cpu = busy[-1]
                kernel(*part)
            except BaseException as error:
                self.error = error
            self.task = busy = kernel = part = ()
            if self.is_awaited:
                with self.changed:
                    self.counters[DONE] = number
                    self.changed.notify_all()


_idle: list[list[Worker]] = []


def run_beside(kernel: Callable[..., Any], parts: Sequence[Sequence[Any]]) -> None:
    """Call kernel(*part) for each part, the first one on this thread and the others beside it."""
    try:
        team = _idle.pop()
    except IndexError:
        team = []
    team += [Worker() for _ in range(len(parts) - 1 - len(team))]
    leave([worker.cpu for worker in team])
    busy = [cpu()]
    for worker, part in zip(team, parts[1:], strict=False):  # a team may be larger
        worker.give(busy, kernel, part)
    try:
        kernel(*parts[0])
    finally:
        errors = [worker.wait() for worker in team[: len(parts) - 1]]
        _idle.append(team)
    for error in filter(None, errors):
        raise error


def leave(busy: Sequence[int]) -> None:
    """Move this thread to a CPU that is not among the `busy` ones.

    Linux may wake a thread on the CPU that it was woken from and leave it there, so that one of the two waits although
    another CPU is idle; most of all after another library's threads have moved ours. Affinity moves it at once.
    """
    if cpu() in busy and hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        if allowed.difference(busy):
            with contextlib.suppress(OSError):  # where a sandbox forbids it
                os.sched_setaffinity(0, allowed.difference(busy))
                os.sched_setaffinity(0, allowed)


def cpu() -> int:
    """The number of the CPU that this thread runs on; -1 where that is not known."""
    return _cpu_function()()


@functools.cache
def _cpu_function() -> Callable[[], int]:
    try:
        return cast(Callable[[], int], ctypes.PyDLL(None).sched_getcpu)
    except (AttributeError, OSError, TypeError):
        return lambda: -1


@functools.cache
def spins(seconds: float) -> int:
    """How many looks at a counter take so long."""
    counters, looks = np.zeros(16, np.int64), 2000
    await_count(counters, DONE, 1, 1)
    start = time.perf_counter()
    await_count(counters, DONE, 1, looks)
    return max(int(looks * seconds / (time.perf_counter() - start)), 1)


@intrinsic
def look(_context: Any, place: Any) -> Any:
    """A counter that another thread writes, after a short pause for the CPU's sake."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        name = PAUSES.get(platform.machine().lower())
        if name is not None:
            known = builder.module.globals.get(name)
            builder.call(known or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
        return builder.load_atomic(arguments[0], "acquire", 8)

    return types.int64(place), emit


@intrinsic
def announce(_context: Any, place: Any, number: Any) -> Any:
    """Write a counter that another thread looks at."""

    def emit(target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        builder.store_atomic(arguments[1], arguments[0], "release", 8)
        return target.get_dummy_value()

    return types.void(place, types.int64), emit


def await_count(counters: Any, at: int, number: int, most: int) -> bool:
    """Look until the counter has reached a number, or give up."""
    place, looks = ahead(pointer(counters), at), 0
    while look(place) < number and looks < most:
        looks += 1
    return looks < most


def next_task(counters: Any, number: int, most: int, more: int) -> bool:
    """Say that `number` tasks are done, and look until there is another one, or give up.

    Who gives a task still holds the interpreter's lock for a moment; who would ask for it then, would fall asleep. So
    there are some `more` looks.
    """
    given, done = ahead(pointer(counters), GIVEN), ahead(pointer(counters), DONE)
    announce(done, number)
    looks = 0
    while look(given) <= number and looks < most:
        looks += 1
    for _ in range(more if looks < most else 0):
        look(given)
    return looks < most


await_count, next_task = jit(await_count), jit(next_task)

if hasattr(os, "register_at_fork"):  # a forked child has none of the threads of its parent
    os.register_at_fork(after_in_child=_idle.clear)

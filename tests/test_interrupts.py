"""Exceptions at any moment (Ctrl-C, signal handlers, other threads): threads have ended before they go on.

Nothing here depends on when an exception comes: at random moments, only those that came are counted.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from numba.core.compiler_lock import global_compiler_lock
from test_kernel_safety import CHECKED, python

import attnarray as aa
from attnarray.kernels.numba import team, threads
from attnarray.kernels.numba import team_code as code

PACKAGE = str(Path(aa.__file__).parent)
THREADS = 3


class Interrupt(BaseException):
    """As KeyboardInterrupt, but pytest does not stop."""


@pytest.fixture(autouse=True)
def _always_parallel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(THREADS))
    yield
    assert not any(word(team_, code.BUSY) for team_ in teams())


def word(address: int, at: int) -> int:
    return ctypes.c_int64.from_address(address + at).value


def teams() -> list[int]:
    found, address = [], team.read(code.TEAMS)
    while address:
        found.append(address)
        address = word(address, code.NEXT)
    return found


class Problem:
    """Attention of a size, forward and backward, whose bits are known."""

    def __init__(self, seed: int) -> None:
        sizes = [(1, 4, 64, 32), (2, 2, 48, 16), (1, 2, 2, 64)]
        self.arrays = np.random.default_rng(seed).standard_normal((3, *sizes[seed % 3])).astype(np.float32)
        self.expected = self.compute()

    def compute(self) -> list[np.ndarray]:
        out, pullback = aa.vjp(aa.scaled_dot_product_attention, *self.arrays, is_causal=True)
        return [out, *pullback(self.arrays[2])]

    def check(self) -> None:
        for found, expected in zip(self.compute(), self.expected, strict=True):
            np.testing.assert_array_equal(found, expected)


class Zeros:
    """New arrays where those of an interrupted call may have been: a thread that still wrote would be seen."""

    def __init__(self, problem: Problem) -> None:
        self.arrays = [np.zeros_like(x) for x in problem.expected for _ in range(2)]

    def check(self) -> None:
        assert not any(map(np.any, self.arrays))


def traced_until(n: int, raised: threading.Event, others: tuple[Callable[..., Any], ...] = ()) -> Callable[..., Any]:
    """A trace function that raises at the n-th bytecode of the library, or of other functions."""
    left = n

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE) and all(frame.f_code is not f.__code__ for f in others):
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left < 0:
            raised.set()
            raise Interrupt
        return trace

    return trace


def test_an_exception_at_any_bytecode_waits_for_the_threads() -> None:
    """For each bytecode of the library from `split_rows` on, and of the caller's part, while a thread computes."""
    caller, running = threading.get_ident(), set()
    started, raised, gone = threading.Event(), threading.Event(), threading.Event()

    def part(start: int, _stop: int) -> None:
        if threading.get_ident() == caller:
            started.wait()
            sum(range(start))
            raised.set()  # nothing will be, or in the library
        else:
            running.add(start)
            started.set()
            gone.wait()
            time.sleep(0.0005)  # a caller who did not wait would be gone
            running.discard(start)

    def let_go() -> None:
        raised.wait()
        gone.set()

    threads.run_parts(int, [(0,)] * THREADS)
    sizes, n, came = team.team_sizes(), 0, True
    while came:
        came = False
        for event in (started, raised, gone):
            event.clear()
        helper = threading.Thread(target=let_go)
        helper.start()
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it when tracing begins
        sys.settrace(traced_until(n, raised, (part,)))
        try:
            threads.split_rows(part, THREADS, 10**6)
        except Interrupt:
            came = True
        finally:
            sys.settrace(before)
        assert not running
        raised.set()
        helper.join()
        n += 1
    assert n > 50
    assert team.team_sizes() == sizes


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_an_exception_at_any_bytecode_of_attention(backward: bool) -> None:
    """All that computes attention can be called again, whichever bytecode the exception came at."""
    problem = Problem(0)
    out, ctx = aa.scaled_dot_product_attention_fwd(*problem.arrays, is_causal=True)
    threads.run_parts(int, [(0,)] * THREADS)
    sizes, n, came = team.team_sizes(), 0, True
    while came:
        came, before = False, sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it when tracing begins
        sys.settrace(traced_until(n, threading.Event()))
        try:
            if backward:
                aa.scaled_dot_product_attention_bwd(out, ctx)
            else:
                aa.scaled_dot_product_attention_fwd(*problem.arrays, is_causal=True)
        except Interrupt:
            came = True
        finally:
            sys.settrace(before)
        assert not any(word(address, code.BUSY) for address in teams())
        if n % 10 == 0:
            problem.check()
        n += 1
    problem.check()
    assert n > 200
    assert team.team_sizes() == sizes


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_many_signals() -> None:
    """The handler raises whenever attention computes, up to three times for one call."""
    problems, wanted = [Problem(seed) for seed in range(3)], 600
    came, left, done = 0, 0, threading.Event()

    def protected(problem: Problem) -> None:
        problem.check()

    def handle(_number: int, frame: FrameType | None) -> None:
        nonlocal came, left
        while frame is not None and frame.f_code is not protected.__code__:
            frame = frame.f_back
        if frame is not None and left > 0:
            came, left = came + 1, left - 1
            raise Interrupt

    def press(seed: int) -> None:
        pause = random.Random(seed)
        while not done.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(pause.random() * 1e-3)

    for problem in problems:
        problem.check()
    sizes = team.team_sizes()
    before = signal.signal(signal.SIGUSR1, handle)
    pressing = [threading.Thread(target=press, args=(seed,)) for seed in range(2)]
    for thread in pressing:
        thread.start()
    try:
        for n in itertools.count():
            problem, zeros, left = problems[n % 3], Zeros(problems[(n - 1) % 3]), 3
            with contextlib.suppress(Interrupt):
                protected(problem)
            zeros.check()
            if came >= wanted:
                break
    finally:
        done.set()
        for thread in pressing:
            thread.join()
        signal.signal(signal.SIGUSR1, before)
    for problem in problems:
        problem.check()
    assert team.team_sizes() == sizes


def send(thread: int, kind: type[BaseException] = Interrupt) -> None:
    """Have an exception raised in a thread at one of its next bytecodes."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in(ctypes.c_ulong(thread), ctypes.py_object(kind)) == 1


def test_many_exceptions_from_other_threads_in_several_callers() -> None:
    """Each caller computes until the one exception of a round has come."""
    callers, rounds = 4, 150
    problems = [Problem(seed) for seed in range(callers)]

    def interrupted(problem: Problem, computing: threading.Event, sent: threading.Event) -> None:
        computing.set()
        while not sent.is_set():
            problem.check()
        while True:  # it comes at a next bytecode
            pass

    def one_caller(problem: Problem) -> int:
        computing, sent, pause, came = threading.Event(), threading.Event(), random.Random(0), 0
        me = threading.get_ident()

        def interrupt() -> None:
            computing.wait()
            time.sleep(pause.random() * 2e-3)
            send(me)
            sent.set()

        for _ in range(rounds):
            helper, zeros = threading.Thread(target=interrupt), Zeros(problem)
            helper.start()
            try:
                interrupted(problem, computing, sent)
            except Interrupt:
                came += 1
            helper.join()
            computing.clear()
            sent.clear()
            zeros.check()
            problem.check()
        return came

    team.forget_teams()
    with ThreadPoolExecutor(callers) as pool:
        assert list(pool.map(one_caller, problems)) == [rounds] * callers
    assert len(team.team_sizes()) <= callers  # never one more, though each was interrupted


def test_an_exception_sent_to_a_worker_is_raised_in_the_caller() -> None:
    caller, spinning = threading.get_ident(), threading.Event()
    workers: list[int] = []

    def part(_n: int) -> None:
        if threading.get_ident() == caller:
            spinning.wait()
            send(workers[-1])
        else:
            workers.append(threading.get_ident())
            spinning.set()
            while True:
                pass

    def failing(_n: int) -> None:
        part(_n)
        raise ValueError

    threads.run_parts(int, [(0,), (0,)])
    sizes = team.team_sizes()
    for _ in range(20):
        for kernel, kind in ((part, Interrupt), (failing, ValueError)):  # an exception of the caller comes first
            spinning.clear()
            with pytest.raises(kind):
                threads.run_parts(kernel, [(0,), (0,)])
    send(workers[-1])  # while it sleeps
    Problem(0).check()
    assert team.team_sizes() == sizes
    with pytest.raises(Interrupt):
        run_python_parts()


def run_python_parts() -> None:
    """Until an exception comes to a worker, which runs Python here."""
    while True:
        threads.run_parts(lambda _n: time.sleep(1e-4), [(0,)] * THREADS)


def test_no_reference_is_left() -> None:
    class Held:
        pass

    def part(held: Held, n: int) -> None:
        together.wait()
        if n == 1:
            raise ValueError(held)

    together = threading.Barrier(THREADS)
    held = Held()
    gone = weakref.ref(held)
    with pytest.raises(ValueError, match="Held"):
        threads.run_parts(part, [(held, n) for n in range(THREADS)])
    del held
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("how", ["signal", "finalizer", "part"])
def test_attention_amid_attention(how: str) -> None:
    """A handler, a finalizer or a part that computes attention itself, while the team of its thread is busy."""
    problem, caller, checked = Problem(0), threading.get_ident(), []

    def check(*_: Any) -> None:
        problem.check()
        checked.append(how)

    class Finalized:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            check()

    def part(_n: int) -> None:
        if threading.get_ident() != caller:
            return
        if how == "signal":
            signal.raise_signal(signal.SIGUSR1)
        elif how == "finalizer":
            Finalized()
            gc.collect()
        else:
            check()

    before = signal.signal(signal.SIGUSR1, check)
    try:
        for _ in range(5):
            threads.run_parts(part, [(0,)] * THREADS)
        sizes = team.team_sizes()
        threads.run_parts(part, [(0,)] * THREADS)
        assert team.team_sizes() == sizes
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(checked) >= 6
    problem.check()


def test_amid_compiling_one_thread_computes() -> None:
    """Another one would wait for the compiler, which waits for it."""
    found: list[int] = []
    with global_compiler_lock:
        threads.run_parts(lambda _n: found.append(threading.get_ident()), [(0,)] * 50)
    assert found == [threading.get_ident()] * 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_amid_a_call_is_an_error_in_the_child() -> None:
    python("""
import os, threading, warnings
from attnarray.kernels.numba import team
warnings.simplefilter("ignore")
caller, busy, child, release = threading.get_ident(), threading.Event(), [], threading.Event()
def part(n):
    if threading.get_ident() != caller:
        busy.set()
        release.wait()
    else:
        busy.wait()
        child.append(os.fork())
        release.set()
try:
    team.run_beside(part, [(0,), (1,)])
except RuntimeError as error:
    assert child == [0] and "forked" in str(error)
    team.run_beside(int, [(0,), (0,)])
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 7
""")


@pytest.mark.parametrize("most", range(THREADS))
def test_threads_that_cannot_be_started(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others compute all parts; more threads are started as soon as that is possible."""
    started: list[int] = []

    def refuse(*arguments: Any) -> int:
        if len(started) >= most:
            raise RuntimeError("can't start new thread")
        started.append(0)
        return _thread.start_new_thread(*arguments)

    Problem(0).check()
    team.forget_teams()
    before = team.read(code.START)
    team.write({code.START: id(refuse)})
    try:
        for seed in range(3):
            Problem(seed).check()
        assert team.team_sizes() == [most]
    finally:
        team.write({code.START: before})
    Problem(0).check()
    assert team.team_sizes() == [THREADS - 1]


def test_without_memory_for_threads() -> None:
    python(
        f"""
{CHECKED}
import threading
from attnarray.kernels.numba import team, threads
threads.MIN_WORK_PER_THREAD = 1
threading.stack_size(2**46)
check()
assert team.team_sizes() == [0]
""",
        ATTNARRAY_NUM_THREADS="3",
    )


AT_THE_END = """
import atexit, builtins, os, threading, weakref
import numpy as np, attnarray as aa
from attnarray.kernels.numba import threads
threads.MIN_WORK_PER_THREAD = 1
arrays = np.random.default_rng(0).standard_normal((3, 2, 3, 40, 8))

def compute(fwd=aa.scaled_dot_product_attention_fwd, bwd=aa.scaled_dot_product_attention_bwd, arrays=arrays):
    out, ctx = fwd(*arrays, is_causal=True)
    grads = bwd(arrays[0], ctx)
    return out, grads.query, grads.key, grads.value

def check(compute=compute, expected=b"".join(x.tobytes() for x in compute())):
    assert b"".join(x.tobytes() for x in compute()) == expected

def say(name, check=check, write=os.write):
    check()
    write(1, name)

class Last:
    def __del__(self, say=say):
        say(b"done")
"""

LAST_CALLS = {
    "a global": "last = Last()",
    "builtins": "builtins.last = Last()",
    "a cycle": "last = Last(); last.itself = last; del last",
    "atexit": "atexit.register(say, b'done')",
    "weakref.finalize": "weakref.finalize(compute, say, b'done')",
    "daemon threads": """
def for_ever():
    while True:
        check()
for _ in range(3):
    threading.Thread(target=for_ever, daemon=True).start()
builtins.last = Last()
""",
    "without a team": "from attnarray.kernels.numba import team; team.forget_teams(); builtins.last = Last()",
    "a thread": "threading.Thread(target=lambda: [check() for _ in range(50)] and say(b'done')).start()",
}


@pytest.mark.parametrize("last", LAST_CALLS.values(), ids=LAST_CALLS)
def test_calls_while_the_interpreter_ends(last: str) -> None:
    assert python(AT_THE_END + last, ATTNARRAY_NUM_THREADS="3") == "done"

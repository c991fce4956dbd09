"""Exceptions at any moment (Ctrl-C, signal handlers, other threads): threads end before they propagate.

Nothing here depends on when an exception comes: at random moments, only those that came are counted.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.dispatch import ignoring_fp_errors
from attnarray.kernels.numba.runtime import team, threads
from attnarray.kernels.numba.runtime import team_code as code
from tests.support.thread_calls import THREADS, Interrupt, Problem, send, teams, word

PACKAGE = str(Path(aa.__file__).parent)


pytestmark = pytest.mark.usefixtures("few_threads")


class Zeros:
    """New arrays in the memory of an interrupted call, to detect threads that still write."""

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
            time.sleep(0.0005)  # a caller that did not wait would have returned
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
        sys._getframe().f_trace_opcodes = True  # Python 3.12 checks it when tracing begins
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
    """Attention can be called again, whichever bytecode the exception came at."""
    problem = Problem(0)
    out, ctx = aa.scaled_dot_product_attention_fwd(*problem.arrays, is_causal=True)
    threads.run_parts(int, [(0,)] * THREADS)
    sizes, n, came = team.team_sizes(), 0, True
    while came:
        came, before = False, sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 checks it when tracing begins
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


def test_numpys_handling_of_errors_is_as_before_at_any_bytecode() -> None:
    """Array code changes it."""
    quiet = ignoring_fp_errors(lambda: None)
    n, came = 0, True
    with np.errstate(all="raise"):
        while came:
            came, before = False, sys.gettrace()
            sys._getframe().f_trace_opcodes = True  # Python 3.12 checks it when tracing begins
            sys.settrace(traced_until(n, threading.Event(), (quiet, np.errstate.__enter__, np.errstate.__exit__)))
            try:
                quiet()
            except Interrupt:
                came = True
            finally:
                sys.settrace(before)
            assert set(np.geterr().values()) == {"raise"}
            n += 1
    assert n > 20


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


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads whose `Interrupt` Python ignored, as it came in a callback of the garbage collector."""
    found: set[int] = set()

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is Interrupt:
            found.add(threading.get_ident())
        else:
            sys.__unraisablehook__(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    return found


def test_many_exceptions_from_other_threads_in_several_callers(ignored: set[int]) -> None:
    """Each caller computes until the one exception of a round has come."""
    callers, rounds = 4, 150
    problems = [Problem(seed) for seed in range(callers)]

    def interrupted(problem: Problem, computing: threading.Event, sent: threading.Event) -> None:
        computing.set()
        while not sent.is_set():
            problem.check()
        while threading.get_ident() not in ignored:  # it comes at a next bytecode
            time.sleep(0)  # CPython 3.11 may forget it until this thread takes the GIL again
        ignored.remove(threading.get_ident())

    def one_caller(problem: Problem) -> int:
        computing, sent, pause, came = threading.Event(), threading.Event(), random.Random(0), 0
        me = threading.get_ident()

        def interrupt() -> None:
            computing.wait()
            time.sleep(pause.random() * 2e-3)
            send(me)
            sent.set()

        while came < rounds:
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

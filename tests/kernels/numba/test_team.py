"""The threads of a call, whatever it meets: errors in them, calls amid calls, forks, no threads, the end of Python."""

from __future__ import annotations

import _thread
import ctypes
import gc
import os
import signal
import threading
import time
import weakref
from typing import Any

import pytest
from numba.core.compiler_lock import global_compiler_lock

from attnarray.kernels.numba.runtime import team, threads
from attnarray.kernels.numba.runtime import team_code as code
from attnarray.kernels.numba.runtime.jit import jit
from tests.support.processes import CHECKED, python
from tests.support.thread_calls import THREADS, Interrupt, Problem, send
from tests.support.tiers import first

pytestmark = pytest.mark.usefixtures("few_threads")


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
                time.sleep(0)

    def failing(_n: int) -> None:
        part(_n)
        raise ValueError

    problem = Problem(0)  # compiled here, since Python runs in workers that compile
    sizes = team.team_sizes()
    for _ in range(20):
        for kernel, kind in ((part, Interrupt), (failing, ValueError)):  # an exception of the caller comes first
            spinning.clear()
            with pytest.raises(kind):
                threads.run_parts(kernel, [(0,), (0,)])
    send(workers[-1])  # while it sleeps
    problem.check()
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
from attnarray.kernels.numba.runtime import team
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
    team.run_parallel(part, [(0,), (1,)])
except RuntimeError as error:
    assert child == [0] and "forked" in str(error)
    team.run_parallel(int, [(0,), (0,)])
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
import threading
from attnarray.kernels.numba.runtime import team, threads
threads.MIN_WORK_PER_THREAD = 1
threading.stack_size(2**46)
{CHECKED}
assert team.team_sizes() == [0]
""",
        ATTNARRAY_NUM_THREADS="3",
    )


AT_THE_END = """
import atexit, builtins, os, threading, weakref
import numpy as np, attnarray as aa
from attnarray.kernels.numba.runtime import threads
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
    "without a team": "from attnarray.kernels.numba.runtime import team; team.forget_teams(); builtins.last = Last()",
    "a thread": "threading.Thread(target=lambda: [check() for _ in range(50)] and say(b'done')).start()",
}


@pytest.mark.parametrize("last", first(3, LAST_CALLS.values()), ids=LAST_CALLS)
def test_calls_while_the_interpreter_ends(last: str) -> None:
    assert python(AT_THE_END + last, ATTNARRAY_NUM_THREADS="3") == "done"


@jit
def free_cpus(address: int, k: int) -> Any:
    return code.find_free_cpus(address, k)


@jit
def move(address: int, k: int, shared: int) -> None:
    code.leave_busy_cpu(address, k, shared)


def a_team(cpus: list[int]) -> Any:
    """The memory of a team whose members run on these CPUs."""
    memory = (ctypes.c_int64 * (code.TEAM_BYTES // 8))()
    memory[code.WORKERS // 8] = len(cpus) - 1
    for k, cpu in enumerate(cpus):
        memory[(code.MEMBERS + k * code.MEMBER + code.CPU) // 8] = cpu
    return memory


def test_the_cpus_that_no_other_member_runs_on() -> None:
    memory = a_team([63, 1, 0, -1, 100, 2000])
    mine, words = (code.MEMBERS + 2 * code.MEMBER) // 8, code.CPU_BYTES // 8

    def free(allowed: set[int]) -> set[int]:
        for word_ in range(words):
            bits = sum(1 << cpu % 64 for cpu in allowed if cpu // 64 == word_)
            memory[mine + code.ALLOWED // 8 + word_] = ctypes.c_int64(bits).value
        found = free_cpus(ctypes.addressof(memory), 2)
        bits = [memory[mine + code.FREE // 8 + word_] for word_ in range(words)]
        cpus = {cpu for cpu in range(64 * words) if bits[cpu // 64] >> cpu % 64 & 1}
        assert found == bool(cpus)
        return cpus

    assert free({0, 1, 63, 64, 100, 1023}) == {0, 64, 1023}
    assert free({1, 63}) == set()


@jit
def part_for(address: int, k: int) -> Any:
    return code.next_part(address, k)


def test_a_member_takes_its_own_share_first() -> None:
    memory = a_team([-1] * 3)
    memory[code.SHARES // 8], memory[code.OPEN // 8] = 3, 6  # of seven parts, the caller has taken the first
    for k, (part, past) in enumerate([(1, 2), (2, 4), (4, 7)]):
        memory[(code.MEMBERS + k * code.MEMBER + code.FIRST) // 8] = part
        memory[(code.MEMBERS + k * code.MEMBER + code.PAST) // 8] = past
    taken = [part_for(ctypes.addressof(memory), k) for k in (1, 2, 1, 1, 1, 0, 0)]
    assert taken == [2, 4, 3, 5, 6, 1, -1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_affinity_is_as_before() -> None:
    before = os.sched_getaffinity(0)
    memory = a_team([-1, *before])  # all are busy, whichever this thread runs on
    for cpus in (set(before), set(list(before)[1:])):
        for k, cpu in enumerate(before):
            memory[(code.MEMBERS + (k + 1) * code.MEMBER + code.CPU) // 8] = cpu if cpu in cpus else -1
        move(ctypes.addressof(memory), 0, team.SHARED)
        assert os.sched_getaffinity(0) == before
        assert memory[(code.MEMBERS + code.CPU) // 8] in before


def test_where_the_cpu_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(team.ctypes, "PyDLL", lambda _: object())
        assert team.cpu_functions() == {}
    Problem(0).check()
    before = team.read(code.GETCPU)
    team.write({code.GETCPU: 0})
    try:
        Problem(0).check()
    finally:
        team.write({code.GETCPU: before})

"""The compiled half of `runtime/team.py`: the code of callers and worker threads, uninterruptible by exceptions.

Python raises exceptions of signals and of other threads between two bytecodes. These functions have none: they are C
functions, called by ctypes with the GIL held. So whatever happens in a part, `run` is completed, and returns only when
no thread computes. Python objects are addresses here, and `PyObject_Call` returns 0 for an exception.

A job is a tuple of parts. Its caller and its workers take one after the other, with the GIL held: each those of its
own share first, so that the same thread has the same parts in every call, whose numbers may still be in the cache of
its CPU; and then those that others have not begun. A part that no worker takes, since none could be started or the
interpreter has stopped them, is left for the caller.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from attnarray.kernels.numba.runtime.atomics import add, compare_exchange, exchange, load, pause, store
from attnarray.kernels.numba.runtime.c_calls import call_getter, call_with_buffer
from attnarray.kernels.numba.runtime.jit import CFunction, jit
from attnarray.kernels.numba.runtime.lazy import Lazy, types

LINE = 64  # bytes of a cache line
# Shared by all teams: offsets of words from the address `shared`.
TEAMS, SPINS, HAND_OVER, START, START_ARGUMENTS, EXCEPTION, GETCPU, GETAFFINITY, SETAFFINITY = range(0, 72, 8)
SHARED_BYTES = 2 * LINE
# A team: words that are written together share a cache line.
NEXT, BUSY, WORKERS, JOINED, KERNEL, PARTS, COUNT, SHARES = range(0, 64, 8)
ERROR = LINE  # type, value, traceback of the first exception in a worker; and whether there is one
FAILED = ERROR + 24
OPEN = 2 * LINE  # parts that no thread has taken
FINISHED = 3 * LINE  # parts that workers have finished
MEMBERS = 4 * LINE  # the caller, and then the workers:
ASLEEP, LOCK, CPU, ALLOWED, FREE = 0, 8, 16, LINE, LINE + 128
CPU_BYTES = 128  # of a set of CPUs
FIRST, PAST = 5 * LINE, 5 * LINE + 8  # of its share: the first part that no thread has taken, and the end
MEMBER = 6 * LINE
MOST_WORKERS = 511
TEAM_BYTES = MEMBERS + (MOST_WORKERS + 1) * MEMBER


class PythonFunction(Lazy):
    """A function of Python's C API. Its signature, the result first, has w for a word, i for an int, v for nothing."""

    KINDS = MappingProxyType({"w": "int64", "i": "intc", "v": "void"})

    def __init__(self, name: str, signature: str) -> None:
        super().__init__(self._external)
        self.name, self.signature = name, signature

    def _external(self) -> Any:
        result, *arguments = (getattr(types, self.KINDS[letter]) for letter in self.signature)
        return types.ExternalFunction(self.name, result(*arguments))


new_memory = PythonFunction("PyMem_RawCalloc", "www")
no_memory = PythonFunction("PyErr_NoMemory", "w")
new_lock = PythonFunction("PyThread_allocate_lock", "w")
acquire = PythonFunction("PyThread_acquire_lock", "iwi")  # sleeps through signals
release = PythonFunction("PyThread_release_lock", "vw")
item = PythonFunction("PyTuple_GetItem", "www")
length = PythonFunction("PyTuple_Size", "ww")
call = PythonFunction("PyObject_Call", "wwww")
drop = PythonFunction("Py_DecRef", "vw")
save_thread = PythonFunction("PyEval_SaveThread", "w")
restore_thread = PythonFunction("PyEval_RestoreThread", "vw")  # a daemon thread ends here with the interpreter
fetch_error = PythonFunction("PyErr_Fetch", "vwww")
raise_error = PythonFunction("PyErr_Restore", "vwww")
clear_error = PythonFunction("PyErr_Clear", "v")
error_is = PythonFunction("PyErr_ExceptionMatches", "iw")


def run(kernel: int, parts: int, workers: int, shared: int) -> int:
    """Call kernel(*part) for each part, with up to `workers` workers; return 1 if this process was forked meanwhile."""
    team = acquire_team(shared)
    if team == 0:
        no_memory()
        return 0
    if not start_workers(team, workers, shared):
        store(team + BUSY, 0)
        return 0
    count = length(parts)
    offer_parts(team, kernel, parts, count, shared)
    n, mine, good = 0, 0, True
    while n >= 0 and good:
        mine += 1
        result = call(kernel, item(parts, n), 0)
        if result == 0:
            good = False
        else:
            drop(result)
            n = next_part(team, 0)
    taken = count - exchange(team + OPEN, 0) - mine
    if load(team + FINISHED) < taken:
        if not is_listed(team, shared):
            return 1
        state = save_thread()
        wait_for_parts(team, taken, load(shared + SPINS))
        restore_thread(state)
    raise_worker_error(team, good)
    store(team + BUSY, 0)
    return 0


def work(shared: int) -> int:
    """The loop of a worker thread, which joins a team that lacks one."""
    team, k = join_team(shared)
    if team == 0:
        return 0
    me, spins = member(team, k), load(shared + SPINS)
    state = save_thread()
    while k > 0:  # always, but Numba requires a loop that can end
        spun = 0
        while load(team + OPEN) <= 0 and spun < spins:
            pause()
            spun += 1
        if load(team + OPEN) <= 0:
            sleep_until(me, team + OPEN, 1)
            continue
        for _ in range(load(shared + HAND_OVER)):
            pause()
        leave_busy_cpu(team, k, shared)
        restore_thread(state)
        n = next_part(team, k)
        while n >= 0:
            result = call(load(team + KERNEL), item(load(team + PARTS), n), 0)
            if result != 0:
                drop(result)
            elif exchange(team + FAILED, 1) == 0:
                fetch_error(team + ERROR, team + ERROR + 8, team + ERROR + 16)
            else:
                clear_error()
            add(team + FINISHED, 1)
            wake(member(team, 0))
            n = next_part(team, k)
        state = save_thread()
    return 0


def spin(address: int, count: int) -> int:
    """Read a word `count` times while it is not positive; return how often. Its duration is measured."""
    spun = 0
    while load(address) <= 0 and spun < count:
        pause()
        spun += 1
    return spun


def member(team: int, k: int) -> Any:
    return team + MEMBERS + k * MEMBER


def acquire_team(shared: int) -> Any:
    """A team that was not busy; 0 if there is no memory for one."""
    team = load(shared + TEAMS)
    while team != 0:
        if load(team + BUSY) == 0 and exchange(team + BUSY, 1) == 0:
            return team
        team = load(team + NEXT)
    team = new_memory(1, TEAM_BYTES)
    if team == 0:
        return 0
    if not ensure_lock(member(team, 0)):
        return 0
    store(team + BUSY, 1)
    while True:
        first = load(shared + TEAMS)
        store(team + NEXT, first)
        if compare_exchange(shared + TEAMS, first, team):
            return team


def is_listed(team: int, shared: int) -> Any:
    """Whether the team is listed: a forked child, which has none of its parent's threads, clears the list."""
    other = load(shared + TEAMS)
    while other != 0 and other != team:
        other = load(other + NEXT)
    return other != 0


def ensure_lock(me: int) -> Any:
    """A member sleeps by acquiring its lock, which is already held, until another thread releases it."""
    if load(me + LOCK) == 0:
        lock = new_lock()
        if lock == 0:
            return False
        acquire(lock, 1)
        store(me + LOCK, lock)
        store(me + CPU, -1)
    return True


def start_workers(team: int, workers: int, shared: int) -> bool:
    """Start threads until there are so many workers, or no more can be started; False for other exceptions."""
    size = load(team + WORKERS)
    while size < min(workers, MOST_WORKERS):
        if not ensure_lock(member(team, size + 1)):
            return True
        size += 1
        store(team + WORKERS, size)  # read by the thread when it starts
        result = call(load(shared + START), load(shared + START_ARGUMENTS), 0)
        if result == 0:
            store(team + WORKERS, size - 1)
            if error_is(load(shared + EXCEPTION)) == 0:
                return False
            clear_error()
            return True
        drop(result)
    return True


def join_team(shared: int) -> tuple[int, int]:
    """A team that has fewer threads than workers, and the number of the new worker."""
    team = load(shared + TEAMS)
    while team != 0:
        joined = load(team + JOINED)
        while joined < load(team + WORKERS):
            if compare_exchange(team + JOINED, joined, joined + 1):
                return team, joined + 1
            joined = load(team + JOINED)
        team = load(team + NEXT)
    return 0, 0


def offer_parts(team: int, kernel: int, parts: int, count: int, shared: int) -> None:
    """Offer all parts but the first one, which the caller takes, to all members."""
    store(team + KERNEL, kernel)
    store(team + PARTS, parts)
    store(team + COUNT, count)
    store(team + FINISHED, 0)
    workers = load(team + WORKERS)
    leave_busy_cpu(team, 0, shared)
    for k in range(workers):
        store(member(team, k + 1) + CPU, -1)
    shares = min(workers + 1, count)
    store(team + SHARES, shares)
    for k in range(shares):
        store(member(team, k) + FIRST, count * k // shares)
        store(member(team, k) + PAST, count * (k + 1) // shares)
    store(member(team, 0) + FIRST, 1)
    store(team + OPEN, count - 1)
    for k in range(min(workers, count - 1)):
        wake(member(team, k + 1))


def next_part(team: int, k: int) -> Any:
    """The number of a part for member k alone; -1 if there is none left."""
    left = load(team + OPEN)
    while left > 0:
        if compare_exchange(team + OPEN, left, left - 1):
            return part_of_shares(team, k)
        left = load(team + OPEN)
    return -1


def part_of_shares(team: int, k: int) -> Any:
    """A part of member k's share, or of the next one that has any: there is one for each thread that may take one."""
    shares = load(team + SHARES)
    for n in range(shares):
        owner = member(team, (k + n) % shares)
        part = add(owner + FIRST, 1)
        if part < load(owner + PAST):
            return part
    return -1


def wait_for_parts(team: int, number: int, spins: int) -> None:
    """Wait until workers have finished so many parts: spin for as long as waking takes, then sleep."""
    spun = 0
    while load(team + FINISHED) < number:
        if spun < spins:
            pause()
            spun += 1
        else:
            sleep_until(member(team, 0), team + FINISHED, number)


def raise_worker_error(team: int, good: bool) -> None:
    """Raise what was raised in a worker, unless this thread has an exception itself."""
    if exchange(team + FAILED, 0) != 0:
        error, value, trace = load(team + ERROR), load(team + ERROR + 8), load(team + ERROR + 16)
        if good:
            raise_error(error, value, trace)
        else:
            drop(error)
            drop(value)
            drop(trace)


def sleep_until(me: int, address: int, least: int) -> None:
    """Sleep until another thread wakes this one, unless the word has reached `least` by now."""
    store(me + ASLEEP, 1)
    if load(address) < least or exchange(me + ASLEEP, 0) == 0:  # or another thread is about to release the lock
        acquire(load(me + LOCK), 1)


def wake(other: int) -> None:
    if load(other + ASLEEP) != 0 and exchange(other + ASLEEP, 0) != 0:
        release(load(other + LOCK))


def leave_busy_cpu(team: int, k: int, shared: int) -> None:
    """Move this thread to a CPU that no other member of its team runs on.

    Linux may wake a thread on the CPU that it was woken from and leave it there, so that one of the two waits although
    another CPU is idle; mostly after another library's threads have displaced ours. Affinity moves it at once.
    """
    if load(shared + GETCPU) != 0:
        me, here = member(team, k), call_getter(load(shared + GETCPU))
        if is_cpu_busy(team, k, here):
            choose = load(shared + SETAFFINITY)
            known = call_with_buffer(load(shared + GETAFFINITY), 0, CPU_BYTES, me + ALLOWED) >= 0
            # A sandbox may forbid it.
            if known and find_free_cpus(team, k) and call_with_buffer(choose, 0, CPU_BYTES, me + FREE) >= 0:
                call_with_buffer(choose, 0, CPU_BYTES, me + ALLOWED)
                here = call_getter(load(shared + GETCPU))
        store(me + CPU, here)


def is_cpu_busy(team: int, k: int, cpu: int) -> Any:
    """Whether a member other than k runs there."""
    busy = False
    for other in range(load(team + WORKERS) + 1):
        busy |= other != k and load(member(team, other) + CPU) == cpu
    return busy


def find_free_cpus(team: int, k: int) -> Any:
    """Store the CPUs on which member k may run and no other one does; return whether there are any."""
    me, found = member(team, k), False
    for word in range(CPU_BYTES // 8):
        free = load(me + ALLOWED + 8 * word)
        for other in range(load(team + WORKERS) + 1):
            cpu = load(member(team, other) + CPU)
            if other != k and cpu >= 0 and cpu // 64 == word:
                free &= ~(1 << (cpu % 64))
        store(me + FREE + 8 * word, free)
        found |= free != 0
    return found


member, acquire_team, ensure_lock, start_workers = jit(member, acquire_team, ensure_lock, start_workers, inner=True)
join_team, offer_parts, wait_for_parts = jit(join_team, offer_parts, wait_for_parts, inner=True)
part_of_shares, next_part = jit(part_of_shares, next_part, inner=True)
sleep_until, wake, is_listed, raise_worker_error = jit(sleep_until, wake, is_listed, raise_worker_error, inner=True)
leave_busy_cpu, is_cpu_busy, find_free_cpus = jit(leave_busy_cpu, is_cpu_busy, find_free_cpus, inner=True)
run, work, spin = CFunction(run), CFunction(work), CFunction(spin)  # type: ignore[assignment]

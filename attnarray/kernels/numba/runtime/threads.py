"""Splits a kernel's rows over threads: kernels are serial and release the GIL, so any thread may call them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from attnarray.kernels.numba.runtime.cpus import thread_count
from attnarray.kernels.numba.runtime.jit import entry_and_parts
from attnarray.kernels.numba.runtime.team import SPIN, run_parallel


def split_rows(kernel: Callable[..., Any], rows: int, work: int, *args: Any, each: int = 1) -> None:
    """Call kernel(start, stop, *args) over [0, rows), in parallel if `work`, in nanoseconds, is large enough.

    Each row is computed by one thread, and each thread computes alike: results do not depend on the number of threads.
    With several parts for `each` thread, one that the system holds up delays the others less.
    """
    threads = threads_for(AWAKE * work, rows)
    if threads == 1:
        kernel(0, rows, *args)
        return
    count = min(threads * each, rows)
    bounds = [rows * n // count for n in range(count + 1)]
    run_parts(kernel, [(start, stop, *args) for start, stop in itertools.pairwise(bounds)], work)


def run_parts(kernel: Callable[..., Any], parts: Sequence[tuple[Any, ...]], work: float = math.inf) -> None:
    """Call kernel(*part) for each part, the first one on this thread and the others in parallel.

    All on this thread if `work`, in nanoseconds, does not pay for waking others, and they must have fallen asleep.
    """
    if len(parts) == 1:
        kernel(*parts[0])
        return
    if work < 2 * MIN_WORK_PER_THREAD and time.perf_counter() - _ENDED[0] > SPIN:
        for part in parts:
            kernel(*part)
    else:
        run_parallel(*entry_and_parts(kernel, parts))
    _ENDED[0] = time.perf_counter()


_ENDED = [0.0]  # when the last parts did, by the clock

# Nanoseconds; waking a thread takes about half as long.
MIN_WORK_PER_THREAD = 2**16
AWAKE = 2  # so much less work pays off for threads that are awake


def threads_for(work: float, most: int) -> int:
    """The number of threads that pay off for `work` nanoseconds of one thread, at most `most`."""
    return 1 if is_small(work, most) else min(thread_count(), int(work // MIN_WORK_PER_THREAD), most)


def is_small(work: float, most: int) -> bool:
    """Whether a second thread never pays off."""
    return work < 2 * MIN_WORK_PER_THREAD or most < 2

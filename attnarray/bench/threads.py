"""The same number of threads for all libraries, set before any of them starts its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Variables that the libraries read when they are loaded. XLA has no flag for it: it counts the CPUs, or reads NPROC.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ATTNARRAY_NUM_THREADS",
    "NPROC",
    "PJRT_NPROC",
)
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}  # for measuring memory: see memory.py
# OpenBLAS's threads spin while they wait for work, for 2^26 cycles by default, which would slow the next peer.
SHORT_WAIT = {"OPENBLAS_THREAD_TIMEOUT": "14"}


def environment(threads: int) -> dict[str, str]:
    """The variables as they must be."""
    return {**dict.fromkeys(VARIABLES, str(threads)), **ONE_HEAP, **SHORT_WAIT}


def restrict(threads: int) -> None:
    """Restart the command on so many CPUs and with the variables set, unless it was started that way.

    Libraries that read no variable count the CPUs that they may use, so on Linux these are restricted too.
    """
    wanted = environment(threads)
    if all(os.environ.get(name) == value for name, value in wanted.items()) or not _is_our_command(sys.orig_argv):
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    sys.stdout.flush()
    os.environ.update(wanted)
    command = [sys.executable, *sys.orig_argv[1:]]
    if os.name == "nt":  # there, exec returns to the shell before the command ends
        sys.exit(subprocess.run(command, check=False).returncode)
    os.execv(sys.executable, command)


def _is_our_command(arguments: Sequence[str]) -> bool:
    """Whether this process is `attnarray bench ...`, and not another program that calls it."""
    before = arguments[: arguments.index("bench")] if "bench" in arguments else []
    return bool(before) and (before[-1] == "attnarray.cli" or Path(before[-1]).stem in ("attnarray", "cli"))

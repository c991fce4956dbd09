"""Starts programs with mpiexec."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# One thread for each rank; Open MPI refuses more ranks than processors, and to run as root, unless it is told.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "ATTNARRAY_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "true",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpiexec() -> str | None:
    """The program that starts ranks: that of the environment of this Python, else that of the machine."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def missing() -> str:
    """What tests of several processes lack; empty if nothing."""
    packages = [name for name in ("mpi4py", "dask", "distributed") if importlib.util.find_spec(name) is None]
    if packages or mpiexec() is None:
        return f"{' and '.join(packages) or 'mpiexec'} not installed: make test-distributed"
    return ""


def run_ranks(size: int, *program: str) -> subprocess.CompletedProcess[str]:
    """Run `python program` on that many ranks; a rank that raises ends all."""
    command = [str(mpiexec()), "-n", str(size), sys.executable, "-m", "mpi4py", *program]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def results(size: int, name: str, *arguments: str) -> dict[str, Any]:
    """What a program of `mpi_programs` prints."""
    done = run_ranks(size, "-m", "tests.support.mpi_programs", name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found

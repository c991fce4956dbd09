"""The threads of the library that computes NumPy's matrix products (OpenBLAS, MKL or BLIS), for our own commands.

Its threads spin while they wait for each other. Beside the threads of the CPU kernels, or of any other process, they
take the processors from whoever computes: training was several times slower. The commands set their number; importing
the package never does, since it is the user's process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Functions to set and to read the number of threads; wheels of NumPy rename those of OpenBLAS.
FUNCTIONS = (
    ("scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"),
    ("scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"),
    ("openblas_set_num_threads64_", "openblas_get_num_threads64_"),
    ("openblas_set_num_threads", "openblas_get_num_threads"),
    ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
    ("bli_thread_set_num_threads", "bli_thread_get_num_threads"),
)
VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
NAMES = re.compile(r"openblas|mkl_rt|blis", re.IGNORECASE)


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[list[str]]:
    """Within the block NumPy's products use so many threads; gives the files of the libraries that were found."""
    found = [(path, functions) for path in _libraries() if (functions := _functions(path)) is not None]
    before = [get() for _, (_, get) in found]
    try:
        for _, (set_, _) in found:
            set_(count)
        yield [str(path) for path, _ in found]
    finally:
        for (_, (set_, _)), number in zip(found, before, strict=True):
            set_(number)


def one_thread_unless_asked() -> contextlib.AbstractContextManager[Any]:
    """What our commands do: one thread for NumPy's products, unless the environment names a number for them."""
    asked = any(os.environ.get(name) for name in VARIABLES)
    return contextlib.nullcontext() if asked else blas_threads(1)


def _functions(path: Path) -> tuple[Any, Any] | None:
    with contextlib.suppress(OSError):
        library = ctypes.CDLL(str(path))
        for set_, get in FUNCTIONS:
            if hasattr(library, set_) and hasattr(library, get):
                return getattr(library, set_), getattr(library, get)
    return None


def _libraries() -> list[Path]:
    """The files of such libraries in this process; where the system does not list them, those beside NumPy."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        files = {Path(line.split(maxsplit=5)[5]) for line in lines if len(line.split(maxsplit=5)) == 6}
    except OSError:
        package = Path(np.__file__).parent
        files = {path for folder in (package / ".dylibs", package.parent / "numpy.libs") for path in folder.glob("*")}
    return sorted(path for path in files if NAMES.search(path.name))

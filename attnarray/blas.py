"""One thread for NumPy's matrix products, in our own commands.

The threads of OpenBLAS, MKL or BLIS spin while they wait for each other, and so take CPUs from the threads of the CPU
kernels and of other processes. Importing the package changes nothing: the process is the user's.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from typing import Any

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def one_thread_unless_asked() -> contextlib.AbstractContextManager[Any]:
    """Limit NumPy's products to one thread within the block.

    Not if the environment sets a number for them, nor without the package threadpoolctl.
    """
    if any(os.environ.get(name) for name in VARIABLES) or importlib.util.find_spec("threadpoolctl") is None:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[Any] = importlib.import_module("threadpoolctl").threadpool_limits(
        limits=1, user_api="blas"
    )
    return limits

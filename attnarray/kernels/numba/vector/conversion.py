"""Whole arrays from 16 bits to float32 and back, at the speed of memory: for kernels that read no 16-bit numbers.

NumPy converts one number at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.memory import ahead, pointer_at
from attnarray.kernels.numba.vector.sixteen import NATIVE, SIXTEEN_BITS, narrow_row, storage_code, widen_row

NANOSECONDS = 0.2  # for each number
FLOAT32 = np.dtype(np.float32)


def converted(x: np.ndarray, dtype: Any) -> np.ndarray:
    """`x` in another dtype; `x` itself if it has it already."""
    if x.dtype == dtype:
        return x
    storages = storage_code(x.dtype), storage_code(dtype)
    widens = storages[0] != NATIVE and dtype == FLOAT32 and x.dtype.isnative
    narrows = storages[1] != NATIVE and x.dtype == FLOAT32 and dtype.isnative
    if not (widens or narrows) or not x.flags.c_contiguous or not x.flags.aligned:
        return x.astype(dtype)
    out = np.empty(x.shape, dtype)
    given = (max(storages), address(x), address(out), np.float32(0))
    split_rows(_widen if widens else _narrow, x.size, int(NANOSECONDS * x.size), *given)
    return out


def warmup(dtype: str) -> None:
    """Compile the kernels, which are there for float32."""
    if dtype == "float32":
        for kernel in (_widen, _narrow):
            kernel(0, 0, NATIVE, 0, 0, np.float32(0))


def _widen(first: int, past: int, storage: int, x: int, out: int, like: Any) -> None:
    target = ahead(pointer_at(like, out), first)
    widen_row(storage, past - first, x + SIXTEEN_BITS * first, SIXTEEN_BITS, target)


def _narrow(first: int, past: int, storage: int, x: int, out: int, like: Any) -> None:
    source = ahead(pointer_at(like, x), first)
    narrow_row(storage, past - first, source, out + SIXTEEN_BITS * first, SIXTEEN_BITS)


_widen, _narrow = jit(_widen, _narrow, fastmath=EXACT)

"""A cuBLAS made of NumPy: `gemmStridedBatchedEx` as CuPy has it, which refuses what cuBLAS refuses."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tests.cuda_emulation import fake_cupy

HANDLE = 77
DTYPES = {0: "float32", 2: "float16", 14: "bfloat16"}  # cudaDataType
INVALID = "CUBLAS_STATUS_INVALID_VALUE"
calls: list[tuple[int, int]] = []  # how x and y of each call were transposed


class CUBLASError(RuntimeError):
    pass


def gemmStridedBatchedEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
    a: int, a_type: int, lda: int, stride_a: int, b: int, b_type: int, ldb: int, stride_b: int, beta: int,
    c: int, c_type: int, ldc: int, stride_c: int, batch: int, compute_type: int, algorithm: int,
) -> None:  # fmt: skip
    """C = alpha op(A) op(B) + beta C of column-major matrices; op(A) is (m, k), op(B) is (k, n)."""
    if handle != HANDLE or compute_type != 68 or algorithm != -1 or not {transa, transb} <= {0, 1}:
        raise CUBLASError(INVALID)
    if (a_type, b_type) not in ((2, 2), (14, 14)) or c_type not in (0, a_type):
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED")
    left = _matrices(a, a_type, (k, m) if transa else (m, k), lda, stride_a, batch)
    right = _matrices(b, b_type, (n, k) if transb else (k, n), ldb, stride_b, batch)
    out = _matrices(c, c_type, (m, n), ldc, stride_c, batch)
    left, right = (x.mT if transposed else x for x, transposed in ((left, transa), (right, transb)))
    scale, old = (ctypes.c_float.from_address(place).value for place in (alpha, beta))
    product = scale * (left.astype(np.float32) @ right.astype(np.float32))
    out[...] = product if old == 0 else product + old * out
    calls.append((transb, transa))


def _matrices(address: int, kind: int, shape: tuple[int, int], apart: int, each: int, batch: int) -> np.ndarray:
    """The matrices at an address, (batch, rows, columns); all must lie within the array that begins there."""
    held = fake_cupy.array_at(address)
    if held.dtype.name != DTYPES[kind] or apart < max(1, shape[0]) or batch < 1 or min(shape) < 1:
        raise CUBLASError(INVALID)
    low, high = np.lib.array_utils.byte_bounds(held)
    last = (batch - 1) * each + (shape[1] - 1) * apart + shape[0]
    if low != address or last * held.itemsize > high - low:
        raise CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED: beyond the array")
    flat: Any = np.frombuffer((ctypes.c_char * (high - low)).from_address(address), held.dtype)
    size = held.itemsize
    return np.lib.stride_tricks.as_strided(flat, (batch, *shape), (each * size, size, apart * size))

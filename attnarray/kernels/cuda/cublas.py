"""Batched matrix products by cuBLAS through CuPy's handle: 16-bit numbers with sums in float32.

With `loader.py` the only file that imports CuPy.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda.loader import cupy, same_device

TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t
COMPUTE_FLOAT32, DEFAULT = 68, -1  # cublasComputeType_t, cublasGemmAlgo_t
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


class Matrices(NamedTuple):
    """Matrices in rows: the stride between rows is `apart`, between matrices `each`, in elements.

    If `transposed`, `apart` is the stride between columns.
    """

    array: Any
    transposed: bool
    apart: int
    each: int


def multiply(x: Matrices, y: Matrices, out: Any, batch: int, rows: int, inner: int, columns: int) -> None:
    """out (batch, rows, columns) = x (batch, rows, inner) @ y (batch, inner, columns); `out` is contiguous."""
    try:
        library = importlib.import_module("cupy_backends.cuda.libs.cublas")
    except ImportError as error:
        raise Declined(f"cuBLAS cannot be loaded ({error})") from None
    device = same_device("matrix products", x.array, y.array, out)
    with cupy().cuda.Device(device):
        # cuBLAS counts along columns, so it sees each array transposed, and computes out^T = y^T x^T.
        library.gemmStridedBatchedEx(
            cupy().cuda.device.get_cublas_handle(),
            TRANSPOSED if y.transposed else NORMAL, TRANSPOSED if x.transposed else NORMAL,
            columns, rows, inner, ONE.ctypes.data,
            y.array.data.ptr, TYPES[y.array.dtype.name], y.apart, y.each,
            x.array.data.ptr, TYPES[x.array.dtype.name], x.apart, x.each,
            ZERO.ctypes.data, out.data.ptr, TYPES[out.dtype.name], columns, rows * columns,
            batch, COMPUTE_FLOAT32, DEFAULT,
        )  # fmt: skip

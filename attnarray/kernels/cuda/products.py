"""Products of 16-bit matrices with sums in float32. Reference: attention/products.py; by cuBLAS and rounded.cu."""

from __future__ import annotations

import itertools
import math
from typing import Any

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.cublas import Matrices, multiply
from attnarray.kernels.cuda.grid import BLOCK, Grid, ceil_div
from attnarray.kernels.cuda.loader import Kernel, cupy, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

ROUNDED = Kernel("rounded.cu", "rounded", "ppi")
NARROW = ("float16", "bfloat16")
EACH = 8  # numbers of a thread, as in rounded.cu


def matmul_16_bit(x: Any, y: Any, dtype: Any) -> Any:
    """See the reference. No copy of arrays whose rows or columns are contiguous, except of x in float32."""
    if y.dtype.name not in NARROW:
        raise Declined(f"dtype {y.dtype.name}: {', '.join(NARROW)} only")
    if x.shape[:-2] != y.shape[:-2]:
        raise Declined("the numbers of matrices differ")
    (rows, inner), columns, batch = x.shape[-2:], y.shape[-1], math.prod(x.shape[:-2])
    shape = (*x.shape[:-1], columns)
    if inner == 0:
        return cupy().zeros(shape, dtype=dtype)
    out = empty(shape, dtype)
    if 0 not in shape:
        multiply(matrices(rounded(x, y.dtype)), matrices(y), out, batch, rows, inner, columns)
    return out


def warmup(dtype: str) -> None:
    """Compile the rounding for one dtype."""
    if dtype in NARROW:
        load((ROUNDED,), dtype)


def rounded(x: Any, dtype: Any) -> Any:
    """`x` in a 16-bit dtype. A float32 array keeps its order of rows and columns."""
    if x.dtype == dtype:
        return x
    if x.dtype.name != "float32":
        raise Declined(f"dtype {x.dtype.name} times {dtype.name}")
    transposed = not x.flags.c_contiguous and x.mT.flags.c_contiguous
    source = x.mT if transposed else ga.contiguous(x)
    out = empty(source.shape, dtype)
    grid = Grid((ceil_div(source.size, BLOCK * EACH), 1, 1), (BLOCK, 1, 1))
    launch(ROUNDED, ga.stored(out).name, grid, source, out, source.size)
    return out.mT if transposed else out


def matrices(x: Any) -> Matrices:
    """The memory layout of the matrices of x (..., M, N); copied where neither rows nor columns are contiguous."""
    found = _layout(x.shape, [stride // x.itemsize for stride in x.strides])
    if found is None:
        x = ga.contiguous(x)
        return Matrices(x, False, x.shape[-1], x.shape[-2] * x.shape[-1])
    return Matrices(x, *found)


def _layout(shape: tuple[int, ...], strides: list[int]) -> tuple[bool, int, int] | None:
    """Whether columns are contiguous instead of rows, and the strides of these and of matrices; None if neither are."""
    several = [(size, stride) for size, stride in zip(shape[:-2], strides[:-2], strict=True) if size > 1]
    if any(stride != size * below for (_, stride), (size, below) in itertools.pairwise(several)):
        return None
    each = several[-1][1] if several else shape[-2] * shape[-1]
    for transposed, (count, apart), (length, step) in (
        (False, (shape[-2], strides[-2]), (shape[-1], strides[-1])),
        (True, (shape[-1], strides[-1]), (shape[-2], strides[-2])),
    ):
        apart = apart if count > 1 else length
        if (step == 1 or length == 1) and apart >= length and each > 0:
            return transposed, apart, each
    return None

"""The matrix products of attention: sums in float32 or float64, also of 16-bit numbers, which need no wider copy."""

from __future__ import annotations

from typing import Any

from attnarray.backend import Array, accumulator_dtype, dtype_name, namespace_of
from attnarray.dispatch import accelerated

NARROW = ("float16", "bfloat16")


def products(x: Array, y: Array, dtype: Any) -> Array:
    """x @ y in `dtype`; where y has 16 bits, that or float32, see `narrow_products`."""
    xp = namespace_of(x, y)
    return narrow_products(x, y, dtype) if dtype_name(y.dtype) in NARROW else xp.matmul(x, y)


@accelerated
def narrow_products(x: Array, y: Array, dtype: Any) -> Array:
    """x @ y of 16-bit y with sums in float32. Kernels round x to the dtype of y, as tensor cores take both in 16 bits.

    So weights and gradients of scores lose digits before they are multiplied, as in all attention kernels on tensor
    cores: about as many as the results in 16 bits lose. In float16, numbers below 6e-8 become 0.

    Parameters
    ----------
    x : (..., M, K) of the dtype of y or float32, y : (..., K, N) float16 or bfloat16
    dtype : of the result, that of y or float32

    Returns
    -------
    (..., M, N)
    """
    xp = namespace_of(x, y)
    wide = accumulator_dtype(xp, y.dtype)
    return xp.astype(xp.matmul(xp.astype(x, wide, copy=False), xp.astype(y, wide, copy=False)), dtype, copy=False)

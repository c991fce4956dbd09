"""The matrix products of attention on canonical arrays (B, H, T, D), with grouped heads and weights that hide NaN.

Grouped heads fold into the rows: G query heads that share a key head are one matrix of G * T rows. So there is one
matrix product per key head, and the gradients of key and value sum over the group by themselves.
"""

from __future__ import annotations

import math
from typing import Any

from attnarray.backend import Array, accumulator_dtype, dtype_name, namespace_of
from attnarray.dispatch import accelerated
from attnarray.magnitude import sum_wide

SIXTEEN_BITS = ("float16", "bfloat16")


def dot_products(x: Array, y: Array) -> Array:
    """x_i . y_j for heads of x grouped over the heads of y: (B, H, T, S)."""
    xp = namespace_of(x)
    product = matmul(_fold(x, y.shape[1]), y.mT, accumulator_dtype(xp, y.dtype))  # (B, Hkv, G T, S)
    return xp.reshape(product, (*x.shape[:3], y.shape[2]))


def weighted_sum(weights: Array, x: Array, hides: bool = False) -> Array:
    """sum_j weights_ij x_j: (B, H, T, D)."""
    xp = namespace_of(x)
    product = hiding_matmul(_fold(weights, x.shape[1]), x, hides, x.dtype)  # (B, Hkv, G T, D)
    return xp.reshape(product, (*weights.shape[:3], x.shape[3]))


def weighted_sum_over_queries(weights: Array, x: Array, kv_heads: int, hides: bool = False) -> Array:
    """sum_i weights_ij x_i over the queries of all heads of a group: (B, Hkv, S, D)."""
    return hiding_matmul(_fold(weights, kv_heads).mT, _fold(x, kv_heads), hides)


def _fold(x: Array, kv_heads: int) -> Array:
    """(B, H, T, N) -> (B, Hkv, G T, N)."""
    if x.shape[1] == kv_heads:
        return x
    xp = namespace_of(x)
    return xp.reshape(x, (x.shape[0], kv_heads, x.shape[1] // kv_heads * x.shape[2], x.shape[3]))


def hiding_matmul(weights: Array, x: Array, hides: bool, dtype: Any = None) -> Array:
    """weights @ x; where `hides`, a weight of zero hides what it multiplies, even NaN and infinities.

    Of the dtype of sums, or for 16-bit x of its own if `dtype` is that.
    """
    xp = namespace_of(x)
    wide = accumulator_dtype(xp, x.dtype)
    dtype = wide if dtype is None else dtype
    if not hides:
        return matmul(weights, x, dtype)
    finite = xp.isfinite(xp.astype(x, wide, copy=False))
    if bool(xp.all(finite)):
        return matmul(weights, x, dtype)
    x = xp.astype(x, wide, copy=False)
    reached = xp.matmul(xp.astype(weights != 0, wide), xp.astype(~finite, wide))
    product = xp.where(reached > 0, math.nan, xp.matmul(weights, xp.where(finite, x, 0.0)))
    return xp.astype(product, dtype, copy=False)


def hiding_product(x: Array, y: Array) -> Array:
    """x y, where 0 in x hides what it multiplies, even NaN: fully masked rows of outputs and of gradients are 0."""
    xp = namespace_of(x, y)
    zero, product = x == 0, x * y
    return xp.where(zero, 0.0, product) if bool(xp.any(zero)) else product


def finite_or_zero(x: Array) -> Array:
    """x with 0 in place of NaN and infinities."""
    xp = namespace_of(x)
    finite = xp.isfinite(xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False))
    return x if bool(xp.all(finite)) else xp.where(finite, x, 0.0)


def sum_to_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` over the axes along which an array of `shape` was broadcast to it."""
    xp = namespace_of(array)
    extra = array.ndim - len(shape)
    axes = tuple(n for n in range(array.ndim) if array.shape[n] != 1 and (n < extra or shape[n - extra] == 1))
    return xp.reshape(sum_wide(array, axes) if axes else array, shape)


def matmul(x: Array, y: Array, dtype: Any) -> Array:
    """x @ y in `dtype`; where y has 16 bits, that or float32, see `matmul_16_bit`."""
    xp = namespace_of(x, y)
    return matmul_16_bit(x, y, dtype) if dtype_name(y.dtype) in SIXTEEN_BITS else xp.matmul(x, y)


@accelerated
def matmul_16_bit(x: Array, y: Array, dtype: Any) -> Array:
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

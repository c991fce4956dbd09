"""Scaled dot-product attention on canonical arrays (B, H, T, D): the reference, block by block of queries.

Grouped heads fold into the rows: G query heads that share a key head are one matrix of G * T rows. So there is one
matrix product per key head, and the gradients of key and value sum over the group by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from attnarray.attention.products import products
from attnarray.attention.scoring import (
    Scoring,
    dropout_factor,
    gradient_of_sinks,
    gradients_of_dots,
    weights_from_dots,
)
from attnarray.backend import Array, accumulator_dtype, device_of, namespace_of, operand_dtype
from attnarray.dispatch import accelerated
from attnarray.magnitude import sum_of

# Scores held at a time. Small enough for a CPU's last cache level to help, large enough to keep a GPU busy.
BLOCK_ELEMENTS = 2**23


@accelerated
def attend(q: Array, k: Array, v: Array, scoring: Scoring) -> tuple[Array, Array]:
    r"""The forward pass.

    .. math:: o_i = \sum_j p_{ij} v_j

    Parameters
    ----------
    q : (B, H, T, D), k : (B, Hkv, S, D), v : (B, Hkv, S, Dv)
    scoring : Scoring

    Returns
    -------
    out : (B, H, T, Dv) of the dtype of q
    lse : (B, H, T) of the accumulator's dtype
    """
    xp = namespace_of(q, k, v)
    operand = operand_dtype(q)
    k, v = xp.astype(k, operand, copy=False), xp.astype(v, operand, copy=False)
    outs, lses = [], []
    for start, stop in query_blocks(q, k):
        rows = xp.astype(q[:, :, start:stop, :], operand, copy=False)
        out, lse = weigh(dot_products(rows, k), v, scoring.rows(start, stop))
        outs.append(xp.astype(out, q.dtype, copy=False))
        lses.append(lse)
    return join(outs), join(lses)


@accelerated
def attend_backward(
    dout: Array, dlse: Array | None, q: Array, k: Array, v: Array, out: Array, lse: Array, scoring: Scoring
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    r"""The backward pass. Weights are recomputed from q, k and lse, one block of queries after the other.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \quad dp_{ij} = do_i \cdot v_j, \quad
        \delta_i = do_i \cdot o_i - d\mathrm{lse}_i, \quad ds_{ij} = p_{ij} (dp_{ij} - \delta_i), \quad
        dq_i = \sum_j ds_{ij} k_j, \quad dk_j = \sum_i ds_{ij} q_i

    with ds carried through softcap and scale before the last two; dbias is ds summed over the axes that bias lacks.

    Returns
    -------
    dq, dk, dv : the shapes and dtypes of q, k, v
    dbias : the shape of scoring.bias, or None
    dsinks : (H,), or None
    """
    xp = namespace_of(q, k, v, dout)
    wide, operand = accumulator_dtype(xp, q.dtype), operand_dtype(q)
    dtypes = q.dtype, k.dtype, v.dtype
    q, k, v, dout = (xp.astype(x, operand, copy=False) for x in (q, k, v, dout))
    delta = xp.sum(hiding_product(xp.astype(out, wide, copy=False), xp.astype(dout, wide, copy=False)), axis=-1)
    if dlse is not None:
        delta = delta - xp.astype(dlse, wide)
    hides = scoring.hides()
    dqs, dbiases = [], []
    dk, dv = (xp.zeros(x.shape, dtype=wide, device=device_of(x)) for x in (k, v))
    for start, stop in query_blocks(q, k):
        block = scoring.rows(start, stop)
        rows, drows = q[:, :, start:stop, :], dout[:, :, start:stop, :]
        ddots, dv_block, dbias = weigh_backward(
            drows, dot_products(rows, k), v, lse[:, :, start:stop], delta[:, :, start:stop], block
        )
        dqs.append(times(ddots, k, hides))
        dk = dk + transposed_times(ddots, rows, k.shape[1], hides)
        dv = dv + dv_block
        dbiases.append(dbias)
    dq, dk, dv = (xp.astype(x, dtype, copy=False) for x, dtype in zip((join(dqs), dk, dv), dtypes, strict=True))
    dsinks = None if scoring.sinks is None else gradient_of_sinks(lse, delta, scoring.sinks)
    return dq, dk, dv, bias_gradient(dbiases, scoring.bias), dsinks


def weigh(dots: Array, v: Array, scoring: Scoring) -> tuple[Array, Array]:
    """From dot products, or any other scores (B, H, T, S), to the output (B, H, T, Dv) and the lse (B, H, T)."""
    weights, lse = weights_from_dots(dots, scoring)
    return weighted_sum(weights, v, scoring), lse


def weighted_sum(weights: Array, v: Array, scoring: Scoring) -> Array:
    """sum_j weights_ij v_j after dropout: (B, H, T, Dv)."""
    factor = dropout_factor(scoring, weights.shape, weights)
    return times(weights if factor is None else weights * factor, v, scoring.hides())


def weighted_sum_backward(dout: Array, weights: Array, v: Array, scoring: Scoring) -> tuple[Array, Array]:
    """The gradients of `weighted_sum`: of the weights, which may be NaN where a weight is 0, and of v."""
    xp = namespace_of(weights)
    dweights, factor = dot_products(dout, v), dropout_factor(scoring, weights.shape, weights)
    if factor is not None:
        dweights, weights = (xp.where(factor == 0, 0.0, x * factor) for x in (dweights, weights))
    return dweights, transposed_times(weights, dout, v.shape[1], scoring.hides())


def weigh_backward(
    dout: Array, dots: Array, v: Array, lse: Array, delta: Array, scoring: Scoring
) -> tuple[Array, Array, Array | None]:
    """The gradients of `weigh`: of the scores (B, H, T, S), of v, and of the bias in its shape, or None.

    Gradients of scores are 0 where the weight is 0. `delta` is sum_d dout * out - dlse.
    """
    xp = namespace_of(dots)
    dweights = dot_products(dout, v)
    factor = dropout_factor(scoring, dots.shape, dots)
    if factor is not None:
        dweights = xp.where(factor == 0, 0.0, dweights * factor)
    weights, ddots, dscores = gradients_of_dots(dots, dweights, lse, delta, scoring)
    weights = weights if factor is None else xp.where(factor == 0, 0.0, weights * factor)
    dv = transposed_times(weights, dout, v.shape[1], scoring.hides())
    return ddots, dv, None if dscores is None or scoring.bias is None else sum_to_shape(dscores, scoring.bias.shape)


def sum_to_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` over the axes along which an array of `shape` was broadcast to it."""
    xp = namespace_of(array)
    extra = array.ndim - len(shape)
    axes = tuple(n for n in range(array.ndim) if array.shape[n] != 1 and (n < extra or shape[n - extra] == 1))
    return xp.reshape(sum_of(array, axes) if axes else array, shape)


def query_blocks(q: Array, k: Array, each: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of queries, so that the scores of a range, times `each` numbers, are held at a time."""
    rows = q.shape[2]
    size = max(1, BLOCK_ELEMENTS // max(1, q.shape[0] * q.shape[1] * k.shape[2] * each))
    for start in range(0, max(rows, 1), size):
        yield start, min(start + size, rows)


def dot_products(x: Array, y: Array) -> Array:
    """x_i . y_j for heads of x grouped over the heads of y: (B, H, T, S)."""
    xp = namespace_of(x)
    dots = products(_fold(x, y.shape[1]), y.mT, accumulator_dtype(xp, y.dtype))  # (B, Hkv, G T, S)
    return xp.reshape(dots, (*x.shape[:3], y.shape[2]))


def times(weights: Array, x: Array, hides: bool) -> Array:
    """sum_j weights_ij x_j: (B, H, T, D)."""
    xp = namespace_of(x)
    product = hidden_products(_fold(weights, x.shape[1]), x, hides, x.dtype)  # (B, Hkv, G T, D)
    return xp.reshape(product, (*weights.shape[:3], x.shape[3]))


def transposed_times(weights: Array, x: Array, kv_heads: int, hides: bool) -> Array:
    """sum_i weights_ij x_i over the rows of all heads of a group: (B, Hkv, S, D)."""
    return hidden_products(_fold(weights, kv_heads).mT, _fold(x, kv_heads), hides)


def _fold(x: Array, kv_heads: int) -> Array:
    """(B, H, T, N) -> (B, Hkv, G T, N)."""
    if x.shape[1] == kv_heads:
        return x
    xp = namespace_of(x)
    return xp.reshape(x, (x.shape[0], kv_heads, x.shape[1] // kv_heads * x.shape[2], x.shape[3]))


def hidden_products(weights: Array, x: Array, hides: bool, dtype: Any = None) -> Array:
    """weights @ x, where a weight of zero hides what it multiplies, even NaN and infinities.

    Of the dtype of sums, or for 16-bit x of its own if `dtype` is that.
    """
    xp = namespace_of(x)
    wide = accumulator_dtype(xp, x.dtype)
    dtype = wide if dtype is None else dtype
    if not hides:
        return products(weights, x, dtype)
    finite = xp.isfinite(xp.astype(x, wide, copy=False))
    if bool(xp.all(finite)):
        return products(weights, x, dtype)
    x = xp.astype(x, wide, copy=False)
    reached = xp.matmul(xp.astype(weights != 0, wide), xp.astype(~finite, wide))
    product = xp.where(reached > 0, math.nan, xp.matmul(weights, xp.where(finite, x, 0.0)))
    return xp.astype(product, dtype, copy=False)


def hiding_product(x: Array, y: Array) -> Array:
    """x y, where 0 in x hides what it multiplies, even NaN: fully masked rows of outputs and of gradients are 0."""
    xp = namespace_of(x, y)
    return xp.where(x == 0, 0.0, x * y)


def bias_gradient(blocks: list[Any], bias: Array | None) -> Array | None:
    """From those of the blocks of queries to that of the bias."""
    if bias is None:
        return None
    xp = namespace_of(bias)
    total = sum(blocks[1:], start=blocks[0]) if bias.shape[2] == 1 else join(blocks)
    return xp.astype(total, bias.dtype, copy=False)


def join(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else namespace_of(*blocks).concat(blocks, axis=2)

"""Scaled dot-product attention on canonical arrays (B, H, T, D): the reference, block by block of queries.

Grouped heads fold into the rows: G query heads that share a key head are one matrix of G * T rows. So there is one
matrix product per key head, and the gradients of key and value sum over the group by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from attnarray.attention.scoring import (
    Scoring,
    dropout_factor,
    gradient_of_sinks,
    gradients_of_dots,
    weights_from_dots,
)
from attnarray.backend import Array, accumulator_dtype, namespace_of
from attnarray.dispatch import accelerated

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
    wide = accumulator_dtype(xp, q.dtype)
    k, v = xp.astype(k, wide, copy=False), xp.astype(v, wide, copy=False)
    outs, lses = [], []
    for start, stop in _query_blocks(q, k):
        block = scoring.rows(start, stop)
        rows = xp.astype(q[:, :, start:stop, :], wide, copy=False)
        weights, lse = weights_from_dots(dot_products(rows, k), block)
        factor = dropout_factor(block, weights.shape, weights)
        weights = weights if factor is None else weights * factor
        outs.append(xp.astype(_times(weights, v, block.hides()), q.dtype, copy=False))
        lses.append(lse)
    return _join(outs), _join(lses)


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
    wide = accumulator_dtype(xp, q.dtype)
    dtypes = q.dtype, k.dtype, v.dtype
    q, k, v, dout = (xp.astype(x, wide, copy=False) for x in (q, k, v, dout))
    delta = xp.sum(dout * xp.astype(out, wide, copy=False), axis=-1)  # (B, H, T)
    if dlse is not None:
        delta = delta - xp.astype(dlse, wide)
    hides = scoring.hides()
    dqs, dbiases = [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for start, stop in _query_blocks(q, k):
        block = scoring.rows(start, stop)
        rows, drows = q[:, :, start:stop, :], dout[:, :, start:stop, :]
        dots, dweights = dot_products(rows, k), dot_products(drows, v)
        factor = dropout_factor(block, dots.shape, dots)
        if factor is not None:
            dweights = xp.where(factor == 0, 0.0, dweights * factor)
        weights, ddots, dscores = gradients_of_dots(
            dots, dweights, lse[:, :, start:stop], delta[:, :, start:stop], block
        )
        weights = weights if factor is None else xp.where(factor == 0, 0.0, weights * factor)
        dqs.append(_times(ddots, k, hides))
        dk = dk + _transposed_times(ddots, rows, k.shape[1], hides)
        dv = dv + _transposed_times(weights, drows, k.shape[1], hides)
        if block.bias is not None:
            dbiases.append(sum_to_shape(dscores, block.bias.shape))
    dq, dk, dv = (xp.astype(x, dtype, copy=False) for x, dtype in zip((_join(dqs), dk, dv), dtypes, strict=True))
    dsinks = None if scoring.sinks is None else gradient_of_sinks(lse, delta, scoring.sinks)
    return dq, dk, dv, _bias_gradient(dbiases, scoring.bias), dsinks


def sum_to_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` over the axes along which an array of `shape` was broadcast to it."""
    xp = namespace_of(array)
    extra = array.ndim - len(shape)
    axes = tuple(n for n in range(array.ndim) if n < extra or (shape[n - extra] == 1 and array.shape[n] != 1))
    return xp.reshape(xp.sum(array, axis=axes) if axes else array, shape)


def _query_blocks(q: Array, k: Array) -> Iterator[tuple[int, int]]:
    rows = q.shape[2]
    size = max(1, BLOCK_ELEMENTS // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, max(rows, 1), size):
        yield start, min(start + size, rows)


def dot_products(x: Array, y: Array) -> Array:
    """x_i . y_j for heads of x grouped over the heads of y: (B, H, T, S)."""
    xp = namespace_of(x)
    dots = xp.matmul(_fold(x, y.shape[1]), y.mT)  # (B, Hkv, G T, S)
    return xp.reshape(dots, (*x.shape[:3], y.shape[2]))


def _times(weights: Array, x: Array, hides: bool) -> Array:
    """sum_j weights_ij x_j: (B, H, T, D)."""
    xp = namespace_of(x)
    product = _matmul(_fold(weights, x.shape[1]), x, hides)  # (B, Hkv, G T, D)
    return xp.reshape(product, (*weights.shape[:3], x.shape[3]))


def _transposed_times(weights: Array, x: Array, kv_heads: int, hides: bool) -> Array:
    """sum_i weights_ij x_i over the rows of all heads of a group: (B, Hkv, S, D)."""
    return _matmul(_fold(weights, kv_heads).mT, _fold(x, kv_heads), hides)


def _fold(x: Array, kv_heads: int) -> Array:
    """(B, H, T, N) -> (B, Hkv, G T, N)."""
    if x.shape[1] == kv_heads:
        return x
    xp = namespace_of(x)
    return xp.reshape(x, (x.shape[0], kv_heads, x.shape[1] // kv_heads * x.shape[2], x.shape[3]))


def _matmul(weights: Array, x: Array, hides: bool) -> Array:
    """weights @ x, where a weight of zero hides what it multiplies, even NaN and infinities."""
    xp = namespace_of(x)
    if not hides:
        return xp.matmul(weights, x)
    finite = xp.isfinite(x)
    if bool(xp.all(finite)):
        return xp.matmul(weights, x)
    reached = xp.matmul(xp.astype(weights != 0, x.dtype), xp.astype(~finite, x.dtype))
    return xp.where(reached > 0, math.nan, xp.matmul(weights, xp.where(finite, x, 0.0)))


def _bias_gradient(blocks: list[Array], bias: Array | None) -> Array | None:
    if bias is None:
        return None
    xp = namespace_of(bias)
    total = sum(blocks[1:], start=blocks[0]) if bias.shape[2] == 1 else _join(blocks)
    return xp.astype(total, bias.dtype, copy=False)


def _join(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else namespace_of(*blocks).concat(blocks, axis=2)

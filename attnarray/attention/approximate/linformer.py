"""Linformer: attention to a few linear combinations of the keys."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.products import sum_to_shape
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.numpy_arrays import read_only, writable


class LinformerContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: that of the attention, and the inputs of both projections in canonical layout."""

    attention: SDPAContext[ArrayT]
    k: ArrayT
    v: ArrayT
    key_projection: ArrayT
    value_projection: ArrayT | None
    layout: Layout


class LinformerGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    key_projection: ArrayT
    value_projection: ArrayT | None


def linformer_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    key_projection: ArrayT,
    value_projection: ArrayT | None = None,
    *,
    scale: float | None = None,
) -> ArrayT:
    r"""Attention to N learned linear combinations of the keys and values: time and memory grow with T N, not with T S.

    .. math:: O = \mathrm{softmax}\bigl(\mathrm{scale}\; Q (E K)^T\bigr)\, F V

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        Also (B, T, D) and (T, D). The 16-bit types are computed in float32.
    key : (*batch, Hkv, S, D)
    value : (*batch, Hkv, S, Dv)
    key_projection : (N, S), or (Hkv, N, S) for each head
        E. The number of keys is fixed by it.
    value_projection : the same shapes, optional
        F; E by default.
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Every combination has all keys, later ones too: there is no causal form.

    References
    ----------
    Wang et al., "Linformer: self-attention with linear complexity", 2020, arXiv:2006.04768.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 8))
    >>> out = aa.linformer_attention(q, k, v, np.eye(6))
    >>> bool(np.allclose(out, aa.scaled_dot_product_attention(q, k, v)))
    True
    """
    return writable(linformer_attention_fwd(query, key, value, key_projection, value_projection, scale=scale)[0])


@ignoring_fp_errors
def linformer_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    key_projection: ArrayT,
    value_projection: ArrayT | None = None,
    *,
    scale: float | None = None,
) -> tuple[ArrayT, LinformerContext[ArrayT]]:
    """`linformer_attention`, with the same options, and the context for its backward."""
    given: Any = {"query": query, "key": key, "value": value, "key_projection": key_projection}
    checks.required(**given)
    xp = checks.namespace(**given, value_projection=value_projection)
    checks.floating(**given, value_projection=value_projection)
    layout = attention_layout(query, key, value, "BHTD")
    q, k, v = (layout.canonical(x) for x in (query, key, value))
    _check("key_projection", key_projection, k)
    if value_projection is not None:
        _check("value_projection", value_projection, k)
        if value_projection.shape[-2] != key_projection.shape[-2]:
            raise ValueError(
                f"`value_projection` has {value_projection.shape[-2]} rows but `key_projection` has "
                f"{key_projection.shape[-2]}; they must be equal: one value for each key."
            )
    shared = key_projection if value_projection is None else value_projection
    projected_k, projected_v = xp.matmul(wide(key_projection), wide(k)), xp.matmul(wide(shared), wide(v))
    out, attention = scaled_dot_product_attention_fwd(wide(q), projected_k, projected_v, scale=scale)
    out = narrow(layout.restore(out), query)
    return read_only(out), LinformerContext(attention, k, v, key_projection, value_projection, layout)


@ignoring_fp_errors
def linformer_attention_bwd(
    dout: Array, ctx: LinformerContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> LinformerGrads[ArrayT]:
    r"""The gradients of Linformer, from dK' and dV', those of attention to K' = E K and V' = F V.

    .. math:: dK = E^T dK', \qquad dV = F^T dV', \qquad dE = dK' K^T, \qquad dF = dV' V^T

    summed over batches, and over the heads of a shared projection; where F is E, dE is the sum of both.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : LinformerContext
    dlse, dweights : optional
        Cotangents of the lse (B, H, T) and of the weights of projected keys (B, H, T, N), as `attention_weights` gives.

    Returns
    -------
    LinformerGrads
        query, key, value, key_projection, value_projection (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 8))
    >>> out, ctx = aa.linformer_attention_fwd(q, k, v, np.ones((3, 6)))
    >>> aa.linformer_attention_bwd(np.ones_like(out), ctx).key_projection.shape
    (3, 6)
    """
    checks.context("ctx", ctx, LinformerContext)
    attention, k, v, E, F, layout = ctx
    checks.cotangent(dout, layout.restored_shape((*attention.q.shape[:3], v.shape[3])), k)
    xp = namespace_of(k)
    dq, dk, dv, *_ = scaled_dot_product_attention_bwd(wide(layout.canonical(dout)), attention, dlse, dweights)
    dE = sum_to_shape(xp.matmul(dk, wide(k).mT), tuple(E.shape))
    dF = sum_to_shape(xp.matmul(dv, wide(v).mT), tuple(E.shape if F is None else F.shape))
    dkey, dvalue = xp.matmul(wide(E).mT, dk), xp.matmul(wide(E if F is None else F).mT, dv)
    dquery, dkey, dvalue = (narrow(layout.restore(x), k) for x in (dq, dkey, dvalue))
    if F is None:
        return LinformerGrads(dquery, dkey, dvalue, narrow(dE + dF, k), None)
    return LinformerGrads(dquery, dkey, dvalue, narrow(dE, k), narrow(dF, k))


def _check(name: str, projection: Array, k: Array) -> None:
    """Check a projection for (N, S) or (Hkv, N, S)."""
    heads, keys = k.shape[1], k.shape[2]
    shape = tuple(projection.shape)
    if len(shape) not in (2, 3) or shape[-1] != keys or (len(shape) == 3 and shape[0] != heads):
        raise ValueError(
            f"`{name}` has shape {shape}, expected (N, S) with S = {keys} keys, or (Hkv, N, S) with Hkv = {heads}."
        )

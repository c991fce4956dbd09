"""Multi-head latent attention: keys and values of all heads are projections of one latent vector for each position."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.dot_product.multi_head import HeadOptions
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run
from attnarray.attention.layout import Layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import check_arrays, known_options
from attnarray.attention.sequences import contributing_rows, narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable


class LatentContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the arguments, and the context of the attention of all heads; no weights."""

    query: ArrayT
    latent: ArrayT
    key_up: ArrayT
    value_up: ArrayT
    absorb: bool
    attention: AttentionContext[ArrayT]


class LatentGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    latent: ArrayT
    key_up: ArrayT
    value_up: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def latent_attention(
    query: ArrayT,
    latent: ArrayT,
    key_up: ArrayT,
    value_up: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    absorb: bool | None = None,
    **options: Unpack[HeadOptions],
) -> ArrayT:
    r"""Attention whose keys and values are projections of latent vectors, which alone are kept for decoding (MLA).

    .. math::
        o^h_i = \sum_j p^h_{ij}\, W^h_V c_j, \qquad p^h_i = \mathrm{softmax}_j(s^h_{ij}), \qquad
        s^h_{ij} = \frac{q^h_i \cdot W^h_K c_j + \bar q^h_i \cdot \bar k_j}{\sqrt{D}}

    A query is :math:`[q; \bar q]`, D features; the last :math:`\bar D` are rotated by its position. The cache of a
    position is :math:`[c; \bar k]`, a latent vector and a rotated key that all heads share.

    The projections can be absorbed, so that no keys and values are computed:

    .. math::
        q^h_i \cdot W^h_K c_j = ({W^h_K}^T q^h_i) \cdot c_j, \qquad
        \sum_j p^h_{ij}\, W^h_V c_j = W^h_V \sum_j p^h_{ij}\, c_j

    This is attention with one key head of C + :math:`\bar D` features, whose values are the first C features of its
    keys: the same result for fewer products when there are few queries, as in decoding.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    latent : (*batch, S, C + D - Dn)
        c and the rotated key of each position.
    key_up : (H, Dn, C)
        W_K: Dn features of the keys of each head, those without a rotation.
    value_up : (H, Dv, C)
        W_V.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, sinks, rng, dropout_mask
        As in `scaled_dot_product_attention`. The scale is 1 / sqrt(D), of the whole width of a head, by default.
    absorb : bool, optional
        Whether to absorb the projections; by default, if that takes fewer products.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked positions do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    DeepSeek-AI, "DeepSeek-V2", 2024, arXiv:2405.04434, section 2.1 and appendix C.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> q, c = rng.standard_normal((3, 5, 6)), rng.standard_normal((5, 7 + 2))  # H 3, T 5, D 4 + 2, C 7
    >>> key_up, value_up = rng.standard_normal((3, 4, 7)), rng.standard_normal((3, 8, 7))
    >>> out, absorbed = (aa.latent_attention(q, c, key_up, value_up, absorb=absorb) for absorb in (False, True))
    >>> out.shape, bool(np.allclose(out, absorbed))
    ((3, 5, 8), True)
    """
    return writable(latent_attention_fwd(
        query, latent, key_up, value_up, attn_mask, dropout_p, is_causal, absorb=absorb, **options
    )[0])  # fmt: skip


@ignoring_fp_errors
def latent_attention_fwd(
    query: ArrayT,
    latent: ArrayT,
    key_up: ArrayT,
    value_up: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    absorb: bool | None = None,
    **options: Unpack[HeadOptions],
) -> tuple[ArrayT, LatentContext[ArrayT]]:
    """`latent_attention`, with the same options, and the context for its backward."""
    known_options(options, HeadOptions)
    checks.required(query=query, latent=latent, key_up=key_up, value_up=value_up)
    check_arrays(attn_mask, options, query=query, latent=latent, key_up=key_up, value_up=value_up)
    _check_shapes(query, latent, key_up, value_up)
    absorb = _is_cheaper(query, latent, key_up, value_up) if absorb is None else checks.flag("absorb", absorb)
    make = _absorbed if absorb else _projected
    q, k, v = make(*(wide(x) for x in (query, latent, key_up, value_up)))
    layout = Layout(query.ndim, "BHTD", tuple(query.shape[:-3]), True)
    out, attention = run(
        AttentionContext, DOT_PRODUCT, Softmax(options.get("sinks")), layout, (q, k, v), attn_mask, dropout_p,
        is_causal, options, default_scale=1.0 / math.sqrt(query.shape[-1] or 1),
    )  # fmt: skip
    if absorb:
        out = namespace_of(out).matmul(out, wide(value_up).mT)
    return narrow(out, query), LatentContext(query, latent, key_up, value_up, absorb, attention)


@ignoring_fp_errors
def latent_attention_bwd(
    dout: Array, ctx: LatentContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> LatentGrads[ArrayT]:
    r"""The gradients of latent attention. Latent vectors are in keys and in values, so both gradients add.

    From those of the attention with projected keys k = W_K c and values v = W_V c:

    .. math::
        dc_j = \sum_h {W^h_K}^T dk^h_j + {W^h_V}^T dv^h_j, \qquad d\bar k_j = \sum_h d\bar k^h_j, \qquad
        dW^h_K = \sum_j dk^h_j c_j^T, \qquad dW^h_V = \sum_j dv^h_j c_j^T

    Absorbed, with :math:`a_i = W_K^T q_i` and :math:`u_i = \sum_j p_{ij} c_j`:

    .. math::
        du_i = W_V^T do_i, \qquad dW_V = \sum_i do_i u_i^T, \qquad dq_i = W_K da_i, \qquad dW_K = \sum_i q_i da_i^T

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : LatentContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, H, T) and of the weights (*batch, H, T, S).

    Returns
    -------
    LatentGrads
        query, latent, key_up, value_up, bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, c, w = np.ones((3, 5, 4)), np.ones((5, 7)), np.ones((3, 4, 7))
    >>> out, ctx = aa.latent_attention_fwd(q, c, w, w)
    >>> aa.latent_attention_bwd(out, ctx).latent.shape
    (5, 7)
    """
    checks.context("ctx", ctx, LatentContext)
    query, latent, key_up, value_up, absorb, attention = ctx
    checks.cotangent(dout, (*query.shape[:-1], value_up.shape[1]), query)
    o, do = attention.layout.restore(attention.out), wide(dout)
    arrays = tuple(wide(x) for x in (query, latent, key_up, value_up))
    grads = gradients(namespace_of(do).matmul(do, arrays[3]) if absorb else do, attention, dlse, dweights)
    backward = _absorbed_backward if absorb else _projected_backward
    dq, dlatent, dkey_up, dvalue_up = backward(grads.query, grads.key, grads.value, do, o, *arrays)
    found = LatentGrads(dq, dlatent, dkey_up, dvalue_up, grads.bias, grads.normalizer.sinks)
    narrowed: LatentGrads = tree.map(lambda grad: narrow(grad, query), found)
    return narrowed


def _absorbed(query: Array, latent: Array, key_up: Array, value_up: Array) -> tuple[Array, Array, Array]:
    """Queries (*batch, H, T, C + Dr), and keys and values (*batch, 1, S, ...) of one head."""
    xp, Dn, C = namespace_of(query), key_up.shape[1], key_up.shape[2]
    q = xp.concat([xp.matmul(query[..., :Dn], key_up), query[..., Dn:]], axis=-1)
    k = latent[..., None, :, :]
    return q, k, k[..., :C]


def _absorbed_backward(
    dq: Array, dk: Array, dv: Array, do: Array, o: Array, query: Array, latent: Array, key_up: Array, value_up: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of query, latent, key_up and value_up."""
    xp, Dn, C = namespace_of(query), key_up.shape[1], key_up.shape[2]
    da = dq[..., :C]
    dquery = xp.concat([xp.matmul(da, key_up.mT), dq[..., C:]], axis=-1)
    dlatent = xp.concat([dk[..., :C] + dv, dk[..., C:]], axis=-1)[..., 0, :, :]
    dkey_up = xp.matmul(contributing_rows(query[..., :Dn], da).mT, da)
    return dquery, dlatent, _over_batch(dkey_up), _over_batch(xp.matmul(do.mT, contributing_rows(o, do)))


def _projected(query: Array, latent: Array, key_up: Array, value_up: Array) -> tuple[Array, Array, Array]:
    """Queries, keys (*batch, H, S, D) and values (*batch, H, S, Dv) of all heads."""
    xp, C = namespace_of(query), key_up.shape[2]
    c, shared = latent[..., None, :, :C], latent[..., None, :, C:]
    k = xp.matmul(c, key_up.mT)
    shared = xp.broadcast_to(shared, (*k.shape[:-1], shared.shape[-1]))
    return query, xp.concat([k, shared], axis=-1), xp.matmul(c, value_up.mT)


def _projected_backward(
    dq: Array, dk: Array, dv: Array, do: Array, o: Array, query: Array, latent: Array, key_up: Array, value_up: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of query, latent, key_up and value_up."""
    xp, Dn, C = namespace_of(query), key_up.shape[1], key_up.shape[2]
    dc = xp.matmul(dk[..., :Dn], key_up) + xp.matmul(dv, value_up)  # (*batch, H, S, C)
    dlatent = xp.sum(xp.concat([dc, dk[..., Dn:]], axis=-1), axis=-3)
    c = contributing_rows(latent, dlatent)[..., None, :, :C]
    return dq, dlatent, _over_batch(xp.matmul(dk[..., :Dn].mT, c)), _over_batch(xp.matmul(dv.mT, c))


def _over_batch(x: Array) -> Array:
    """The sum over the batch: (*batch, H, M, N) -> (H, M, N)."""
    return namespace_of(x).sum(x, axis=tuple(range(x.ndim - 3)))


def _is_cheaper(query: Array, latent: Array, key_up: Array, value_up: Array) -> bool:
    """Whether absorbed projections take fewer products than projected keys and values."""
    queries, keys, width, (_, Dn, C), Dv = (
        query.shape[-2],
        latent.shape[-2],
        query.shape[-1],
        key_up.shape,
        value_up.shape[1],
    )
    projections = C * (Dn + Dv)
    absorbed = queries * (projections + keys * (2 * C + width - Dn))
    return bool(absorbed < keys * projections + queries * keys * (width + Dv))


def _check_shapes(query: Array, latent: Array, key_up: Array, value_up: Array) -> None:
    named = checks.shapes(query=query, latent=latent, key_up=key_up, value_up=value_up)
    if query.ndim < 3 or latent.ndim != query.ndim - 1 or tuple(latent.shape[:-2]) != tuple(query.shape[:-3]):
        raise ValueError(
            "`query` and `latent` do not fit together, expected (*batch, H, T, D) and (*batch, S, C + D - Dn) of one "
            f"batch. {named}"
        )
    for name, weight in (("key_up", key_up), ("value_up", value_up)):
        if weight.ndim != 3 or weight.shape[0] != query.shape[-3]:
            expected = f"(H, features, C) with the H = {query.shape[-3]} of `query`"
            raise ValueError(f"`{name}` has shape {tuple(weight.shape)}, expected {expected}. {named}")
    (_, Dn, C), rotated = key_up.shape, query.shape[-1] - key_up.shape[1]
    if value_up.shape[2] != C:
        raise ValueError(
            f"`value_up` has {value_up.shape[2]} latent features, but `key_up` has {C}; they must match. {named}"
        )
    if rotated < 0 or latent.shape[-1] != C + rotated:
        raise ValueError(
            f"`latent` has {latent.shape[-1]} features, expected C + D - Dn = {C} + {query.shape[-1]} - {Dn}, the last "
            f"D - Dn >= 0 of them rotated. {named}"
        )

"""Differential attention: the difference of two softmax attentions to the same values."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.dot_product.multi_head import HeadOptions
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run
from attnarray.attention.layout import attention_layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import check_arrays, known_options
from attnarray.attention.products import hiding_product
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask


class DifferentialContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: lambda, the number of value heads, and the context of the attention of 2 H heads."""

    lambd: ArrayT
    num_kv_heads: int
    attention: AttentionContext[ArrayT]


class DifferentialGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    lambd: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def differential_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    lambd: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadOptions],
) -> ArrayT:
    r"""The difference of two attentions to the same values.

    .. math::
        o^h_i = \sum_j \bigl(p^{2h}_{ij} - \lambda_h\, p^{2h + 1}_{ij}\bigr) v^h_j

    with the weights p of `scaled_dot_product_attention`: queries and keys have two heads for each head of values, so
    that noise which both heads attend to cancels.

    Parameters
    ----------
    query : (*batch, 2 H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Heads 2 h and 2 h + 1 are the
        pair of head h.
    key : (*batch, 2 Hkv, S, D)
        Pairs, too. H must be a multiple of Hkv: pair h of queries uses pair h // (H / Hkv) of keys, the first head its
        first and the second its second, and that head of values.
    value : (*batch, Hkv, S, Dv)
    lambd : () or (H,)
        lambda, one for all or for each head; the weights of a row sum to 1 - lambda.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, sinks, rng, dropout_mask
        As in `scaled_dot_product_attention` with 2 H heads.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        0 for a query for which nothing is allowed. `layers.DifferentialAttention` normalizes each head of it.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Ye et al., "Differential Transformer", 2024, arXiv:2410.05258.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 4, 5, 8))  # two pairs
    >>> v = np.ones((1, 2, 5, 16))
    >>> out = aa.differential_attention(q, k, v, np.array(0.25), is_causal=True)
    >>> out.shape, bool(np.allclose(out, 0.75))
    ((1, 2, 5, 16), True)
    """
    return differential_attention_fwd(query, key, value, lambd, attn_mask, dropout_p, is_causal, **options)[0]


@ignoring_fp_errors
def differential_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    lambd: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadOptions],
) -> tuple[ArrayT, DifferentialContext[ArrayT]]:
    """`differential_attention`, with the same options, and the context for its backward."""
    known_options(options, HeadOptions)
    checks.required(query=query, key=key, value=value, lambd=lambd)
    check_arrays(attn_mask, options, query=query, key=key, value=value, lambd=lambd)
    _check_shapes(query, key, value, lambd)
    xp, q, k, kv_heads = namespace_of(query), wide(query), wide(key), value.shape[-3]
    group = q.shape[-3] // (2 * kv_heads or 1)
    v = xp.repeat(wide(value), 2 * group, axis=-3)
    if group > 1:
        pairs = xp.reshape(k, (*k.shape[:-3], kv_heads, 2, *k.shape[-2:]))
        k = xp.reshape(xp.repeat(pairs, group, axis=-4), (*k.shape[:-3], q.shape[-3], *k.shape[-2:]))
    layout, how = attention_layout(q, k, v, "BHTD"), {"default_scale": 1.0 / (q.shape[-1] or 1) ** 0.5}
    out, attention = run(
        AttentionContext, DOT_PRODUCT, Softmax(options.get("sinks")), layout, (q, k, v), attn_mask, dropout_p,
        is_causal, options, **how,
    )  # fmt: skip
    out = out[..., 0::2, :, :] - _column(lambd) * out[..., 1::2, :, :]
    return narrow(out, query), DifferentialContext(xp.asarray(lambd), kv_heads, attention)


@ignoring_fp_errors
def differential_attention_bwd(
    dout: Array, ctx: DifferentialContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> DifferentialGrads[ArrayT]:
    r"""The gradients of differential attention; weights are recomputed.

    .. math::
        do^{2h}_i = dy^h_i, \qquad do^{2h + 1}_i = -\lambda_h\, dy^h_i, \qquad
        d\lambda_h = -\sum_i dy^h_i \cdot o^{2h + 1}_i

    and from do those of both attentions, whose gradients of the shared values add.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : DifferentialContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, 2 H, T) and of the weights (*batch, 2 H, T, S).

    Returns
    -------
    DifferentialGrads
        query, key, value, lambd, bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, v = np.ones((1, 4, 5, 8)), np.ones((1, 2, 5, 6))
    >>> out, ctx = aa.differential_attention_fwd(q, q, v, np.full(2, 0.5))
    >>> aa.differential_attention_bwd(out, ctx).lambd.tolist()
    [-15.0, -15.0]
    """
    checks.context("ctx", ctx, DifferentialContext)
    attention, lambd = ctx.attention, ctx.lambd
    batch, (heads, queries), Dv = attention.layout.batch, attention.q.shape[1:3], attention.v.shape[3]
    shape = (*batch, heads // 2, queries, Dv)
    xp = checks.cotangent(dout, shape, lambd)
    dy, second = wide(dout), attention.layout.restore(attention.out)[..., 1::2, :, :]
    products = xp.sum(hiding_product(dy, second), axis=(-1, -2))  # (*batch, H)
    dlambd = -xp.sum(products, axis=tuple(range(products.ndim if lambd.ndim == 0 else products.ndim - 1)))
    pair = xp.stack([dy, -_column(lambd) * dy], axis=-3)  # (*batch, H, 2, T, Dv)
    grads = gradients(xp.reshape(pair, (*batch, heads, queries, Dv)), attention, dlse, dweights)
    dk, dv = (_by_group(grad, ctx.num_kv_heads) for grad in (grads.key, grads.value))
    dk = xp.reshape(xp.sum(dk, axis=-4), (*batch, 2 * ctx.num_kv_heads, *dk.shape[-2:]))
    dv = xp.sum(dv, axis=(-4, -3))
    found = DifferentialGrads(grads.query, dk, dv, dlambd, grads.bias, grads.normalizer.sinks)
    narrowed: DifferentialGrads = tree.map(lambda grad: narrow(grad, lambd), found)
    return narrowed


def _by_group(grad: Array, kv_heads: int) -> Array:
    """(*batch, 2 H, S, D) as (*batch, Hkv, H / Hkv, 2, S, D)."""
    group = grad.shape[-3] // (2 * kv_heads or 1)
    return namespace_of(grad).reshape(grad, (*grad.shape[:-3], kv_heads, group, 2, *grad.shape[-2:]))


def _column(lambd: Array) -> Any:
    """lambda, broadcastable to (*batch, H, T, Dv)."""
    return wide(lambd)[..., None, None]


def _check_shapes(query: Array, key: Array, value: Array, lambd: Array) -> None:
    named = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim or query.ndim < 4:
        raise ValueError(
            f"`query`, `key` and `value` must have equally many axes, at least 4: (*batch, heads, T, D). {named}"
        )
    heads, pairs, kv_heads = query.shape[-3], key.shape[-3], value.shape[-3]
    if pairs != 2 * kv_heads or heads % (pairs or 2):
        raise ValueError(
            f"`query` has {heads} heads, `key` {pairs} and `value` {kv_heads}, expected two heads of keys for each one "
            f"of values, and a multiple of them for the queries. {named}"
        )
    if tuple(lambd.shape) not in ((), (heads // 2,)):
        raise ValueError(f"`lambd` has shape {tuple(lambd.shape)}, expected () or ({heads // 2},): one for each pair.")

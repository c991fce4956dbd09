"""Sigmoid attention: each key is weighed apart from the others."""

from __future__ import annotations

from typing import Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run
from attnarray.attention.layout import attention_layout
from attnarray.attention.normalizers import Sigmoid
from attnarray.attention.options import HeadScoreOptions, check_arrays, known_options
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask


class SigmoidAttentionContext(AttentionContext[ArrayT]):
    """What the backward needs: the inputs in canonical layout; no weights."""

    __slots__ = ()


class SigmoidAttentionGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    shift: ArrayT | None
    bias: ArrayT | None


def sigmoid_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    shift: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadScoreOptions],
) -> ArrayT:
    r"""Dot-product attention whose weights are sigmoids of the scores, which need not sum to 1.

    .. math::
        o_i = \sum_j \sigma(s_{ij} + b)\, v_j, \qquad s_{ij} = \mathrm{scale}\; q_i \cdot k_j + b_{ij}

    over the keys that every mask allows.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D).
    key : (*batch, Hkv, S, D)
    value : (*batch, Hkv, S, Dv)
    shift : (H,), optional
        b; by default -log S, so that weights of S keys with scores near 0 sum to about 1. (1,) without heads.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask, enable_gqa,
    layout
        As in `scaled_dot_product_attention`. There are no sinks: nothing is divided by a sum.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Ramapuram et al., "Theory, analysis, and best practices for sigmoid self-attention", 2024, arXiv:2409.04431.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 7, 16))
    >>> out, ctx = aa.sigmoid_attention_fwd(q, k, v, np.full(5, -1.0), is_causal=True)
    >>> out.shape, float(aa.attention_weights(ctx).sum(-1).max().round(1))
    ((2, 5, 7, 16), 3.2)
    """
    return sigmoid_attention_fwd(query, key, value, shift, attn_mask, dropout_p, is_causal, **options)[0]


@ignoring_fp_errors
def sigmoid_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    shift: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadScoreOptions],
) -> tuple[ArrayT, SigmoidAttentionContext[ArrayT]]:
    """`sigmoid_attention`, with the same options, and the context for its backward."""
    known_options(options, HeadScoreOptions)
    checks.required(query=query, key=key, value=value)
    check_arrays(attn_mask, options, query=query, key=key, value=value, shift=shift)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    if shift is not None:
        checks.shape("shift", shift, (layout.canonical(query).shape[1],), "one number for each query head")
    normalizer = Sigmoid(None if shift is None else wide(shift))
    return run(
        SigmoidAttentionContext, DOT_PRODUCT, normalizer, layout, (query, key, value), attn_mask, dropout_p, is_causal,
        options, 1.0 / (query.shape[-1] or 1) ** 0.5,
    )  # fmt: skip


@ignoring_fp_errors
def sigmoid_attention_bwd(
    dout: Array, ctx: SigmoidAttentionContext[ArrayT], dweights: Array | None = None
) -> SigmoidAttentionGrads[ArrayT]:
    r"""The gradients of sigmoid attention; weights are computed again, block by block.

    .. math::
        dv_j = \sum_i w_{ij}\, do_i, \qquad ds_{ij} = w_{ij} (1 - w_{ij})\, do_i \cdot v_j, \qquad
        db = \sum_{ij} ds_{ij}, \qquad
        dq_i = \mathrm{scale} \sum_j ds_{ij} k_j, \qquad dk_j = \mathrm{scale} \sum_i ds_{ij} q_i

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : SigmoidAttentionContext
    dweights : (*batch, H, T, S), optional
        A cotangent of the weights before dropout.

    Returns
    -------
    SigmoidAttentionGrads
        query, key, value, shift, bias; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.ones((5, 4))
    >>> out, ctx = aa.sigmoid_attention_fwd(x, x, x, np.array([-9.0]))
    >>> aa.sigmoid_attention_bwd(out, ctx).shift.shape
    (1,)
    """
    checks.context("ctx", ctx, SigmoidAttentionContext)
    grads = gradients(dout, ctx, None, dweights)
    return SigmoidAttentionGrads(*grads[:3], narrow(grads.normalizer.shift, ctx.q), grads.bias)

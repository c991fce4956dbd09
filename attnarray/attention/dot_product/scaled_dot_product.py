"""Scaled dot-product attention: softmax(q k^T / sqrt(D)) v with everything that its relatives add, in one contract."""

from __future__ import annotations

import functools
import math
from typing import Any, Generic, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, attention, attention_backward, gradients
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import Options, check_arrays, known_options, score_modifiers
from attnarray.backend import Array, ArrayT
from attnarray.hooks import attention_cotangent
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.random import Philox


class Problem(NamedTuple):
    """One call in canonical layout."""

    q: Any
    k: Any
    v: Any
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None


class SDPAContext(AttentionContext[ArrayT]):
    """What the backward needs: the canonical inputs (B, H, T, D), the output and the lse; no weights."""

    __slots__ = ()


class SDPAGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def scaled_dot_product_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: Any = 0,
    kv_lengths: Any = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    rng: Philox | int | None = None,
    dropout_mask: Array | None = None,
    enable_gqa: bool | None = None,
    layout: checks.LayoutName = "BHTD",
) -> ArrayT:
    r"""Scaled dot-product attention.

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_{ij} = \frac{e^{s_{ij}}}{e^{z} + \sum_{j'} e^{s_{ij'}}}, \qquad
        s_{ij} = c \tanh\Bigl(\frac{\mathrm{scale}\; q_i \cdot k_j}{c}\Bigr) + b_{ij}

    over the keys j that every mask allows. Without softcap, s = scale q k + b; without a sink, the term e^z is absent.
    The order is fixed: scale, softcap, bias, mask, softmax, dropout, times value.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are accumulated in float32. Also (B, T, D) and (T, D),
        which have no head axis.
    key : (*batch, Hkv, S, D)
        H must be a multiple of Hkv; query head h uses key head h // (H / Hkv).
    value : (*batch, Hkv, S, Dv)
    attn_mask : bool array, float array or Mask, optional
        Broadcasts, right-aligned, to (*batch, H, T, S). Boolean: True = attend. Floating: the same as `bias`.
    dropout_p : float
        Probability that a weight is set to 0; the others are multiplied by 1 / (1 - p). Needs `rng` or `dropout_mask`.
    is_causal : bool
        Only keys j <= i + q_offset.
    scale : float, optional
        1 / sqrt(D) by default.
    bias : (*batch, H, T, S) or broadcastable to it, optional
        Added to the scores; differentiable. -inf masks.
    window : (left, right), optional
        Only keys with i + q_offset - left <= j <= i + q_offset + right; None = unbounded.
    q_offset : int or (*batch,) int
        The position of the first query. S - T aligns the last query with the last key, as in decoding with a cache.
    kv_lengths : int or (*batch,) int, optional
        Keys at j >= length do not exist.
    softcap : float, optional
        Bound c of the scores, before the bias.
    sinks : (H,), optional
        The logit z of each head that takes part in the softmax's sum and has no value; differentiable.
    rng : Philox or int, optional
        The seed of the dropout; the same seed gives the same mask on every backend.
    dropout_mask : bool, broadcastable to (*batch, H, T, S), optional
        True = keep; instead of `rng`.
    enable_gqa : bool, optional
        Accepted for code written for PyTorch; grouped heads are seen from the shapes.
    layout : {"BHTD", "BTHD"}
        With "BTHD" query is (*batch, T, H, D), and key, value and the result likewise.

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

    Notes
    -----
    All constraints (attn_mask, is_causal, window, kv_lengths) intersect. `is_causal` with T != S and q_offset = 0
    aligns the first query with the first key, as in PyTorch and JAX; FlashAttention aligns the last ones.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762. Grouped heads: arXiv:2305.13245. Softcap:
    arXiv:2408.00118. Sinks: arXiv:2309.17453. The backward by recomputation: arXiv:2205.14135.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 8, 5, 64), dtype=np.float32)
    >>> aa.scaled_dot_product_attention(q, k, v, is_causal=True).shape
    (2, 8, 5, 64)
    """
    if (
        bias is window is kv_lengths is softcap is sinks is rng is dropout_mask is None  # type: ignore[comparison-overlap]  # all may be None
        and type(layout) is str
        and layout == "BHTD"
    ):
        plain = plain_problem(query, key, value, attn_mask, dropout_p, is_causal, scale, q_offset)
        if plain is not None:
            return attention(query, key, value, plain[0])[0]
    return writable(scaled_dot_product_attention_fwd(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, bias=bias, window=window, q_offset=q_offset,
        kv_lengths=kv_lengths, softcap=softcap, sinks=sinks, rng=rng, dropout_mask=dropout_mask, enable_gqa=enable_gqa,
        layout=layout,
    )[0])  # fmt: skip


def scaled_dot_product_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[Options],
) -> tuple[ArrayT, SDPAContext[ArrayT]]:
    """`scaled_dot_product_attention`, with the same options, and the context for its backward.

    The output is read-only, since the context holds it: write `out = out + x`, not `out += x`.
    `ctx.lse` is log sum_j e^s, sink included, as (B, H, T) in the accumulator's dtype.
    """
    plain = None if options else plain_problem(query, key, value, attn_mask, dropout_p, is_causal)
    if plain is not None:
        q, k, v, (modifiers, layout), bias_shape = query, key, value, plain, None
    else:
        q, k, v, modifiers, layout, bias_shape = attention_problem(
            query, key, value, attn_mask, dropout_p, is_causal, **options
        )
    out, lse = attention(q, k, v, modifiers)
    ctx = SDPAContext(q, k, v, out, lse, DOT_PRODUCT, modifiers, Softmax(modifiers.sinks), layout, bias_shape)
    return read_only(layout.restore(out)), ctx


def scaled_dot_product_attention_bwd(
    dout: Array, ctx: SDPAContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> SDPAGrads[ArrayT]:
    r"""The gradients of attention; the weights are recomputed from q, k and the lse.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \quad
        \delta_i = do_i \cdot o_i - d\mathrm{lse}_i, \quad
        ds_{ij} = p_{ij} (do_i \cdot v_j - \delta_i), \quad
        db = ds, \quad dz = -\sum_i p_{iz} \delta_i

    .. math::
        g_{ij} = \mathrm{scale}\; ds_{ij} \bigl(1 - \tanh^2(\cdot)\bigr), \quad
        dq_i = \sum_j g_{ij} k_j, \quad dk_j = \sum_i g_{ij} q_i

    With dropout, p in dv and do v in ds carry the factor keep / (1 - p). Gradients of key and value sum over the query
    heads of their group, that of the bias over the axes that it broadcasts over.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : SDPAContext
    dlse : (*batch, H, T), optional
        A cotangent of the lse, for losses that use it.
    dweights : (*batch, H, T, S), optional
        A cotangent of the weights before dropout, as `attention_weights` returns them, for losses that use them.

    Returns
    -------
    SDPAGrads
        query, key, value, bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v)
    >>> aa.scaled_dot_product_attention_bwd(np.ones_like(out), ctx).query.shape
    (1, 2, 4, 8)
    """
    checks.context("ctx", ctx, SDPAContext)
    if dlse is dweights is None and _is_plain(dout, ctx):
        attention_cotangent(ctx, dout)
        return SDPAGrads(*attention_backward(dout, None, ctx.q, ctx.k, ctx.v, ctx.out, ctx.kept, ctx.modifiers))
    grads = gradients(dout, ctx, dlse, dweights)
    return SDPAGrads(grads.query, grads.key, grads.value, grads.bias, grads.normalizer.sinks)


def attention_problem(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    *,
    kv_offset: int | None = None,
    **options: Unpack[Options],
) -> Problem:
    """Check everything that a dot-product attention function takes, and bring it to canonical layout.

    With `kv_offset` the keys are a part of more, and key j has position j + kv_offset.
    """
    known_options(options, Options)
    if query is None or key is None or value is None:
        checks.required(query=query, key=key, value=value)
    check_arrays(attn_mask, options, query=query, key=key, value=value)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    q, k, v = layout.canonical(query), layout.canonical(key), layout.canonical(value)
    scale = 1.0 / math.sqrt(q.shape[3] or 1)
    modifiers, bias_shape = score_modifiers(
        q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options, default_scale=scale, kv_offset=kv_offset
    )
    return Problem(q, k, v, modifiers, layout, bias_shape)


def _is_plain(dout: Any, ctx: SDPAContext[Any]) -> bool:
    """Whether nothing is to be checked or laid out, for NumPy arrays (B, H, T, D) without gradients of options."""
    return (
        type(dout) is type(ctx.q) is np.ndarray
        and dout.dtype is ctx.q.dtype
        and dout.shape == ctx.out.shape
        and ctx.modifiers.bias is ctx.modifiers.sinks is None
        and ctx.layout.is_canonical
        and ctx.layout.order == "BHTD"
    )


def plain_problem(
    query: Array, key: Array, value: Array, attn_mask: Any, dropout_p: float, is_causal: bool,
    scale: float | None = None, q_offset: Any = 0,
) -> tuple[ScoreModifiers, Layout] | None:  # fmt: skip
    """Modifiers and layout, by the fast path of `attention_problem` for NumPy arrays (B, H, T, D) without mask and
    dropout, else None.

    A small call takes less time than its checks, and the same shapes come again and again: what was once found for them
    is kept.
    """
    if not (
        type(query) is type(key) is type(value) is np.ndarray
        and query.dtype is key.dtype is value.dtype
        and attn_mask is None
        and type(dropout_p) is float
        and dropout_p == 0
        and type(is_causal) is bool
        and (scale is None or type(scale) is float)
        and type(q_offset) is int
    ):
        return None
    return _plain(query.shape, key.shape, value.shape, query.dtype, is_causal, scale, q_offset)


@functools.lru_cache(maxsize=1024)
def _plain(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: Any, is_causal: bool, scale: float | None,
    q_offset: int,
) -> tuple[ScoreModifiers, Layout] | None:  # fmt: skip
    if len(q) != 4 or dtype.name not in ("float32", "float64"):
        return None
    query, key, value = (np.broadcast_to(np.zeros((), dtype), shape) for shape in (q, k, v))
    try:
        problem = attention_problem(query, key, value, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
    except (TypeError, ValueError):
        return None
    return problem.modifiers, problem.layout

"""Attention with relative positions as Transformer-XL has it: scores of contents and of distances."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypedDict, Unpack

from attnarray import checks
from attnarray.attention.form import Form, form_of
from attnarray.attention.options import check_arrays, known_options, scoring_of
from attnarray.attention.positional.relative_core import (
    Parts,
    attend_relative,
    attend_relative_backward,
    relative_products,
)
from attnarray.attention.scoring import Scoring
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.random import Philox


class RelativeOptions(TypedDict, total=False):
    """The keyword-only options; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: int
    kv_lengths: Any
    sinks: Array | None
    rng: Philox | int | None
    dropout_mask: Array | None
    layout: str


class RelativeContext(NamedTuple):
    """What the backward needs: the inputs in canonical form, the output and the lse; no weights, no scores."""

    parts: Parts
    out: Array
    lse: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None
    like: Array  # the query, for its shape and dtype

    def dots(self, start: int, stop: int) -> Array:
        """The scores of the queries [start, stop) again, before scale, bias and masks: (B, H, rows, S)."""
        return relative_products(Parts(*(wide(part) for part in self.parts)), start, stop)


class RelativeGrads(NamedTuple):
    query: Array
    key: Array
    value: Array
    position_key: Array
    content_bias: Array
    position_bias: Array
    bias: Array | None
    sinks: Array | None


def relative_attention(
    query: Array,
    key: Array,
    value: Array,
    position_key: Array,
    content_bias: Array,
    position_bias: Array,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[RelativeOptions],
) -> Array:
    r"""Dot-product attention that also scores the distance from query to key.

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{softmax}_j(s_{ij} + b_{ij}), \qquad
        s_{ij} = \mathrm{scale}\, \bigl( (q_i + u) \cdot k_j + (q_i + v) \cdot r_{\delta} \bigr), \quad
        \delta = i + \mathrm{offset} - j

    over the keys that every mask allows. In the paper's terms q = W_q x, k = W_{k,E} x and r = W_{k,R} R: see
    `layers.RelativeAttention`.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D),
        which have no head axis.
    key : (*batch, Hkv, S, D)
        H must be a multiple of Hkv, as in `scaled_dot_product_attention`.
    value : (*batch, Hkv, S, Dv)
    position_key : (Hkv, R, D), or (R, D) without heads
        r of every distance, *from the largest down*: row n is for distance T - 1 + q_offset - n. R = T + S - 1 rows are
        all distances there are; with `is_causal`, R = T + q_offset are enough, down to distance 0.
    content_bias, position_bias : (H, D), or (D,) without heads
        u and v: what is asked of contents and of distances, whatever the query.
    attn_mask, dropout_p, is_causal, scale, bias, window, kv_lengths, sinks, rng, dropout_mask, layout
        As in `scaled_dot_product_attention`. There is no softcap. `layout` does not reorder the keys of positions.
    q_offset : int
        Query i stands at position i + q_offset. With M keys of memory before those of the queries it is M = S - T.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        0 for a query for which nothing is allowed. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Distances count from query to key: those to earlier keys are positive. The paper's own code makes u and v one for
    all layers; here they are arguments.

    References
    ----------
    Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860,
    section 3.3 and appendix B.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> B, H, T, M, D = 2, 3, 4, 5, 8
    >>> query = rng.standard_normal((B, H, T, D))
    >>> key, value = rng.standard_normal((2, B, H, M + T, D))
    >>> distances = aa.sinusoidal(np.arange(T - 1 + M, -1, -1), D, interleaved=False, dtype="float64")
    >>> position_key = np.broadcast_to(distances, (H, M + T, D))
    >>> u, v = rng.standard_normal((2, H, D))
    >>> aa.relative_attention(query, key, value, position_key, u, v, is_causal=True, q_offset=M).shape
    (2, 3, 4, 8)
    """
    return writable(
        relative_attention_fwd(
            query, key, value, position_key, content_bias, position_bias, attn_mask, dropout_p, is_causal, **options
        )[0]
    )


@ignoring_fp_errors
def relative_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    position_key: Array,
    content_bias: Array,
    position_bias: Array,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[RelativeOptions],
) -> tuple[Array, RelativeContext]:
    """`relative_attention`, with the same options, and the context for its backward."""
    known_options(options, RelativeOptions)
    given = {"position_key": position_key, "content_bias": content_bias, "position_bias": position_bias}
    checks.required(query=query, key=key, value=value, **given)
    check_arrays(attn_mask, options, query=query, key=key, value=value, **given)
    form = form_of(query, key, value, options.get("layout", "BHTD"))
    q, k, v = form.canonical(query), form.canonical(key), form.canonical(value)
    offset = checks.whole("q_offset", options.get("q_offset", 0), 0, 2**31, "the position of the first query")
    _check_positions(form, q, k, checks.flag("is_causal", is_causal), offset, **given)
    xp = namespace_of(query)
    r = position_key if form.has_heads else position_key[None, :, :]
    biases = [xp.reshape(bias, (q.shape[1], 1, q.shape[3])) for bias in (content_bias, position_bias)]
    parts = Parts(q, k, v, r, *biases)
    default = 1.0 / math.sqrt(q.shape[3] or 1)
    scoring, bias_shape = scoring_of(
        q, k.shape[2], form, attn_mask, dropout_p, is_causal, options, default_scale=default
    )
    out, lse = attend_relative(Parts(*(wide(part) for part in parts)), scoring)
    out = narrow(out, query)
    return read_only(form.restored(out)), RelativeContext(parts, out, lse, scoring, form, bias_shape, query)


@ignoring_fp_errors
def relative_attention_bwd(dout: Array, ctx: RelativeContext) -> RelativeGrads:
    r"""The gradients of attention with relative positions; scores and weights are computed again.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \qquad g_{ij} = \mathrm{scale}\; p_{ij} (do_i \cdot v_j - do_i \cdot o_i)

    .. math::
        du = \sum_{ij} g_{ij} k_j, \quad dv = \sum_{ij} g_{ij} r_{i-j}, \quad
        dq_i = \sum_j g_{ij} (k_j + r_{i-j}), \quad dk_j = \sum_i g_{ij} (q_i + u), \quad
        dr_\delta = \sum_{i - j = \delta} g_{ij} (q_i + v)

    where the offset of the queries is left out of the index, and u and v are summed over the batch too.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : RelativeContext

    Returns
    -------
    RelativeGrads
        query, key, value, position_key, content_bias, position_bias, bias, sinks (None for what was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, r, u = np.ones((3, 4)), np.eye(5, 4), np.zeros(4)
    >>> out, ctx = aa.relative_attention_fwd(x, x, x, r, u, u)
    >>> aa.relative_attention_bwd(out, ctx).position_key.shape
    (5, 4)
    """
    checks.context("ctx", ctx, RelativeContext)
    form, like = ctx.form, ctx.like
    checks.cotangent(dout, tuple(form.restored(ctx.out).shape), like)
    parts = Parts(*(wide(part) for part in ctx.parts))
    dparts, dbias, dsinks = attend_relative_backward(
        wide(form.canonical(dout)), parts, wide(ctx.out), ctx.lse, ctx.scoring
    )
    dq, dk, dv, dr, *dbiases = (narrow(grad, like) for grad in dparts)
    if not form.has_heads:
        dr = dr[0, :, :]
    of_content, of_positions = (dbias[:, 0, :] if form.has_heads else dbias[0, 0, :] for dbias in dbiases)
    if dbias is not None and ctx.bias_shape is not None:
        dbias = form.restored_bias(dbias, ctx.bias_shape)
    dq, dk, dv = (form.restored(grad) for grad in (dq, dk, dv))
    return RelativeGrads(dq, dk, dv, dr, of_content, of_positions, dbias, dsinks)


def _check_positions(
    form: Form, q: Array, k: Array, is_causal: bool, offset: int, *, position_key: Array, content_bias: Array,
    position_bias: Array,
) -> None:  # fmt: skip
    (_, H, T, D), (_, Hkv, S, _) = q.shape, k.shape
    heads, kv_heads = ((H,), (Hkv,)) if form.has_heads else ((), ())
    for name, bias in (("content_bias", content_bias), ("position_bias", position_bias)):
        checks.shape(name, bias, (*heads, D), "one vector for each query head" if heads else "one vector")
    rows, all_rows = position_key.shape[-2] if position_key.ndim > 1 else None, max(T + S - 1, 0)
    if tuple(position_key.shape) == (*kv_heads, rows, D) and (rows == all_rows or (is_causal and rows == T + offset)):
        return
    fewer = f", or {T + offset} of the distances from T - 1 + q_offset down to 0" if is_causal else ""
    axes = "(Hkv, R, D)" if kv_heads else "(R, D)"
    hint = "" if is_causal else " (With is_causal=True those of distances from 0 on are enough.)"
    raise ValueError(
        f"`position_key` has shape {tuple(position_key.shape)}, expected {axes} = {(*kv_heads, all_rows, D)}: a row "
        f"for each of the T + S - 1 distances, from {T - 1 + offset} down to {offset - S + 1}{fewer}.{hint}"
    )

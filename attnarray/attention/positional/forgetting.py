"""Attention that forgets: scores decay by learned gates between key and query (the forgetting Transformer)."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, TypedDict, Unpack

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run
from attnarray.attention.layout import attention_layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import check_arrays, known_options, scale_or_default
from attnarray.attention.parts import declare
from attnarray.attention.products import dot_products
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.ops.entmax import cumulative_sum
from attnarray.random import Philox


class ForgettingOptions(TypedDict, total=False):
    """The keyword-only options; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: int
    kv_lengths: Any
    sinks: Array | None
    rng: Philox | int | None
    dropout_mask: Array | None


@declare(GROUPED=True, HELD=2, OVERWRITABLE=True, PER_QUERY=("query_sums",))
class Forgetting(NamedTuple):
    r"""The scorer of dot products less the gates from key to query, given by their sums from the first position on.

    .. math:: s_{ij} = \mathrm{scale}\; q_i \cdot k_j + G_i - G_j
    """

    query_sums: Array  # G of the queries (B, H, T)
    key_sums: Array  # G of the keys (B, H, S)
    scale: float

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        queries, decays = self.split(q, k, rows, 1.0)
        return dot_products(queries, k) + decays

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, Forgetting]:
        r"""The gradients of queries, keys and sums.

        .. math:: dG_i = \sum_j ds_{ij}, \qquad dG_j = -\sum_i ds_{ij}
        """
        dqueries, dk, _ = DOT_PRODUCT.backward(dscores, self.scale * q, k, rows)
        dq, own = self.split_backward(dqueries, dscores, q, k, rows, 1.0)
        return dq, dk, own

    def split(self, q: Array, k: Array, rows: slice, scale: float) -> tuple[Array, Array]:
        """The scaled queries, and G_i - G_j (B, H, rows, S)."""
        return self.scale * q, self.query_sums[..., None] - self.key_sums[:, :, None, :]

    def split_backward(
        self, dqueries: Array, dbias: Array, q: Array, k: Array, rows: slice, scale: float
    ) -> tuple[Array, Forgetting]:
        """The gradients of q and of the sums."""
        xp = namespace_of(dbias)
        return self.scale * dqueries, Forgetting(xp.sum(dbias, axis=3), -xp.sum(dbias, axis=2), self.scale)


class ForgettingContext(AttentionContext[ArrayT]):
    """What the backward needs: the inputs in canonical layout, the output and the lse; no weights, no scores."""

    __slots__ = ()


class ForgettingGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    log_forget: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def forgetting_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    log_forget: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ForgettingOptions],
) -> ArrayT:
    r"""Dot-product attention with forget gates: each position lets all keys before it decay (FoX).

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{softmax}_j(s_{ij}), \qquad
        s_{ij} = \frac{q_i \cdot k_j}{\sqrt{D}} + \sum_{l = j + 1}^{i} \log f_l

    for keys up to the query, so give ``is_causal=True``. The sum is :math:`G_i - G_j` of cumulative sums; for a key
    after its query it is that with the other sign. Constant gates are `alibi`.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D).
    key : (*batch, Hkv, S, D)
    value : (*batch, Hkv, S, Dv)
    log_forget : (*batch, H, S), without H where query has none
        log f of every position of the keys, finite and not above 0: :math:`\log \sigma(w \cdot x + b)` in the paper.
    attn_mask, dropout_p, is_causal, scale, bias, window, kv_lengths, sinks, rng, dropout_mask
        As in `scaled_dot_product_attention`. There is no softcap.
    q_offset : int
        Query i has position i + q_offset, one of the keys': with a cache it is S - T.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        0 for a query for which nothing is allowed.

    Raises
    ------
    ValueError
        If shapes do not fit, an option is out of its range, or a query has a position that is none of the keys'.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Lin et al., "Forgetting Transformer: softmax attention with a forget gate", 2025, arXiv:2503.02130.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 8))  # H 2, T 5, D 8
    >>> log_forget = np.log(np.array([1.0, 0.5, 1.0, 1e-9, 1.0]))  # at position 3, all before is forgotten
    >>> out, ctx = aa.forgetting_attention_fwd(q, k, v, np.stack([log_forget, log_forget]), is_causal=True)
    >>> bool(aa.attention_weights(ctx)[:, 3:, :3].max() < 1e-6)
    True
    """
    return writable(
        forgetting_attention_fwd(query, key, value, log_forget, attn_mask, dropout_p, is_causal, **options)[0]
    )


@ignoring_fp_errors
def forgetting_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    log_forget: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ForgettingOptions],
) -> tuple[ArrayT, ForgettingContext[ArrayT]]:
    """`forgetting_attention`, with the same options, and the context for its backward."""
    known_options(options, ForgettingOptions)
    checks.required(query=query, key=key, value=value, log_forget=log_forget)
    check_arrays(attn_mask, options, query=query, key=key, value=value, log_forget=log_forget)
    layout = attention_layout(query, key, value, "BHTD")
    q, keys = layout.canonical(query), key.shape[-2]
    offset = checks.whole("q_offset", options.get("q_offset", 0), 0, 2**31, "the position of the first query")
    if offset + q.shape[2] > keys:
        raise ValueError(
            f"`query` has {q.shape[2]} positions from `q_offset`, {offset}, on, expected positions below {keys}, of "
            f"the keys: their gates are those of `log_forget`. {checks.shapes(query=query, key=key)}"
        )
    expected = (*query.shape[:-2], keys)
    checks.shape("log_forget", log_forget, expected, "one for each head of the queries and each key")
    xp = namespace_of(query)
    sums = cumulative_sum(xp.reshape(wide(log_forget), (*q.shape[:2], keys)), 2)
    scale = scale_or_default(options.get("scale"), 1.0 / math.sqrt(q.shape[3] or 1))
    scorer = Forgetting(sums[:, :, offset : offset + q.shape[2]], sums, scale)
    given: Any = {**options, "scale": 1.0}
    return run(
        ForgettingContext, scorer, Softmax(options.get("sinks")), layout, (query, key, value), attn_mask, dropout_p,
        is_causal, given,
    )  # fmt: skip


@ignoring_fp_errors
def forgetting_attention_bwd(
    dout: Array, ctx: ForgettingContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> ForgettingGrads[ArrayT]:
    r"""The gradients of attention with forget gates; scores and weights are computed again.

    .. math::
        ds_{ij} = p_{ij} (do_i \cdot v_j - do_i \cdot o_i), \qquad
        dG_n = \sum_j ds_{nj} - \sum_i ds_{in}, \qquad d \log f_l = \sum_{n \ge l} dG_n

    and those of query, key and value as in `scaled_dot_product_attention_bwd`.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : ForgettingContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, H, T) and of the weights (*batch, H, T, S).

    Returns
    -------
    ForgettingGrads
        query, key, value, log_forget, bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.ones((5, 4))
    >>> out, ctx = aa.forgetting_attention_fwd(x, x, x, np.zeros(5), is_causal=True)
    >>> aa.forgetting_attention_bwd(out, ctx).log_forget.shape
    (5,)
    """
    checks.context("ctx", ctx, ForgettingContext)
    grads, layout = gradients(dout, ctx, dlse, dweights), ctx.layout
    of_queries, of_keys = grads.scorer[:2]
    xp, offset = namespace_of(of_keys), int(ctx.modifiers.q_offset)
    before, after = offset, of_keys.shape[2] - offset - of_queries.shape[2]
    zeros = (
        xp.zeros((*of_keys.shape[:2], count), dtype=of_keys.dtype, device=device_of(of_keys))
        for count in (before, after)
    )
    dsums = of_keys + xp.concat([next(zeros), of_queries, next(zeros)], axis=2)
    dlog_forget = xp.flip(cumulative_sum(xp.flip(dsums, axis=2), 2), axis=2)
    dlog_forget = narrow(layout.restore_rows(dlog_forget), ctx.q)
    return ForgettingGrads(grads.query, grads.key, grads.value, dlog_forget, grads.bias, grads.normalizer.sinks)

"""Attention with relative positions as Transformer-XL has it: scores of contents and of distances."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, TypedDict, Unpack

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import check_arrays, known_options
from attnarray.attention.parts import declare
from attnarray.attention.products import dot_products, weighted_sum, weighted_sum_over_queries
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
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
    layout: checks.LayoutName


@declare(GROUPED=True, HELD=2, OVERWRITABLE=True)
class Relative(NamedTuple):
    r"""The scorer of relative attention.

    .. math:: s_{ij} = (q_i + u) \cdot k_j + (q_i + v) \cdot r_{i-j}

    The rows of r go from the largest distance down: row n is for the pairs with n = T - 1 - i + j. So the products of a
    query with all rows hold its scores in order, those of each query one entry further left than those of the query
    before.
    """

    position_key: Array  # r, (Hkv, R, D)
    content_bias: Array  # u, (H, 1, D)
    position_bias: Array  # v, (H, 1, D)
    num_queries: int  # T

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        queries, position_scores = self.split(q, k, rows, 1.0)
        return dot_products(queries, k) + position_scores

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, Relative]:
        r"""The gradients of queries, keys, position keys and both biases.

        .. math::
            du = \sum_{ij} ds_{ij} k_j, \quad dv = \sum_{ij} ds_{ij} r_{i-j}, \quad
            dq_i = \sum_j ds_{ij} (k_j + r_{i-j}), \quad dk_j = \sum_i ds_{ij} (q_i + u), \quad
            dr_\delta = \sum_{i - j = \delta} ds_{ij} (q_i + v)
        """
        dqueries, dk, _ = DOT_PRODUCT.backward(dscores, q + self.content_bias, k, rows)
        dq, own = self.split_backward(dqueries, dscores, q, k, rows, 1.0)
        return dq, dk, own

    def split(self, q: Array, k: Array, rows: slice, scale: float) -> tuple[Array, Array]:
        """q + u, and the scaled scores of the distances (B, H, rows, S)."""
        used = _used_rows(self.position_key, self.num_queries - rows.stop, q.shape[2] + k.shape[2])
        products = dot_products(scale * (q + self.position_bias), used)
        return q + self.content_bias, shifted(products, k.shape[2])

    def split_backward(
        self, dqueries: Array, dbias: Array, q: Array, k: Array, rows: slice, scale: float
    ) -> tuple[Array, Relative]:
        """The gradients of q and of the arrays. That of the keys is `attention_backward`'s, from q + u."""
        xp, first = namespace_of(q), self.num_queries - rows.stop
        dproducts = unshifted(dbias)  # (B, H, rows, rows + S), 0 where a query has no key at that distance
        used, queries = _used_rows(self.position_key, first, dproducts.shape[3]), scale * (q + self.position_bias)
        dposition = scale * weighted_sum(dproducts, used, True)
        dr = weighted_sum_over_queries(dproducts, queries, k.shape[1], True)  # (B, Hkv, rows + S, D)
        du, dv = (xp.sum(dq, axis=(0, 2))[:, None, :] for dq in (dqueries, dposition))
        dr = _placed(xp.sum(dr, axis=0), first, self.position_key)
        return dqueries + dposition, Relative(dr, du, dv, self.num_queries)


def _used_rows(r: Array, first: int, count: int) -> Array:
    """`count` rows of r from `first` on, 0 past its end: (1, Hkv, count, D)."""
    rows = r[None, :, first : min(first + count, r.shape[1]), :]
    return _padded(rows, 2, 0, count - rows.shape[2])


def _placed(rows: Array, first: int, r: Array) -> Array:
    """The gradient of r of that of `_used_rows`, (Hkv, count, D)."""
    kept = rows[:, : min(r.shape[1] - first, rows.shape[1]), :]
    return _padded(kept, 1, first, r.shape[1] - first - kept.shape[1])


def shifted(products: Array, keys: int) -> Array:
    """The first `keys` entries of each row n of N from entry N - 1 - n on: (B, H, N, N + S) -> (B, H, N, S)."""
    xp = namespace_of(products)
    *batch, rows, columns = products.shape
    if not rows:
        return xp.reshape(products, (*batch, rows, keys))
    flat = xp.reshape(products, (*batch, rows * columns))
    flat = flat[..., rows - 1 : rows * columns - 1]  # where rows are read one entry shorter, they begin one earlier
    return xp.reshape(flat, (*batch, rows, columns - 1))[..., :keys]


def unshifted(dshifted: Array) -> Array:
    """The gradient of `shifted`: every entry back to where it was, 0 elsewhere: (B, H, N, S) -> (B, H, N, N + S)."""
    xp = namespace_of(dshifted)
    *batch, rows, keys = dshifted.shape
    if not rows:
        return dshifted
    flat = xp.reshape(_padded(dshifted, 3, 0, rows - 1), (*batch, rows * (rows + keys - 1)))
    return xp.reshape(_padded(flat, 2, rows - 1, 1), (*batch, rows, rows + keys))


def _padded(x: Array, axis: int, before: int, after: int) -> Array:
    """x with that many zeros before and after it along an axis."""
    xp = namespace_of(x)

    def zeros(count: int) -> Array:
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        return xp.zeros(shape, dtype=x.dtype, device=device_of(x))

    parts = [zeros(before), x, zeros(after)]
    return xp.concat([part for part in parts if part.shape[axis]] or [x], axis=axis)


class RelativeContext(AttentionContext[ArrayT]):
    """What the backward needs: the inputs in canonical layout, the output and the lse; no weights, no scores."""

    __slots__ = ()


class RelativeGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    position_key: ArrayT
    content_bias: ArrayT
    position_bias: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def relative_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    position_key: ArrayT,
    content_bias: ArrayT,
    position_bias: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[RelativeOptions],
) -> ArrayT:
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
        u and v, which are added to every query before its product with keys and with distances.
    attn_mask, dropout_p, is_causal, scale, bias, window, kv_lengths, sinks, rng, dropout_mask, layout
        As in `scaled_dot_product_attention`. There is no softcap. `layout` does not reorder the keys of positions.
    q_offset : int
        Query i has position i + q_offset. With M keys of memory before those of the queries it is M = S - T.

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
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    position_key: ArrayT,
    content_bias: ArrayT,
    position_bias: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[RelativeOptions],
) -> tuple[ArrayT, RelativeContext[ArrayT]]:
    """`relative_attention`, with the same options, and the context for its backward."""
    known_options(options, RelativeOptions)
    given = {"position_key": position_key, "content_bias": content_bias, "position_bias": position_bias}
    checks.required(query=query, key=key, value=value, **given)
    check_arrays(attn_mask, options, query=query, key=key, value=value, **given)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    q, k = layout.canonical(query), layout.canonical(key)
    offset = checks.whole("q_offset", options.get("q_offset", 0), 0, 2**31, "the position of the first query")
    _check_positions(layout, q, k, checks.flag("is_causal", is_causal), offset, **given)
    xp = namespace_of(query)
    r = position_key if layout.has_heads else position_key[None, :, :]
    biases = [xp.reshape(bias, (q.shape[1], 1, q.shape[3])) for bias in (content_bias, position_bias)]
    scorer = Relative(wide(r), wide(biases[0]), wide(biases[1]), q.shape[2])
    normalizer, arrays, scale = Softmax(options.get("sinks")), (query, key, value), 1.0 / math.sqrt(q.shape[3] or 1)
    return run(RelativeContext, scorer, normalizer, layout, arrays, attn_mask, dropout_p, is_causal, options, scale)


@ignoring_fp_errors
def relative_attention_bwd(
    dout: Array, ctx: RelativeContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> RelativeGrads[ArrayT]:
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
    dlse, dweights : optional
        Cotangents of the lse (*batch, H, T) and of the weights (*batch, H, T, S).

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
    grads, has_heads = gradients(dout, ctx, dlse, dweights), ctx.layout.has_heads
    dr, *dbiases = (narrow(grad, ctx.q) for grad in grads.scorer[:3])
    dr = dr if has_heads else dr[0, :, :]
    du, dv = (dbias[:, 0, :] if has_heads else dbias[0, 0, :] for dbias in dbiases)
    return RelativeGrads(grads.query, grads.key, grads.value, dr, du, dv, grads.bias, grads.normalizer.sinks)


def _check_positions(
    layout: Layout, q: Array, k: Array, is_causal: bool, offset: int, *, position_key: Array, content_bias: Array,
    position_bias: Array,
) -> None:  # fmt: skip
    (_, H, T, D), (_, Hkv, S, _) = q.shape, k.shape
    heads, kv_heads = ((H,), (Hkv,)) if layout.has_heads else ((), ())
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

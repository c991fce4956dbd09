"""The engine: scores -> modifiers -> normalizer -> weighted sum, block by block of queries, for every mechanism.

A mechanism plugs in a scorer (scores of queries and keys) and a normalizer (weights of scores). Each is a NamedTuple of
its arrays with a forward and, directly below it, its backward; the gradient of one is a value of the same type. The
engine owns the blocks, the modifiers, dropout, and the gradients of values and bias. It holds no array of size T x S:
only a scorer may, such as that of recurrent attention.
"""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, TypeVar

from attnarray import checks
from attnarray.attention.blocks import block_rows, cut, join, map_arrays, query_blocks, total_gradient, total_gradients
from attnarray.attention.cotangents import lse_cotangent, weights_cotangent
from attnarray.attention.layout import CANONICAL, Layout
from attnarray.attention.modifiers import (
    ScoreModifiers,
    dropout_factor,
    modified_scores,
    modified_scores_backward,
    modifier_stages,
    plus_bias,
)
from attnarray.attention.normalizers import (
    Softmax,
    masked_softmax,
    masked_softmax_backward,
    masked_softmax_from_lse,
    sinks_gradient,
)
from attnarray.attention.options import score_modifiers
from attnarray.attention.parts import call_scores, call_scores_backward, call_weights, check_result, declare, several
from attnarray.attention.products import (
    dot_products,
    finite_or_zero,
    hiding_product,
    sum_to_shape,
    weighted_sum,
    weighted_sum_over_queries,
)
from attnarray.attention.tiles import backward_by_tiles, forward_by_tiles
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of, operand_dtype
from attnarray.dispatch import accelerated
from attnarray.hooks import attention_cotangent
from attnarray.numpy_arrays import read_only

C = TypeVar("C", bound="AttentionContext")


@declare(GROUPED=True, OVERWRITABLE=True)
class DotProduct(NamedTuple):
    r"""The scorer of dot products.

    .. math:: s_{ij} = q_i \cdot k_j

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> aa.attend(q, k, v, scorer=aa.DotProduct(), normalizer=aa.Entmax(1.5)).shape
    (1, 2, 4, 8)
    """

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        return dot_products(q, k)

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, DotProduct]:
        r"""The gradients of queries and keys; those of the keys sum over the heads of a group.

        .. math:: dq_i = \sum_j ds_{ij} k_j, \qquad dk_j = \sum_i ds_{ij} q_i
        """
        return weighted_sum(dscores, k), weighted_sum_over_queries(dscores, q, k.shape[1]), self


DOT_PRODUCT, SOFTMAX = DotProduct(), Softmax()


class AttentionContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: canonical inputs (B, H, T, D), output, and what the normalizer kept; no weights."""

    q: ArrayT
    k: ArrayT
    v: ArrayT
    out: Any  # (B, H, T, Dv), which only the gradient of a softmax needs
    kept: Any  # the lse (B, H, T) of a softmax
    scorer: Any
    modifiers: ScoreModifiers
    normalizer: Any
    layout: Layout = CANONICAL
    bias_shape: tuple[int, ...] | None = None

    @property
    def lse(self) -> ArrayT:
        """log sum_j e^s, sink included: (B, H, T)."""
        return self.kept.lse if hasattr(self.kept, "lse") else self.kept

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output in the caller's layout."""
        return self.layout.restored_shape((*self.q.shape[:3], self.v.shape[3]))

    def rows(self, rows: slice) -> AttentionContext:
        """The context of these queries alone."""
        q, out, kept = (block_rows(x, rows) for x in (self.q, self.out, self.kept))
        parts = cut(self.scorer, rows), self.modifiers.rows(rows.start, rows.stop), cut(self.normalizer, rows)
        return AttentionContext(q, self.k, self.v, out, kept, *parts)


class AttentionGrads(NamedTuple, Generic[ArrayT]):
    """Gradients in the caller's layout; those of scorer, custom modifiers and normalizer are values of their types."""

    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None
    scorer: Any
    modifiers: tuple[Any, ...] | None
    normalizer: Any


def run(
    kind: type[C],
    scorer: Any,
    normalizer: Any,
    layout: Layout,
    arrays: tuple[Array, Array, Array],
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    options: Any,
    default_scale: float = 1.0,
) -> tuple[Any, C]:
    """Attention of query, key and value in the caller's layout, which were checked: the output and the context."""
    q, k, v = (layout.canonical(x) for x in arrays)
    modifiers, bias_shape = score_modifiers(
        q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options, default_scale=default_scale
    )
    return run_canonical(kind, scorer, normalizer, q, k, v, modifiers, layout, bias_shape)


def run_canonical(
    kind: type[C], scorer: Any, normalizer: Any, q: Array, k: Array, v: Array, modifiers: ScoreModifiers,
    layout: Layout, bias_shape: tuple[int, ...] | None,
) -> tuple[Any, C]:  # fmt: skip
    """Attention of canonical arrays (B, H, T, D): the output in the caller's layout, and the context."""
    out, kept = forward(scorer, q, k, v, modifiers, normalizer)
    restored_out = layout.restore(out)
    if isinstance(normalizer, Softmax):
        ctx = kind(q, k, v, out, kept, scorer, modifiers, normalizer, layout, bias_shape)
        return read_only(restored_out), ctx
    return restored_out, kind(q, k, v, None, kept, scorer, modifiers, normalizer, layout, bias_shape)


def gradients(
    dout: Array, ctx: AttentionContext, dlse: Array | None = None, dweights: Array | None = None
) -> AttentionGrads:
    """The gradients in the caller's layout for cotangents of the output, of the lse and of the weights."""
    layout = ctx.layout
    checks.shape("dout", dout, ctx.out_shape, "the shape of the output")
    attention_cotangent(ctx, dout)
    checks.floating(dout=dout, query=ctx.q)
    if dlse is not None:
        if not isinstance(ctx.normalizer, Softmax):
            raise ValueError("`dlse` is given, but only the weights of a softmax have an lse. Leave it out.")
        dlse = lse_cotangent(dlse, ctx)
    if dweights is not None:
        dweights = weights_cotangent(dweights, ctx)
    checks.namespace(dout=dout, dlse=dlse, dweights=dweights, query=ctx.q)
    return restored(backward(layout.canonical(dout), ctx, dlse, dweights), ctx)


def restored(grads: AttentionGrads, ctx: AttentionContext) -> AttentionGrads:
    """The gradients of canonical arrays in the caller's layout."""
    dq, dk, dv, dbias, *others = grads
    restore = ctx.layout.restore
    if dbias is not None and ctx.bias_shape is not None:
        dbias = ctx.layout.restore_bias(dbias, ctx.bias_shape)
    return AttentionGrads(restore(dq), restore(dk), restore(dv), dbias, *others)


def forward(scorer: Any, q: Array, k: Array, v: Array, modifiers: ScoreModifiers, normalizer: Any) -> tuple[Array, Any]:
    """The output (B, H, T, Dv) and what the normalizer keeps, by a fused kernel where there is one."""
    if type(scorer) is DotProduct and _is_masked_softmax(normalizer, modifiers):
        return attention(q, k, v, modifiers)
    if _is_compiled(scorer, normalizer, modifiers):
        return modified_attention(q, k, v, modifiers)
    return _forward_in_blocks(scorer, q, k, v, modifiers, normalizer)


def backward(dout: Array, ctx: AttentionContext, dkept: Any = None, dweights: Array | None = None) -> AttentionGrads:
    """The gradients of the canonical arrays for cotangents of the output, of what was kept, and of the weights.

    `dweights` (B, H, T, S) is that of the weights before dropout.
    """
    if dweights is None and type(ctx.scorer) is DotProduct and _is_masked_softmax(ctx.normalizer, ctx.modifiers):
        dq, dk, dv, dbias, dsinks = attention_backward(
            dout, dkept, ctx.q, ctx.k, ctx.v, ctx.out, ctx.kept, ctx.modifiers
        )
        return AttentionGrads(dq, dk, dv, dbias, ctx.scorer, (), Softmax(dsinks))
    if dweights is None and _is_compiled(ctx.scorer, ctx.normalizer, ctx.modifiers):
        dq, dk, dv, dbias, dsinks, dcustom = modified_attention_backward(
            dout, dkept, ctx.q, ctx.k, ctx.v, ctx.out, ctx.kept, ctx.modifiers
        )
        dcustom = tuple(total_gradients([each], own) for each, own in zip(dcustom, ctx.modifiers.custom, strict=True))
        return AttentionGrads(dq, dk, dv, dbias, ctx.scorer, dcustom, Softmax(dsinks))
    return _backward_in_blocks(dout, dkept, dweights, ctx)


@accelerated
def attention(q: ArrayT, k: ArrayT, v: ArrayT, modifiers: ScoreModifiers) -> tuple[ArrayT, ArrayT]:
    r"""Scaled dot-product attention.

    .. math:: o_i = \sum_j p_{ij} v_j

    Parameters
    ----------
    q : (B, H, T, D), k : (B, Hkv, S, D), v : (B, Hkv, S, Dv)
    modifiers : ScoreModifiers

    Returns
    -------
    out : (B, H, T, Dv) of the dtype of q
    lse : (B, H, T) of the accumulator's dtype
    """
    if modifiers.tiles is not None:
        tiled: Any = forward_by_tiles(_plain_forward, q, k, v, modifiers)
        return tiled
    return _plain_forward(q, k, v, modifiers)


@accelerated
def attention_backward(
    dout: Array, dlse: Array | None, q: Array, k: Array, v: Array, out: Array, lse: Array, modifiers: ScoreModifiers
) -> tuple[Array, Array, Array, Any, Any]:
    r"""The gradients of `attention`. Weights are recomputed from q, k and lse, one block of queries after the other.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \quad dp_{ij} = do_i \cdot v_j, \quad
        \delta_i = do_i \cdot o_i - d\mathrm{lse}_i, \quad ds_{ij} = p_{ij} (dp_{ij} - \delta_i), \quad
        dq_i = \sum_j ds_{ij} k_j, \quad dk_j = \sum_i ds_{ij} q_i

    with ds carried through softcap and scale before the last two; dbias is ds summed over the axes that bias lacks.

    Returns
    -------
    dq, dk, dv : the shapes and dtypes of q, k, v
    dbias : the shape of modifiers.bias, or None
    dsinks : (H,), or None
    """
    if modifiers.tiles is not None:
        return backward_by_tiles(_plain_backward, dout, dlse, q, k, v, out, lse, modifiers)
    return _plain_backward(dout, dlse, q, k, v, out, lse, modifiers)


@accelerated
def modified_attention(q: ArrayT, k: ArrayT, v: ArrayT, modifiers: ScoreModifiers) -> tuple[ArrayT, ArrayT]:
    """`attention` with modifiers of the caller, all of them compiled ones: see `compiled_modifier`."""
    return _forward_in_blocks(DOT_PRODUCT, q, k, v, modifiers, Softmax(modifiers.sinks))


@accelerated
def modified_attention_backward(
    dout: Array, dlse: Array | None, q: Array, k: Array, v: Array, out: Array, lse: Array, modifiers: ScoreModifiers
) -> tuple[Array, Array, Array, Any, Any, Any]:
    """The gradients of `modified_attention`, as those of `attention`; the last are those of the modifiers, in order."""
    ctx = AttentionContext(q, k, v, out, lse, DOT_PRODUCT, modifiers, Softmax(modifiers.sinks))
    dq, dk, dv, dbias, _, dcustom, dnormalizer = _backward_in_blocks(dout, dlse, None, ctx)
    return dq, dk, dv, dbias, dnormalizer.sinks, dcustom


def _plain_forward(q: Any, k: Any, v: Any, modifiers: ScoreModifiers) -> tuple[Any, Any]:
    """`attention` without tiles."""
    return _forward_in_blocks(DOT_PRODUCT, q, k, v, modifiers, SOFTMAX)


def _plain_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, modifiers: ScoreModifiers
) -> tuple[Any, ...]:
    """`attention_backward` without tiles."""
    ctx = AttentionContext(q, k, v, out, lse, DOT_PRODUCT, modifiers, Softmax(modifiers.sinks))
    dq, dk, dv, dbias, _, _, dnormalizer = _backward_in_blocks(dout, dlse, None, ctx)
    return dq, dk, dv, dbias, dnormalizer.sinks


def _is_masked_softmax(normalizer: Any, modifiers: ScoreModifiers) -> bool:
    """Whether `masked_softmax` serves the combination."""
    return type(normalizer) is Softmax and not modifiers.custom


def _is_compiled(scorer: Any, normalizer: Any, modifiers: ScoreModifiers) -> bool:
    """Whether `modified_attention` serves the combination."""
    compiled = all(getattr(part, "COMPILED", False) for part in modifiers.custom)
    return bool(modifiers.custom) and compiled and type(scorer) is DotProduct and type(normalizer) is Softmax


def _is_biased_attention(scorer: Any, normalizer: Any, modifiers: ScoreModifiers) -> bool:
    """Whether `attention` serves the combination, with a part of the scores as a bias, which no softcap precedes."""
    return hasattr(scorer, "split") and _is_masked_softmax(normalizer, modifiers) and modifiers.softcap is None


def _forward_in_blocks(
    scorer: Any, q: Array, k: Array, v: Array, modifiers: ScoreModifiers, normalizer: Any
) -> tuple[Any, Any]:
    xp = namespace_of(q, k, v)
    operand = _operand_dtype(scorer, q, modifiers, normalizer)
    k, v = xp.astype(_key_heads(scorer, q, k), operand, copy=False), xp.astype(v, operand, copy=False)
    by_attention = _is_biased_attention(scorer, normalizer, modifiers)
    outs, kepts = [], []
    for rows in query_blocks(q, k, _held(scorer, normalizer)):
        own, block = cut(scorer, rows), modifiers.rows(rows.start, rows.stop)
        queries = xp.astype(q[:, :, rows, :], operand, copy=False)
        if by_attention:
            queries, bias = own.split(queries, k, rows, block.scale)
            out, kept = attention(queries, k, v, plus_bias(block, bias))
        else:
            out, kept = _block_forward(own, queries, k, v, block, cut(normalizer, rows), rows)
        outs.append(xp.astype(out, q.dtype, copy=False))
        kepts.append(kept)
    return join(outs), map_arrays(join, *kepts)


def _block_forward(
    scorer: Any, q: Array, k: Array, v: Array, modifiers: ScoreModifiers, normalizer: Any, rows: slice
) -> tuple[Array, Any]:
    if _is_masked_softmax(normalizer, modifiers):
        weights, kept = masked_softmax(_overwritable_scores(scorer, q, k, rows), modifiers)
    else:
        weights, kept = call_weights(normalizer, modified_scores(call_scores(scorer, q, k, rows), modifiers), rows)
    factor = dropout_factor(modifiers, weights.shape, weights)
    weights = weights if factor is None else weights * factor
    return weighted_sum(weights, v, _hides(modifiers, normalizer)), kept


def _overwritable_scores(scorer: Any, q: Array, k: Array, rows: slice) -> Array:
    """The scores in an array that kernels may overwrite: it must not be one of the scorer's own."""
    scores = call_scores(scorer, q, k, rows)
    return scores if getattr(scorer, "OVERWRITABLE", False) else namespace_of(scores).asarray(scores, copy=True)


def _backward_in_blocks(dout: Array, dkept: Any, dweights: Array | None, ctx: AttentionContext) -> AttentionGrads:
    q, k, v, _, _, scorer, modifiers, normalizer, *_ = ctx
    xp = namespace_of(q, k, v, dout)
    wide, operand = accumulator_dtype(xp, q.dtype), _operand_dtype(scorer, q, modifiers, normalizer)
    dtypes, kv_heads = (q.dtype, k.dtype, v.dtype), k.shape[1]
    q, k, v, dout = (xp.astype(x, operand, copy=False) for x in (q, _key_heads(scorer, q, k), v, dout))
    # A hidden score has a gradient of 0, which must not meet the NaN that the mask hides.
    finite_q, finite_k = (finite_or_zero(x) for x in (q, k)) if _hides(modifiers, normalizer) else (q, k)
    by_attention = dweights is None and _is_biased_attention(scorer, normalizer, modifiers)
    block_backward = _biased_attention_backward if by_attention else _block_backward
    ctx, blocks = ctx._replace(q=q, k=k, v=v), list[Any]()
    dk, dv = (xp.zeros(x.shape, dtype=wide, device=device_of(x)) for x in (k, v))
    for rows in query_blocks(q, k, _held(scorer, normalizer)):
        cotangents = (block_rows(x, rows) for x in (dout, dkept, dweights))
        grads = block_backward(ctx.rows(rows), rows, finite_q[:, :, rows, :], finite_k, *cotangents)
        dk, dv = dk + grads.key, dv + grads.value
        blocks.append(grads._replace(key=None, value=None))
    dqs, _, _, dbiases, dscorers, dcustoms, dnormalizers = zip(*blocks, strict=True)
    if dk.shape[1] != kv_heads:
        dk = xp.sum(xp.reshape(dk, (dk.shape[0], kv_heads, dk.shape[1] // kv_heads, *dk.shape[2:])), axis=2)
    dq, dk, dv = (xp.astype(x, dtype, copy=False) for x, dtype in zip((join(dqs), dk, dv), dtypes, strict=True))
    dcustom = tuple(
        total_gradients(n, own) for n, own in zip(zip(*dcustoms, strict=True), modifiers.custom, strict=True)
    )
    dbias = total_gradient(dbiases, modifiers.bias)
    return AttentionGrads(
        dq, dk, dv, dbias, total_gradients(dscorers, scorer), dcustom, total_gradients(dnormalizers, normalizer)
    )


def _biased_attention_backward(
    ctx: AttentionContext,
    rows: slice,
    finite_q: Array,
    finite_k: Array,
    dout: Array,
    dlse: Array | None,
    dweights: None,
) -> AttentionGrads:
    """The gradients of a block of queries by `attention_backward`."""
    q, k, v, out, lse, scorer, modifiers, *_ = ctx
    queries, bias = scorer.split(q, k, rows, modifiers.scale)
    dqueries, dk, dv, dbias, dsinks = attention_backward(
        dout, dlse, queries, k, v, namespace_of(q).astype(out, q.dtype, copy=False), lse, plus_bias(modifiers, bias)
    )
    dq, dscorer = scorer.split_backward(dqueries, dbias, finite_q, finite_k, rows, modifiers.scale)
    dbias = None if modifiers.bias is None else sum_to_shape(dbias, modifiers.bias.shape)
    return AttentionGrads(dq, dk, dv, dbias, dscorer, (), Softmax(dsinks))


def _block_backward(
    ctx: AttentionContext, rows: slice, finite_q: Array, finite_k: Array, dout: Array, dkept: Any,
    direct: Array | None,
) -> AttentionGrads:  # fmt: skip
    """The gradients of a block of queries; `direct` is the cotangent of the weights themselves."""
    q, k, v, out, kept, scorer, modifiers, normalizer, *_ = ctx
    xp, dcustom = namespace_of(q, k, v), tuple[Any, ...]()
    factor = dropout_factor(modifiers, (*q.shape[:3], k.shape[2]), q)
    if _is_masked_softmax(normalizer, modifiers):
        scores = _overwritable_scores(scorer, q, k, rows)
        out, wide_dout = (xp.astype(x, scores.dtype, copy=False) for x in (out, dout))
        delta = xp.sum(hiding_product(out, wide_dout), axis=-1)  # sum_j p_ij dp_ij
        if direct is not None:
            delta = delta + xp.sum(hiding_product(masked_softmax_from_lse(scores, kept, modifiers), direct), axis=-1)
        if dkept is not None:
            delta = delta - xp.astype(dkept, scores.dtype, copy=False)
        sinks = modifiers.sinks
        dnormalizer: Any = Softmax(None if sinks is None else sinks_gradient(kept, delta, sinks))
        weights, dscores, dmodified = masked_softmax_backward(
            scores, _dweights(dout, v, factor, direct), kept, delta, modifiers
        )
    else:
        stages = modifier_stages(call_scores(scorer, q, k, rows), modifiers)
        weights = _weights_again(normalizer, stages[-1], kept, rows)
        hidden = stages[-1] == -math.inf if modifiers.hides() else None
        dweights = _dweights(dout, v, factor, direct, hidden)
        results = normalizer.backward(dweights, dkept, read_only(weights), kept, read_only(stages[-1]), rows)
        dmodified, dnormalizer = several(normalizer, "backward", results, 2)
        check_result(normalizer, "backward", dmodified, weights.shape, like=weights)
        dscores, dmodified, dcustom = modified_scores_backward(dmodified, stages, modifiers)
    if factor is not None:
        weights = xp.where(factor == 0, 0.0, weights * factor)
    dv = weighted_sum_over_queries(weights, dout, v.shape[1], _hides(modifiers, normalizer))
    dbias = None if modifiers.bias is None else sum_to_shape(dmodified, modifiers.bias.shape)
    dq, dk, dscorer = call_scores_backward(scorer, dscores, finite_q, finite_k, rows)
    return AttentionGrads(dq, dk, dv, dbias, dscorer, dcustom, dnormalizer)


def _dweights(dout: Array, v: Array, factor: Array | None, direct: Array | None, hidden: Array | None = None) -> Array:
    """The cotangent of the weights before dropout, (B, H, rows, S): 0 where hidden, where a value may be NaN."""
    xp, dweights = namespace_of(dout), dot_products(dout, v)
    if factor is not None:
        dweights = xp.where(factor == 0, 0.0, dweights * factor)
    if direct is not None:
        dweights = dweights + direct
    return dweights if hidden is None else xp.where(hidden, 0.0, dweights)


def weights(ctx: AttentionContext, rows: slice) -> Array:
    """The weights of some queries again, before dropout: (B, H, rows, S) of the accumulator's dtype."""
    q, k, _, _, kept, scorer, modifiers, normalizer, *_ = ctx.rows(rows)
    xp = namespace_of(q)
    wide = accumulator_dtype(xp, q.dtype)
    q, k = (xp.astype(x, wide, copy=False) for x in (q, _key_heads(scorer, q, k)))
    return _weights_again(normalizer, modified_scores(call_scores(scorer, q, k, rows), modifiers), kept, rows)


def _weights_again(normalizer: Any, scores: Array, kept: Any, rows: slice) -> Array:
    if hasattr(normalizer, "weights_again"):
        weights = normalizer.weights_again(read_only(scores), kept, rows)
        check_result(normalizer, "weights_again", weights, scores.shape, like=scores)
        return weights
    return call_weights(normalizer, scores, rows)[0]


def _key_heads(scorer: Any, q: Array, k: Array) -> Array:
    """The keys as a scorer takes them: grouped heads if it says GROUPED, else one head for each of the queries'."""
    if q.shape[1] == k.shape[1] or getattr(scorer, "GROUPED", False):
        return k
    return namespace_of(k).repeat(k, q.shape[1] // k.shape[1], axis=1)


def _operand_dtype(scorer: Any, q: Array, modifiers: ScoreModifiers, normalizer: Any) -> Any:
    """The dtype that products are taken in: 16 bits only for dot products and a softmax, as on tensor cores."""
    if type(scorer) is DotProduct and _is_masked_softmax(normalizer, modifiers):
        return operand_dtype(q)
    return accumulator_dtype(namespace_of(q), q.dtype)


def _hides(modifiers: ScoreModifiers, normalizer: Any) -> bool:
    """Whether a weight of zero hides what it multiplies: by a mask, by dropout, or since a key was not chosen."""
    return modifiers.hides() or getattr(normalizer, "HIDES", False)


def _held(scorer: Any, normalizer: Any) -> int:
    """How many arrays of the size of a block of scores are held at a time."""
    return max(getattr(scorer, "HELD", 1), 1 if type(normalizer) is Softmax else 4)

"""Additive attention (Bahdanau): a small network with one hidden layer scores each pair of query and key."""

from __future__ import annotations

from typing import Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.blocks import join, query_blocks
from attnarray.attention.engine import SOFTMAX, AttentionContext, gradients, run
from attnarray.attention.layout import sequence_layout
from attnarray.attention.options import ScoreOptions, check_arrays, known_options
from attnarray.attention.parts import declare
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable


@declare(HELD=8, OVERWRITABLE=True)  # beside the hidden layer, which has blocks of its own
class Additive(NamedTuple):
    r"""The scorer of additive attention.

    .. math:: e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja})
    """

    score_vector: Array  # (A,)

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        return additive_scores(q, k, namespace_of(q).astype(self.score_vector, q.dtype, copy=False))

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, Additive]:
        """See `additive_scores_backward`."""
        w = namespace_of(q).astype(self.score_vector, q.dtype, copy=False)
        dq, dk, dw = additive_scores_backward(dscores, q, k, w)
        return dq, dk, Additive(dw)


@accelerated
def additive_scores(q: Array, k: Array, w: Array) -> Array:
    r"""The scores of all pairs.

    .. math:: e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja})

    Parameters
    ----------
    q : (B, 1, T, A) float32 or float64, k : (B, 1, S, A), w : (A,)

    Returns
    -------
    (B, 1, T, S)
    """
    xp = namespace_of(q, k, w)
    blocks = []
    for rows in query_blocks(q, k, q.shape[3]):
        hidden = xp.tanh(q[:, :, rows, None, :] + k[:, :, None, :, :])  # (B, 1, rows, S, A)
        blocks.append(xp.matmul(hidden, w[:, None])[..., 0])
    return join(blocks)


@accelerated
def additive_scores_backward(dscores: Array, q: Array, k: Array, w: Array) -> tuple[Array, Array, Array]:
    r"""The gradients of the scores with respect to q, k and w. The hidden layer is computed again.

    .. math::
        g_{ija} = de_{ij}\, w_a \bigl(1 - \tanh^2(q_{ia} + k_{ja})\bigr), \quad
        dq_{ia} = \sum_j g_{ija}, \quad dk_{ja} = \sum_i g_{ija}, \quad
        dw_a = \sum_{ij} de_{ij} \tanh(q_{ia} + k_{ja})

    Where a score has gradient 0, the pair does not matter, even if it holds NaN.

    Parameters
    ----------
    dscores : (B, 1, T, S)
    q : (B, 1, T, A) float32 or float64, k : (B, 1, S, A), w : (A,)

    Returns
    -------
    dq, dk, dw : the shapes of q, k, w
    """
    xp = namespace_of(dscores, q, k, w)
    dqs, dk, dw = [], xp.zeros_like(k), xp.zeros_like(w)
    for rows in query_blocks(q, k, q.shape[3]):
        hidden = xp.tanh(q[:, :, rows, None, :] + k[:, :, None, :, :])  # (B, 1, rows, S, A)
        weight = dscores[:, :, rows, :, None]
        slopes = xp.where(weight == 0, 0.0, weight * (1.0 - hidden**2))
        dqs.append(xp.sum(slopes, axis=3) * w)
        dk = dk + xp.sum(slopes, axis=2) * w
        dw = dw + xp.sum(xp.where(weight == 0, 0.0, weight * hidden), axis=(0, 1, 2, 3))
    return join(dqs), dk, dw


class AdditiveContext(AttentionContext[ArrayT]):
    """What the backward needs: the inputs as (B, 1, T, N), the output and the lse; no weights, no tanh."""

    __slots__ = ()


class AdditiveGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    score_vector: ArrayT
    bias: ArrayT | None


def additive_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Additive attention on projected queries and keys.

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{softmax}_j(\mathrm{scale}\; e_{ij} + b_{ij}), \qquad
        e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja})

    over the keys that every mask allows. The paper's :math:`v^T \tanh(W s_{i-1} + U h_j + b)` is this
    with q = W s + b, k = U h and w = v: see `layers.BahdanauAttention`. A bias after w would have no effect:
    the softmax does not see a constant.

    Parameters
    ----------
    query : (*batch, T, A) floating
        float64, float32, float16 or bfloat16; the 16-bit types are accumulated in float32.
    key : (*batch, S, A)
    value : (*batch, S, Dv)
    score_vector : (A,)
        The weights w of the hidden layer; what some libraries call additive attention leaves them out.
    attn_mask, dropout_p, is_causal, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `scaled_dot_product_attention`; there are no heads, so masks and biases broadcast to (*batch, T, S).
    scale : float
        1 by default; an inverse temperature.

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and translate", 2014,
    arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal(shape) for shape in ((2, 5, 16), (2, 7, 16), (2, 7, 3)))
    >>> aa.additive_attention(query, key, value, rng.standard_normal(16), kv_lengths=[7, 4]).shape
    (2, 5, 3)
    """
    out, _ = additive_attention_fwd(query, key, value, score_vector, attn_mask, dropout_p, is_causal, **options)
    return writable(out)


@ignoring_fp_errors
def additive_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, AdditiveContext[ArrayT]]:
    """`additive_attention`, with the same options, and the context for its backward."""
    known_options(options, ScoreOptions)
    checks.required(query=query, key=key, value=value, score_vector=score_vector)
    check_arrays(attn_mask, options, query=query, key=key, value=value, score_vector=score_vector)
    layout = sequence_layout(query, key, value)
    _check_widths(query, key, score_vector)
    scorer, arrays = Additive(score_vector), (query, key, value)
    return run(AdditiveContext, scorer, SOFTMAX, layout, arrays, attn_mask, dropout_p, is_causal, options)


@ignoring_fp_errors
def additive_attention_bwd(
    dout: Array, ctx: AdditiveContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> AdditiveGrads[ArrayT]:
    r"""The gradients of additive attention; weights and tanh are recomputed from q, k and the lse.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \quad
        de_{ij} = \mathrm{scale}\; p_{ij} (do_i \cdot v_j - do_i \cdot o_i), \quad
        dw_a = \sum_{ij} de_{ij} h_{ija}

    .. math::
        dq_{ia} = w_a \sum_j de_{ij} (1 - h_{ija}^2), \quad
        dk_{ja} = w_a \sum_i de_{ij} (1 - h_{ija}^2), \quad h_{ija} = \tanh(q_{ia} + k_{ja})

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : AdditiveContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

    Returns
    -------
    AdditiveGrads
        query, key, value, score_vector, bias (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, w = np.random.default_rng(0).standard_normal((2, 5, 4)), np.ones(4)
    >>> out, ctx = aa.additive_attention_fwd(x, x, x, w)
    >>> aa.additive_attention_bwd(np.ones_like(out), ctx).score_vector.shape
    (4,)
    """
    checks.context("ctx", ctx, AdditiveContext)
    grads = gradients(dout, ctx, dlse, dweights)
    return AdditiveGrads(grads.query, grads.key, grads.value, grads.scorer.score_vector, grads.bias)


def _check_widths(query: Array, key: Array, score_vector: Array) -> None:
    if not query.shape[-1] == key.shape[-1] == score_vector.shape[-1] or score_vector.ndim != 1:
        raise ValueError(
            "`query` (*batch, T, A), `key` (*batch, S, A) and `score_vector` (A,) must have equally many features A. "
            "Project them first, or use layers.BahdanauAttention. "
            f"{checks.shapes(query=query, key=key, score_vector=score_vector)}"
        )

"""Additive attention (Bahdanau): a small network with one hidden layer scores each pair of query and key."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.additive_core import additive_scores, attend_additive, attend_additive_backward
from attnarray.attention.form import Form, sequence_form
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, scoring_of
from attnarray.attention.scoring import Scoring
from attnarray.backend import Array, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable


class AdditiveContext(NamedTuple):
    """What the backward needs: the inputs as (B, 1, T, N), the output and the lse; no weights, no tanh."""

    q: Array
    k: Array
    v: Array
    score_vector: Array
    out: Array
    lse: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None

    def dots(self, start: int, stop: int) -> Array:
        """The scores of the queries [start, stop) again, before scale, bias and masks: (B, 1, rows, S)."""
        xp = namespace_of(self.q)
        q, k, w = (xp.astype(x, self.lse.dtype) for x in (self.q[:, :, start:stop, :], self.k, self.score_vector))
        return additive_scores(q, k, w)


class AdditiveGrads(NamedTuple):
    query: Array
    key: Array
    value: Array
    score_vector: Array
    bias: Array | None


def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    score_vector: Array,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> Array:
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
    query: Array,
    key: Array,
    value: Array,
    score_vector: Array,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[Array, AdditiveContext]:
    """`additive_attention`, with the same options, and the context for its backward."""
    known_options(options, ScoreOptions)
    checks.required(query=query, key=key, value=value, score_vector=score_vector)
    check_arrays(attn_mask, options, query=query, key=key, value=value, score_vector=score_vector)
    form = sequence_form(query, key, value)
    _check_widths(query, key, score_vector)
    q, k, v = form.canonical(query), form.canonical(key), form.canonical(value)
    scoring, bias_shape = scoring_of(q, k.shape[2], form, attn_mask, dropout_p, is_causal, options)
    ctx = attend_canonical(q, k, v, score_vector, scoring, form, bias_shape)
    return read_only(form.restored(ctx.out)), ctx


@ignoring_fp_errors
def additive_attention_bwd(dout: Array, ctx: AdditiveContext) -> AdditiveGrads:
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
    form = ctx.form
    checks.cotangent(dout, tuple(form.restored(ctx.out).shape), ctx.q)
    dq, dk, dv, dw, dbias = attend_additive_backward(
        form.canonical(dout), ctx.q, ctx.k, ctx.v, ctx.score_vector, ctx.out, ctx.lse, ctx.scoring
    )
    if dbias is not None and ctx.bias_shape is not None:
        dbias = form.restored_bias(dbias, ctx.bias_shape)
    return AdditiveGrads(form.restored(dq), form.restored(dk), form.restored(dv), dw, dbias)


def attend_canonical(
    q: Array, k: Array, v: Array, w: Array, scoring: Scoring, form: Form, bias_shape: tuple[int, ...] | None
) -> AdditiveContext:
    """The context, with its output, of queries, keys and values (B, 1, T, N) whose checks are done."""
    out, lse = attend_additive(q, k, v, w, scoring)
    return AdditiveContext(q, k, v, w, out, lse, scoring, form, bias_shape)


def _check_widths(query: Array, key: Array, score_vector: Array) -> None:
    if not query.shape[-1] == key.shape[-1] == score_vector.shape[-1] or score_vector.ndim != 1:
        raise ValueError(
            "`query` (*batch, T, A), `key` (*batch, S, A) and `score_vector` (A,) must have equally many features A. "
            "Project them first, or use layers.BahdanauAttention. "
            f"{checks.shapes(query=query, key=key, score_vector=score_vector)}"
        )

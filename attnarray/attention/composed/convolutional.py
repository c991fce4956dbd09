"""Convolutional attention: windows of a sequence are compared instead of single positions."""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, NamedTuple, Unpack, get_args

from attnarray import checks
from attnarray.attention.alignment.additive import Additive
from attnarray.attention.engine import DOT_PRODUCT, SOFTMAX, AttentionContext, gradients, run_canonical
from attnarray.attention.layout import Layout
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.sequences import check_sequence, narrow, one_sequence_layout, wide, without_padding
from attnarray.backend import Array, ArrayT
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.conv1d import Conv1dContext, conv1d_bwd, conv1d_fwd

PairPadding = Literal["same", "causal"]
PADDINGS: tuple[PairPadding, ...] = get_args(PairPadding)


class ConvolutionalContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the contexts of the two convolutions and of the attention."""

    x: ArrayT
    query: Conv1dContext
    key: Conv1dContext
    attention: AttentionContext
    has_value: bool


class ConvolutionalGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    query_weight: ArrayT
    key_weight: ArrayT
    value: ArrayT | None
    score_vector: ArrayT | None
    query_bias: ArrayT | None
    bias: ArrayT | None


def convolutional_attention(
    x: ArrayT,
    query_weight: ArrayT,
    key_weight: ArrayT,
    value: ArrayT | None = None,
    score_vector: ArrayT | None = None,
    query_bias: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    padding: PairPadding = "same",
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Self-attention with queries and keys that are convolutions of the sequence.

    .. math::
        q_t = b_q + \sum_n W^q_n\, x_{t - p + n}, \qquad k_{t'} = \sum_n W^k_n\, x_{t' - p + n}, \qquad
        o_t = \sum_{t'} \mathrm{softmax}_{t'}(\mathrm{scale}\; e_{tt'} + b_{tt'})\, x_{t'}

    .. math::
        e_{tt'} = v^T \tanh(q_t + k_{t'}) \;\text{with a score vector } v, \qquad
        e_{tt'} = q_t \cdot k_{t'} \;\text{without}

    over the taps n of a width, with p = (width - 1) / 2 for "same" and p = width - 1 for "causal" padding, and x = 0
    outside of the sequence.

    *With a score vector* this is v^T tanh(W_c * [x_t; x_t']): a kernel of size k x 1 that goes over pairs moves both
    windows together, W_c * [x_t; x_t'] = sum_n W_c[:, :, n] [x_(t-p+n); x_(t'-p+n)]. Its columns for x_t are
    `query_weight`, those for x_t' `key_weight`, and each half is a convolution of x: no pair is ever laid out.
    *Without*, these are convolutional queries and keys (LogSparse Transformer), scored by scaled dot products.

    Parameters
    ----------
    x : (*batch, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    query_weight : (A, D, width)
        Not flipped, as in `conv1d`.
    key_weight : (A, D, width)
        Its width may be another one; with width 1 only queries are convolved.
    value : (*batch, T, Dv), optional
        What is summed instead of x_t'.
    score_vector : (A,), optional
    query_bias : (A,), optional
        Keys need none: in pairs it would be the same bias again, in dot products the softmax does not see it.
    attn_mask, dropout_p, is_causal, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `additive_attention`. Positions of x past their length do not exist: they are read as 0, even when they
        hold NaN, as if the sequence ended there.
    scale : float
        1 by default with a score vector, 1 / sqrt(A) without.
    padding : {"same", "causal"}
        "same": windows reach as far ahead as back; for odd widths. "causal": the window of t ends at t.

    Returns
    -------
    (*batch, T, D or Dv) of the dtype of x
        A position for which nothing is allowed gives 0.

    Raises
    ------
    ValueError
        If shapes do not fit, a width is even with padding "same", or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    At the edges each window stops at the end of the sequence by itself: where x_(t-p+n) is outside, it counts as 0 and
    x_(t'-p+n) still counts. Zeros around the T x T grid of pairs, as a convolution of an image of pairs would have,
    would drop both as soon as one is outside. `is_causal` forbids keys t' > t, no more: only with padding "causal"
    do the windows of the allowed keys, and of the query, not reach past t.

    References
    ----------
    Li et al., "Enhancing the locality and breaking the memory bottleneck of Transformer on time series forecasting",
    2019, arXiv:1907.00235. The pairs have no published source of that layout.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> x, wq, wk = rng.standard_normal((2, 7, 3)), rng.standard_normal((8, 3, 5)), rng.standard_normal((8, 3, 5))
    >>> aa.convolutional_attention(x, wq, wk, score_vector=rng.standard_normal(8), kv_lengths=[7, 4]).shape
    (2, 7, 3)
    >>> aa.convolutional_attention(x, wq, wk, is_causal=True, padding="causal").shape
    (2, 7, 3)
    """
    return writable(convolutional_attention_fwd(
        x, query_weight, key_weight, value, score_vector, query_bias, attn_mask, dropout_p, is_causal, padding=padding,
        **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def convolutional_attention_fwd(
    x: ArrayT,
    query_weight: ArrayT,
    key_weight: ArrayT,
    value: ArrayT | None = None,
    score_vector: ArrayT | None = None,
    query_bias: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    padding: PairPadding = "same",
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, ConvolutionalContext[ArrayT]]:
    """`convolutional_attention`, with the same options, and the context for its backward."""
    layout = _checked(
        attn_mask, options, padding, x=x, query_weight=query_weight, key_weight=key_weight, value=value,
        score_vector=score_vector, query_bias=query_bias,
    )  # fmt: skip
    sequence = wide(layout.canonical(x))  # (B, 1, T, D)
    T, A = x.shape[-2], query_weight.shape[0]
    scale = 1.0 / math.sqrt(A or 1) if score_vector is None else 1.0
    modifiers, bias_shape = score_modifiers(
        sequence, T, layout, attn_mask, dropout_p, is_causal, options, default_scale=scale
    )
    sequence = without_padding(sequence, modifiers.kv_lengths)
    q_bias = None if query_bias is None else wide(query_bias)
    q, query = conv1d_fwd(sequence, wide(query_weight), q_bias, padding=padding)  # (B, 1, T, A)
    k, key = conv1d_fwd(sequence, wide(key_weight), padding=padding)
    v = sequence if value is None else wide(layout.canonical(value))
    scorer = DOT_PRODUCT if score_vector is None else Additive(wide(score_vector))
    out, attention = run_canonical(AttentionContext, scorer, SOFTMAX, q, k, v, modifiers, layout, bias_shape)
    ctx = ConvolutionalContext(x, query, key, attention, value is not None)
    return read_only(narrow(out, x)), ctx


@ignoring_fp_errors
def convolutional_attention_bwd(
    dout: Array, ctx: ConvolutionalContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> ConvolutionalGrads[ArrayT]:
    r"""The gradients of convolutional attention, by those of the attention and of the convolutions.

    With the gradients dq, dk and dv of queries, keys and values:

    .. math::
        dx_s = \sum_n (W^q_n)^T dq_{s + p - n} + \sum_n (W^k_n)^T dk_{s + p - n} + dv_s

    .. math::
        dW^q_n = \sum_t dq_t\, x_{t - p + n}^T, \qquad dW^k_n = \sum_{t'} dk_{t'}\, x_{t' - p + n}^T, \qquad
        db_q = \sum_t dq_t

    With `value` the last term of dx is its gradient instead.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : ConvolutionalContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

    Returns
    -------
    ConvolutionalGrads
        One gradient per array, None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, weight = np.random.default_rng(0).standard_normal((2, 5, 3)), np.ones((4, 3, 3))
    >>> out, ctx = aa.convolutional_attention_fwd(x, weight, weight)
    >>> aa.convolutional_attention_bwd(np.ones_like(out), ctx).key_weight.shape
    (4, 3, 3)
    """
    checks.context("ctx", ctx, ConvolutionalContext)
    attention, layout = ctx.attention, ctx.attention.layout
    checks.cotangent(dout, attention.out_shape, ctx.x)
    dquery, dkey, dvalue, dbias, dscorer, *_ = gradients(wide(dout), attention, dlse, dweights)
    query, key = (conv1d_bwd(layout.canonical(d), c) for d, c in ((dquery, ctx.query), (dkey, ctx.key)))
    dx = query.x + key.x if ctx.has_value else query.x + key.x + layout.canonical(dvalue)
    found = ConvolutionalGrads(
        layout.restore(without_padding(dx, attention.modifiers.kv_lengths)),
        query.weight,
        key.weight,
        dvalue if ctx.has_value else None,
        getattr(dscorer, "score_vector", None),
        query.bias,
        dbias,
    )
    return ConvolutionalGrads(*(narrow(grad, ctx.x) for grad in found))


def _checked(attn_mask: Array | Mask | None, options: Any, padding: PairPadding, **arrays: Any) -> Layout:
    """Check the arguments, and return the layout of x."""
    known_options(options, ScoreOptions)
    weights = {name: arrays[name] for name in ("query_weight", "key_weight")}
    x, value = arrays["x"], arrays["value"]
    checks.required(x=x, **weights)
    check_arrays(attn_mask, options, **arrays)
    checks.choice("padding", padding, PADDINGS)
    layout = one_sequence_layout("x", x)
    T, D = x.shape[-2:]
    named = checks.shapes(x=x, **weights)
    A = (*arrays["query_weight"].shape, 0)[0]
    for name, weight in weights.items():
        if weight.ndim != 3 or tuple(weight.shape[:2]) != (A, D) or weight.shape[2] == 0:
            raise ValueError(
                f"`{name}` has shape {tuple(weight.shape)}, expected (A, D, width) = ({A}, {D}, 1 or more). {named}"
            )
        width = weight.shape[2]
        if padding == "same" and width % 2 == 0:
            raise ValueError(
                f"`{name}` has width {width}, and with padding='same' a window of even width has no center. Use an odd "
                f"width, or padding='causal'. {named}"
            )
    for name in ("score_vector", "query_bias"):
        if arrays[name] is not None:
            checks.shape(name, arrays[name], (A,), f"one number per row of `query_weight`. {named[:-1]}")
    if value is not None:
        check_sequence("value", value, layout, T, None, f"one value per position of `x`. {named[:-1]}")
    return layout

"""Pairwise additive attention of a sequence to itself: one weight matrix reads each pair of positions."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.additive import Additive, AdditiveContext
from attnarray.attention.engine import SOFTMAX, gradients, run_canonical
from attnarray.attention.layout import Layout
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.sequences import (
    check_sequence,
    narrow,
    one_sequence_layout,
    project,
    project_backward,
    wide,
    without_padding,
)
from attnarray.backend import Array, ArrayT
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.linear import LinearContext


class PairwiseContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the contexts of the maps and of the attention; no pair is ever laid out."""

    x: ArrayT
    query: LinearContext
    hidden: LinearContext | None
    key: LinearContext
    attention: AdditiveContext
    has_memory: bool
    has_value: bool


class PairwiseGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    input_weight: ArrayT
    score_vector: ArrayT
    hidden: ArrayT | None
    hidden_weight: ArrayT | None
    input_bias: ArrayT | None
    memory: ArrayT | None
    value: ArrayT | None
    bias: ArrayT | None


def pairwise_attention(
    x: ArrayT,
    input_weight: ArrayT,
    score_vector: ArrayT,
    hidden: ArrayT | None = None,
    hidden_weight: ArrayT | None = None,
    input_bias: ArrayT | None = None,
    memory: ArrayT | None = None,
    value: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Additive self-attention that scores the pairs of positions of a sequence.

    .. math::
        o_t = \sum_{t'} p_{tt'}\, x_{t'}, \qquad p_t = \mathrm{softmax}_{t'}(\mathrm{scale}\; e_{tt'} + b_{tt'}), \qquad
        e_{tt'} = v^T \tanh(W_x [x_t; x_{t'}] + W_h h_{t-1} + b_x)

    Since W_x [x_t; x_t'] = W_1 x_t + W_2 x_t', where W_1 and W_2 are the halves of W_x, no pair is ever laid out: this
    is `additive_attention` with queries W_1 x_t + W_h h_(t-1) + b_x and keys W_2 x_t'.

    Parameters
    ----------
    x : (*batch, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    input_weight : (A, 2 D)
        W_x: columns 0 to D act on x_t, the query, columns D to 2 D on x_t', the key.
    score_vector : (A,)
        v.
    hidden : (*batch, T, Dh), optional
        Row t is h_(t-1), the state of a recurrence *before* step t, so row 0 is the initial state.
    hidden_weight : (A, Dh)
        W_h; given with `hidden`, not without.
    input_bias : (A,), optional
        b_x. A bias after v would have no effect.
    memory : (*batch, S, D), optional
        The keys x_t', where they are not the positions of x. A recurrence that makes h goes step by
        step: x[t:t+1], hidden (*batch, 1, Dh), memory=x and, for causal masks, q_offset=t.
    value : (*batch, S, Dv), optional
        What is summed instead of x_t'.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `additive_attention`. Positions of x (with `memory`, of the memory) past their length do not exist: they
        are read as 0, even when they hold NaN, and so are the rows of `hidden` there, unless there is a memory.

    Returns
    -------
    (*batch, T, D or Dv) of the dtype of x
        A position for which nothing is allowed gives 0.

    Raises
    ------
    ValueError
        If shapes do not fit, one of `hidden` and `hidden_weight` is missing, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Easily confused: h_(t-1) belongs to the query, not to the key. Cheng et al. attend to the earlier states h_i of
    their recurrence, v^T tanh(W_h h_i + W_x x_t + W_h~ h~_(t-1)), where this attends to the sequence itself; theirs is
    `additive_attention` with queries W_x x_t + W_h~ h~_(t-1) and keys W_h h_i.

    References
    ----------
    Near Cheng, Dong and Lapata, "Long short-term memory-networks for machine reading", 2016, arXiv:1601.06733.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> x, weight, v = rng.standard_normal((2, 5, 3)), rng.standard_normal((8, 6)), rng.standard_normal(8)
    >>> aa.pairwise_attention(x, weight, v, is_causal=True, kv_lengths=[5, 2]).shape
    (2, 5, 3)
    """
    return writable(pairwise_attention_fwd(
        x, input_weight, score_vector, hidden, hidden_weight, input_bias, memory, value, attn_mask, dropout_p,
        is_causal, **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def pairwise_attention_fwd(
    x: ArrayT,
    input_weight: ArrayT,
    score_vector: ArrayT,
    hidden: ArrayT | None = None,
    hidden_weight: ArrayT | None = None,
    input_bias: ArrayT | None = None,
    memory: ArrayT | None = None,
    value: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, PairwiseContext[ArrayT]]:
    """`pairwise_attention`, with the same options, and the context for its backward."""
    layout = _checked(
        attn_mask, options, x=x, input_weight=input_weight, score_vector=score_vector, hidden=hidden,
        hidden_weight=hidden_weight, input_bias=input_bias, memory=memory, value=value,
    )  # fmt: skip
    queries = wide(layout.canonical(x))  # (B, 1, T, D)
    keys = queries if memory is None else wide(layout.canonical(memory))  # (B, 1, S, D)
    S, D = keys.shape[2:]
    modifiers, bias_shape = score_modifiers(queries, S, layout, attn_mask, dropout_p, is_causal, options)
    keys = without_padding(keys, modifiers.kv_lengths)
    own_lengths = modifiers.kv_lengths if memory is None else None
    queries = keys if memory is None else queries
    q, query = project(queries, input_weight[:, :D], input_bias)  # (B, 1, T, A)
    state = None
    if hidden is not None and hidden_weight is not None:
        h, state = project(without_padding(wide(layout.canonical(hidden)), own_lengths), hidden_weight)
        q = q + h
    k, key = project(keys, input_weight[:, D:])  # (B, 1, S, A)
    v, scorer = keys if value is None else wide(layout.canonical(value)), Additive(wide(score_vector))
    out, attention = run_canonical(AdditiveContext, scorer, SOFTMAX, q, k, v, modifiers, layout, bias_shape)
    ctx = PairwiseContext(x, query, state, key, attention, memory is not None, value is not None)
    return read_only(narrow(out, x)), ctx


@ignoring_fp_errors
def pairwise_attention_bwd(
    dout: Array, ctx: PairwiseContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> PairwiseGrads[ArrayT]:
    r"""The gradients of pairwise attention, by those of additive attention and of the maps.

    With dq and dk of the queries q_t = W_1 x_t + W_h h_(t-1) + b_x and of the keys k_t' = W_2 x_t', and dv of the
    values:

    .. math::
        dx_t = W_1^T dq_t + W_2^T dk_t + dv_t, \qquad
        dW_x = \Bigl[\sum_t dq_t x_t^T,\; \sum_{t'} dk_{t'} x_{t'}^T\Bigr]

    .. math::
        dh_{t-1} = W_h^T dq_t, \qquad dW_h = \sum_t dq_t h_{t-1}^T, \qquad db_x = \sum_t dq_t

    With `memory` the second and third term of dx are the gradient of the memory; with `value` the third is that of the
    value. The gradient of `hidden` is what a recurrence takes back to the step before.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : PairwiseContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

    Returns
    -------
    PairwiseGrads
        One gradient per array, None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, weight = np.random.default_rng(0).standard_normal((2, 5, 3)), np.ones((4, 6))
    >>> out, ctx = aa.pairwise_attention_fwd(x, weight, np.ones(4))
    >>> aa.pairwise_attention_bwd(np.ones_like(out), ctx).input_weight.shape
    (4, 6)
    """
    checks.context("ctx", ctx, PairwiseContext)
    attention, layout = ctx.attention, ctx.attention.layout
    lengths = attention.modifiers.kv_lengths
    own_lengths = None if ctx.has_memory else lengths
    xp = checks.cotangent(dout, attention.out_shape, ctx.x)
    grads = gradients(wide(dout), attention, dlse, dweights)
    dq, dk, dv = (layout.canonical(grad) for grad in (grads.query, grads.key, grads.value))
    query = project_backward(dq, ctx.query)
    key = project_backward(dk, ctx.key)
    dmemory = key.x if ctx.has_value else key.x + dv
    dx = query.x if ctx.has_memory else query.x + dmemory
    state = None if ctx.hidden is None else project_backward(dq, ctx.hidden)
    found = PairwiseGrads(
        layout.restore(without_padding(dx, own_lengths)),
        xp.concat([query.weight, key.weight], axis=1),
        grads.scorer.score_vector,
        None if state is None else layout.restore(without_padding(state.x, own_lengths)),
        None if state is None else state.weight,
        query.bias,
        layout.restore(without_padding(dmemory, lengths)) if ctx.has_memory else None,
        grads.value if ctx.has_value else None,
        grads.bias,
    )
    return PairwiseGrads(*(narrow(grad, ctx.x) for grad in found))


def _checked(attn_mask: Array | Mask | None, options: Any, **arrays: Any) -> Layout:
    """Check the arguments, and return the layout of x."""
    known_options(options, ScoreOptions)
    x, weight, memory, value = (arrays[name] for name in ("x", "input_weight", "memory", "value"))
    hidden, hidden_weight = arrays["hidden"], arrays["hidden_weight"]
    checks.required(x=x, input_weight=weight, score_vector=arrays["score_vector"])
    check_arrays(attn_mask, options, **arrays)
    layout = one_sequence_layout("x", x)
    T, D = x.shape[-2:]
    named = checks.shapes(x=x, input_weight=weight)
    if weight.ndim != 2 or weight.shape[1] != 2 * D:
        raise ValueError(
            f"`input_weight` has shape {tuple(weight.shape)}, expected (A, {2 * D}): D = {D} columns for x_t and "
            f"as many for x_t'. {named}"
        )
    A = weight.shape[0]
    for name in ("score_vector", "input_bias"):
        if arrays[name] is not None:
            checks.shape(name, arrays[name], (A,), f"one number per row of `input_weight`. {named[:-1]}")
    if (hidden is None) != (hidden_weight is None):
        given, missing = ("hidden_weight", "hidden") if hidden is None else ("hidden", "hidden_weight")
        raise ValueError(f"`{given}` is given without `{missing}`. Give both, or neither where there are no states.")
    if hidden is not None:
        check_sequence("hidden", hidden, layout, T, None, f"one state per position of `x`. {named[:-1]}")
        Dh = hidden.shape[-1]
        checks.shape("hidden_weight", hidden_weight, (A, Dh), f"`input_weight` has {A} rows, `hidden` {Dh} features")
    if memory is not None:
        check_sequence("memory", memory, layout, None, D, f"the batch and the features of `x`. {named[:-1]}")
    if value is not None:
        source, positions = ("x", T) if memory is None else ("memory", memory.shape[-2])
        check_sequence("value", value, layout, positions, None, f"one value per position of `{source}`. {named[:-1]}")
    return layout

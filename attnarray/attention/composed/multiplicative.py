"""Multiplicative attention (Luong): scores by a dot product, by a matrix between the two, or by a small network."""

from __future__ import annotations

from typing import Any, Generic, Literal, NamedTuple, Unpack, get_args

from attnarray import checks
from attnarray.attention.alignment.additive import Additive
from attnarray.attention.engine import DOT_PRODUCT, SOFTMAX, AttentionContext, gradients, run
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.options import ScoreOptions, check_arrays, known_options
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.linear import LinearContext

LuongScore = Literal["dot", "general", "concat"]
SCORES: tuple[LuongScore, ...] = get_args(LuongScore)


class MultiplicativeContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the queries, the maps that the score has, and the context of the attention."""

    query: ArrayT
    query_map: LinearContext | None
    key_map: LinearContext | None
    attention: AttentionContext


class MultiplicativeGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    weight: ArrayT | None
    score_vector: ArrayT | None
    bias: ArrayT | None


def multiplicative_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    weight: ArrayT | None = None,
    score_vector: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    score: LuongScore = "dot",
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Luong's attention, with each of its three scores.

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{softmax}_j(\mathrm{scale}\; e_{ij} + b_{ij}), \qquad
        e_{ij} = \begin{cases}
            q_i \cdot k_j & \text{dot} \\
            q_i^T W k_j & \text{general} \\
            w^T \tanh(W [q_i; k_j]) & \text{concat}
        \end{cases}

    The paper's target state h_t is the query, its source state h_s the key and the value.

    Parameters
    ----------
    query : (*batch, T, Dq) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, Dk)
        For "dot", Dk = Dq.
    value : (*batch, S, Dv)
    weight : (Dq, Dk) for "general", (A, Dq + Dk) for "concat"
        W. The first Dq columns of that for "concat" act on the query: no pair of query and key is ever laid out.
    score_vector : (A,), for "concat" alone
        w, the paper's v_a.
    attn_mask, dropout_p, is_causal, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `scaled_dot_product_attention`; there are no heads, so masks and biases broadcast to (*batch, T, S).
    score : {"dot", "general", "concat"}
    scale : float
        1 by default, as in the paper, for "dot" too: 1 / sqrt(D) came with the Transformer.

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, a weight is missing or not taken by that score, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Easily confused: "concat" has no bias within its tanh, and is additive attention with one matrix where Bahdanau's
    has two. The query here is the state *after* the decoder's step, Bahdanau's is that before it. What is often called
    Luong attention is more than this: :math:`\tanh(W_c [c; h])` of the context and the state; see
    `attentional_hidden_state` and `layers.LuongAttention`.

    References
    ----------
    Luong, Pham and Manning, "Effective approaches to attention-based neural machine translation", 2015,
    arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> target, source, weight = (rng.standard_normal(shape) for shape in ((2, 5, 6), (2, 7, 8), (6, 8)))
    >>> aa.multiplicative_attention(target, source, source, weight, score="general", kv_lengths=[7, 4]).shape
    (2, 5, 8)
    """
    return writable(
        multiplicative_attention_fwd(
            query, key, value, weight, score_vector, attn_mask, dropout_p, is_causal, score=score, **options
        )[0]
    )


@ignoring_fp_errors
def multiplicative_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    weight: ArrayT | None = None,
    score_vector: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    score: LuongScore = "dot",
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, MultiplicativeContext[ArrayT]]:
    """`multiplicative_attention`, with the same options, and the context for its backward."""
    known_options(options, ScoreOptions)
    layout = _checked(score, attn_mask, options, query, key, value, weight, score_vector)
    q, k, v = wide(query), wide(key), wide(value)
    query_map = key_map = None
    scorer: Any = DOT_PRODUCT
    if score_vector is not None and weight is not None:
        Dq, scorer = query.shape[-1], Additive(wide(score_vector))
        q, query_map = project(query, weight[:, :Dq])  # (*batch, T, A)
        k, key_map = project(key, weight[:, Dq:])  # (*batch, S, A)
    elif weight is not None:
        q, query_map = project(query, weight.mT)  # (*batch, T, Dk)
    out, attention = run(AttentionContext, scorer, SOFTMAX, layout, (q, k, v), attn_mask, dropout_p, is_causal, options)
    return read_only(narrow(out, query)), MultiplicativeContext(query, query_map, key_map, attention)


@ignoring_fp_errors
def multiplicative_attention_bwd(
    dout: Array, ctx: MultiplicativeContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> MultiplicativeGrads[ArrayT]:
    r"""The gradients of multiplicative attention; weights p are recomputed from the lse.

    With :math:`de_{ij} = \mathrm{scale}\; p_{ij} (do_i \cdot v_j - do_i \cdot o_i)` and
    :math:`dv_j = \sum_i p_{ij}\, do_i` in all three:

    .. math::
        \text{dot:} \quad & dq_i = \sum_j de_{ij} k_j, \quad dk_j = \sum_i de_{ij} q_i \\
        \text{general:} \quad & dq_i = W \sum_j de_{ij} k_j, \quad dk_j = W^T \sum_i de_{ij} q_i, \quad
        dW = \sum_{ij} de_{ij}\, q_i k_j^T \\
        \text{concat:} \quad & dz_{ij} = de_{ij}\, w \odot (1 - h_{ij}^2), \quad dw = \sum_{ij} de_{ij} h_{ij}, \quad
        dW = \sum_{ij} dz_{ij} [q_i; k_j]^T, \quad [dq_i; dk_j] = W^T \Bigl[\sum_j dz_{ij}; \sum_i dz_{ij}\Bigr]

    where h = tanh(W [q; k]), and dq takes the columns of W for the query, dk those for the key.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : MultiplicativeContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

    Returns
    -------
    MultiplicativeGrads
        query, key, value, weight, score_vector, bias; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
    >>> out, ctx = aa.multiplicative_attention_fwd(x, x, x, np.eye(4), score="general")
    >>> aa.multiplicative_attention_bwd(np.ones_like(out), ctx).weight.shape
    (4, 4)
    """
    checks.context("ctx", ctx, MultiplicativeContext)
    checks.cotangent(dout, ctx.attention.out_shape, ctx.query)
    xp = namespace_of(dout)
    grads = gradients(wide(dout), ctx.attention, dlse, dweights)
    dweight, dvector = None, getattr(grads.scorer, "score_vector", None)
    dquery, dkey = grads.query, grads.key
    if ctx.query_map is not None:
        query_grads = project_backward(dquery, ctx.query_map)
        dquery, dweight = query_grads.x, query_grads.weight.mT
    if ctx.query_map is not None and ctx.key_map is not None:
        key_grads = project_backward(dkey, ctx.key_map)
        dkey, dweight = key_grads.x, xp.concat([query_grads.weight, key_grads.weight], axis=1)  # (A, Dq + Dk)
    found = dquery, dkey, grads.value, dweight, dvector, grads.bias
    return MultiplicativeGrads(*(narrow(grad, ctx.query) for grad in found))


def _checked(
    score: LuongScore,
    attn_mask: Any,
    options: Any,
    query: Array,
    key: Array,
    value: Array,
    weight: Any,
    score_vector: Any,
) -> Layout:
    """Check the arguments, and return the layout of query, key and value."""
    checks.choice("score", score, SCORES)
    checks.required(query=query, key=key, value=value)
    given = {"weight": weight, "score_vector": score_vector}
    needed = {"dot": (), "general": ("weight",), "concat": ("weight", "score_vector")}[score]
    for name, array in given.items():
        if array is None and name in needed:
            raise ValueError(f"`{name}` is None, but the score '{score}' needs it. Give it, or choose another `score`.")
        if array is not None and name not in needed:
            raise ValueError(f"`{name}` is given, but the score '{score}' has none. Leave it out, or change `score`.")
    check_arrays(attn_mask, options, query=query, key=key, value=value, **given)
    layout = sequence_layout(query, key, value)
    Dq, Dk = query.shape[-1], key.shape[-1]
    named = checks.shapes(query=query, key=key, **given)[:-1]
    if score == "dot" and Dq != Dk:
        raise ValueError(
            f"`key` has {Dk} features but `query` has {Dq}; for the score 'dot' they must match. Use score='general' "
            f"with a weight (Dq, Dk). {named}."
        )
    if score == "general":
        checks.shape("weight", weight, (Dq, Dk), f"(Dq, Dk) for the score 'general'. {named}")
    if score == "concat":
        A = (*weight.shape, 1)[0]
        checks.shape("weight", weight, (A, Dq + Dk), f"(A, Dq + Dk) for the score 'concat'. {named}")
        checks.shape("score_vector", score_vector, (A,), f"one number per row of `weight`. {named}")
    return layout

"""Multi-head attention: every head attends by dot products of its own projections of the inputs."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.dot_product.heads import (
    OPTIONAL_PARTS,
    GateContext,
    HeadContext,
    check_optional_parts,
    gated,
    gated_backward,
    heads,
    heads_backward,
    join_heads,
    rotated,
    split_heads,
)
from attnarray.attention.dot_product.scaled_dot_product import SDPAContext, scaled_dot_product_attention_bwd
from attnarray.attention.engine import DOT_PRODUCT, run
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import ScoreOptions, check_arrays, known_options
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.ops.linear import LinearContext, LinearGrads
from attnarray.ops.rotary import Rotary, RotaryContext, rotary_bwd

Params = dict[str, Any]

PARTS = ("query", "key", "value", "out")


class HeadOptions(ScoreOptions, total=False):
    """The keyword-only options of attention with heads of its own."""

    sinks: Array | None


class MultiHeadOptions(HeadOptions, total=False):
    """Also the positions that rotate queries and keys, and how the sequence is divided among processes."""

    positions: Array | None
    context_parallel: Any


class MultiHeadContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs, the weights, and the context of the attention of all heads; no weights p."""

    query: LinearContext
    key: LinearContext
    value: LinearContext
    attention: SDPAContext
    out_weight: ArrayT
    out_has_bias: bool
    rotary: tuple[RotaryContext, RotaryContext] | None  # of queries and of keys
    has_key: bool
    has_value: bool
    heads: tuple[HeadContext, HeadContext]  # of queries and of keys
    gate: GateContext | None
    context_parallel: Any = None


class MultiHeadGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT | None
    value: ArrayT | None
    params: Params
    bias: ArrayT | None
    sinks: ArrayT | None


def multi_head_attention(
    query: ArrayT,
    key: ArrayT | None = None,
    value: ArrayT | None = None,
    params: Params | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary: Rotary | None = None,
    norm_eps: float = 1e-6,
    **options: Unpack[MultiHeadOptions],
) -> ArrayT:
    r"""Multi-head attention: self-attention of `query`, or attention to another sequence or two.

    .. math::
        y_i = W_O\, [o^1_i; \dots; o^H_i] + b_O, \qquad
        o^h_i = \sum_j \mathrm{softmax}_j\Bigl(\frac{q^h_i \cdot k^h_j}{\sqrt{D_k}}\Bigr)\, v^h_j, \qquad
        q^h_i = W^h_Q x_i + b^h_Q, \quad k^h_j = W^h_K z_j + b^h_K, \quad v^h_j = W^h_V u_j + b^h_V

    Parameters
    ----------
    query : (*batch, T, Eq) floating
        x: the sequence of the queries. float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, Ek), optional
        z: that of the keys. That of the queries, unless given: self-attention.
    value : (*batch, S, Ev), optional
        u: that of the values. That of the keys, unless given.
    params : dict
        "query", "key", "value" and "out", each a dict of "weight" and, unless there is none, "bias". The weights are
        (H Dk, Eq), (Hkv Dk, Ek), (Hkv Dv, Ev) and (E, H Dv), each bias has as many numbers as its weight rows. Any Dk,
        any Dv; head h has the rows h Dk to (h + 1) Dk. Optional parts, each with a "weight" too: "query_norm" and
        "key_norm", an RMS norm before the rotation, of each head (Dk,) or of all heads at once (H Dk,), (Hkv Dk,);
        "logit_scale" (H,), which makes it cosine attention with the scores
        :math:`e^{\min(l_h, \log 100)} \cos(q_i, k_j)`, whose `scale` is 1 by default; "gate" (H, Eq) or (H Dv, Eq),
        also with a "bias": the output of each head, or each number of it, is multiplied by
        :math:`\sigma(W_G x_i + b_G)` before W_O.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, sinks, rng, dropout_mask
        As in `scaled_dot_product_attention`: masks and biases broadcast to (*batch, H, T, S), True = attend.
    num_heads : int
        H.
    num_kv_heads : int, optional
        Hkv: H by default, fewer for grouped heads, 1 for multi-query attention. Query head h uses key head
        h // (H / Hkv).
    rotary : Rotary, optional
        Rotates the queries and keys of each head by their positions, i + q_offset and j: see `rotary`.
    positions : (*batch, T) integer, optional
        Those that rotate queries and keys of self-attention, in place of the above; (*batch, T, A) with
        `rotary.sections`. They do not change masks.
    norm_eps : float
        Epsilon of "query_norm" and "key_norm".
    context_parallel : distributed.ContextParallel, optional
        The sequence is divided among processes, and the arrays are those of this one's positions.

    Returns
    -------
    (*batch, T, E) of the dtype of query
        b_O for a query for which nothing is allowed. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range; the message names the entry of `params`.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    `torch.nn.MultiheadAttention` in these terms: its `in_proj_weight` is the weights of query, key and value, one above
    the other; its boolean masks are True where a key is *hidden*, so `attn_mask=~attn_mask`, for each batch and head
    reshaped to (*batch, H, T, S), and `~key_padding_mask[:, None, None, :]`; its averaged weights are
    `attention_weights(ctx).mean(-3)`; its `add_zero_attn` is `sinks=zeros(H)`. Its `add_bias_kv`, a key and a value of
    their own for each head, has no option here: `merge_partials` joins the attention to them with that to the rest.

    Often confused: D_k in the scale is the width of one head, not that of the model. The bias of the keys moves all
    scores of a query alike, so without sinks and softcap it changes nothing. Queries past the length of a padded
    sequence are queries like others; leave what they give out of the loss.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762. Multi-query: arXiv:1911.02150. Grouped heads:
    arXiv:2305.13245. Normalized queries and keys: arXiv:2010.04245, 2302.05442. Cosine attention: Liu et al., "Swin
    Transformer V2", 2021, arXiv:2111.09883, section 3.2. Gates: Qiu et al., 2025, arXiv:2505.06708.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> params = aa.layers.MultiHeadAttention(dim=16, num_heads=4).init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> aa.multi_head_attention(x, params=params, num_heads=4, is_causal=True).shape
    (2, 5, 16)
    """
    return multi_head_attention_fwd(
        query, key, value, params, attn_mask, dropout_p, is_causal, num_heads=num_heads, num_kv_heads=num_kv_heads,
        rotary=rotary, norm_eps=norm_eps, **options,
    )[0]  # fmt: skip


@ignoring_fp_errors
def multi_head_attention_fwd(
    query: ArrayT,
    key: ArrayT | None = None,
    value: ArrayT | None = None,
    params: Params | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary: Rotary | None = None,
    norm_eps: float = 1e-6,
    **options: Unpack[MultiHeadOptions],
) -> tuple[ArrayT, MultiHeadContext[ArrayT]]:
    """`multi_head_attention`, with the same options, and the context for its backward."""
    known_options(options, MultiHeadOptions)
    checks.context_parallel(options.get("context_parallel"))
    has_key, has_value = key is not None, value is not None
    key = query if key is None else key
    value = key if value is None else value
    batch, num_kv_heads, params = checked_heads(query, key, value, params, num_heads, num_kv_heads, attn_mask, options)
    q, query_ctx = project(query, **params["query"])
    k, key_ctx = project(key, **params["key"])
    v, value_ctx = project(value, **params["value"])
    norm_eps = checks.positive("norm_eps", norm_eps)
    q, query_heads = heads(q, num_heads, params, "query", norm_eps)  # (*batch, T, H, D)
    k, key_heads = heads(k, num_kv_heads, params, "key", norm_eps)
    v = split_heads(v, num_kv_heads)
    q, k, rotations = rotated(q, k, rotary, options, has_key, len(batch))
    scale = 1.0 if "logit_scale" in params else 1.0 / math.sqrt(q.shape[-1] or 1)
    out, attention = _attend((q, k, v), batch, attn_mask, dropout_p, is_causal, options, scale)
    out, gate = gated(out, query, params["gate"]) if "gate" in params else (out, None)
    out, out_ctx = project(join_heads(out), **params["out"])
    ctx = MultiHeadContext(
        query_ctx, key_ctx, value_ctx, attention, out_ctx.weight, out_ctx.has_bias, rotations, has_key, has_value,
        (query_heads, key_heads), gate, options.get("context_parallel"),
    )  # fmt: skip
    return narrow(out, query), ctx


@ignoring_fp_errors
def multi_head_attention_bwd(
    dout: Array, ctx: MultiHeadContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> MultiHeadGrads[ArrayT]:
    r"""The gradients of multi-head attention, by those of the projections and of dot-product attention.

    .. math::
        dW_O = \sum_i dy_i\, [o^1_i; \dots; o^H_i]^T, \qquad [do^1_i; \dots; do^H_i] = W_O^T dy_i

    and from do by `scaled_dot_product_attention_bwd` dq, dk and dv, of which

    .. math::
        dx_i = W_Q^T dq_i, \quad dz_j = W_K^T dk_j, \quad du_j = W_V^T dv_j, \qquad
        dW_Q = \sum_i dq_i x_i^T, \quad dW_K = \sum_j dk_j z_j^T, \quad dW_V = \sum_j dv_j u_j^T

    with dq and dk rotated back first if there is a rotation, and carried through the norms if there are. With a gate g
    of o, :math:`do = \sigma(g) \odot dy` and :math:`dg = \sigma(g) (1 - \sigma(g))\, o \odot dy`. The gradient of a
    bias b is the sum without x, z or u. What was left out adds its gradient to what stood in for it: without `key`,
    dx + dz + du is the gradient of `query`.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : MultiHeadContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, H, T) and of the weights (*batch, H, T, S), which `attention_weights` returns.

    Returns
    -------
    MultiHeadGrads
        query, key, value, params (a tree like `params`), bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> params = aa.layers.MultiHeadAttention(dim=16, num_heads=4, num_kv_heads=2).init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = aa.multi_head_attention_fwd(x, params=params, num_heads=4, num_kv_heads=2)
    >>> aa.multi_head_attention_bwd(np.ones_like(out), ctx).params["key"]["weight"].shape
    (8, 16)
    """
    checks.context("ctx", ctx, MultiHeadContext)
    attention = ctx.attention
    checks.cotangent(dout, (*ctx.query.x.shape[:-1], ctx.out_weight.shape[0]), ctx.query.x)
    o = attention.layout.restore(attention.out)  # (*batch, T, H, Dv)
    o = o if ctx.gate is None else o * ctx.gate.gate.out
    out = project_backward(wide(dout), LinearContext(join_heads(o), ctx.out_weight, ctx.out_has_bias))
    do, gate = split_heads(out.x, attention.q.shape[1]), None
    if ctx.gate is not None:
        do, gate = gated_backward(do, ctx.gate)
    if ctx.context_parallel is None:
        grads = scaled_dot_product_attention_bwd(do, attention, dlse, dweights)
    elif dweights is None:
        grads = ctx.context_parallel.bwd(do, attention, dlse)
    else:
        raise ValueError("`dweights` is given, but no process has all weights with `context_parallel`. Leave it out.")
    dq, dk = grads.query, grads.key
    if ctx.rotary is not None:
        dq, dk = (rotary_bwd(grad, of).x for grad, of in zip((dq, dk), ctx.rotary, strict=True))
    q_heads, k_heads = (heads_backward(grad, of) for grad, of in zip((dq, dk), ctx.heads, strict=True))
    query, key = project_backward(q_heads.x, ctx.query), project_backward(k_heads.x, ctx.key)
    value = project_backward(join_heads(grads.value), ctx.value)
    dquery, dkey, dvalue = query.x, key.x, value.x
    dkey = dkey if ctx.has_value else dkey + dvalue
    dquery = dquery if ctx.has_key else dquery + dkey
    params = {name: _entries(part) for name, part in (("query", query), ("key", key), ("value", value), ("out", out))}
    if ctx.heads[0].has_weight:
        params |= {"query_norm": {"weight": q_heads.norm}, "key_norm": {"weight": k_heads.norm}}
    if q_heads.logit_scale is not None:
        params["logit_scale"] = {"weight": q_heads.logit_scale}
    if gate is not None:
        params["gate"] = _entries(gate)
        dquery = dquery + gate.x
    dkey, dvalue = dkey if ctx.has_key else None, dvalue if ctx.has_value else None
    found = MultiHeadGrads(dquery, dkey, dvalue, params, grads.bias, grads.sinks)
    narrowed: MultiHeadGrads = tree.map(lambda grad: narrow(grad, ctx.query.x), found)
    return narrowed


def _attend(
    arrays: tuple[Array, Array, Array], batch: tuple[int, ...], attn_mask: Any, dropout_p: float, is_causal: bool,
    options: Any, scale: float,
) -> tuple[Any, Any]:  # fmt: skip
    """The output (*batch, T, H, Dv) of projected queries, keys and values, and the context of their attention."""
    parallel = options.get("context_parallel")
    if parallel is None:
        layout, normalizer = Layout(arrays[0].ndim, "BTHD", batch, True), Softmax(options.get("sinks"))
        return run(
            SDPAContext, DOT_PRODUCT, normalizer, layout, arrays, attn_mask, dropout_p, is_causal, options, scale
        )
    given = {name: value for name, value in options.items() if name in HeadOptions.__annotations__}
    attended: tuple[Any, Any] = parallel.fwd(
        arrays, attn_mask, dropout_p, is_causal, {"scale": scale, **given, "layout": "BTHD"}
    )
    return attended


def _entries(grads: LinearGrads) -> dict[str, Any]:
    return {"weight": grads.weight} if grads.bias is None else {"weight": grads.weight, "bias": grads.bias}


def checked_heads(
    query: Array,
    key: Array,
    value: Array,
    params: Params | None,
    num_heads: int,
    num_kv_heads: int | None,
    attn_mask: Array | Mask | None,
    options: Any,
) -> tuple[tuple[int, ...], int, Params]:
    """Check the arguments, and return the batch, Hkv and the parameters."""
    checks.required(query=query)
    checked = _tree(params)
    arrays = {f"params.{part}.{name}": array for part in checked for name, array in checked[part].items()}
    check_arrays(attn_mask, options, query=query, key=key, value=value, **arrays)
    layout = sequence_layout(query, key, value)
    num_heads = checks.whole("num_heads", num_heads, 1, 2**31, "the number of heads of the queries")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    num_kv_heads = checks.whole("num_kv_heads", num_kv_heads, 1, num_heads, "at most one per query head")
    if num_heads % num_kv_heads:
        raise ValueError(
            f"`num_kv_heads` ({num_kv_heads}) must divide `num_heads` ({num_heads}): query heads are split evenly."
        )
    _check_shapes(checked, query, key, value, num_heads, num_kv_heads)
    return layout.batch, num_kv_heads, checked


def _tree(params: Params | None) -> Params:
    """`params`, if it is a tree of the right layout."""
    if not isinstance(params, dict) or not set(PARTS) <= set(params) <= {*PARTS, *OPTIONAL_PARTS}:
        given = f"a dict with {', '.join(map(repr, params)) or 'nothing'}" if isinstance(params, dict) else None
        raise TypeError(
            f"`params` is {given or checks.shown(params)}, expected a dict with 'query', 'key', 'value' and 'out', "
            f"and at most {', '.join(map(repr, OPTIONAL_PARTS))} besides, such as "
            "layers.MultiHeadAttention(...).init(...) makes."
        )
    for part, entries in params.items():
        if not isinstance(entries, dict) or not {"weight"} <= set(entries) <= {"weight", "bias"}:
            given = f"has {', '.join(map(repr, entries)) or 'nothing'}" if isinstance(entries, dict) else None
            raise TypeError(
                f"`params.{part}` {given or f'is {checks.shown(entries)}'}, expected a dict with 'weight' and, unless "
                "there is none, 'bias'."
            )
        for name, array in entries.items():
            checks.required(**{f"params.{part}.{name}": array})
    return params


def _check_shapes(params: Params, query: Array, key: Array, value: Array, num_heads: int, num_kv_heads: int) -> None:
    weights = {part: params[part]["weight"] for part in PARTS}
    for part, weight in weights.items():
        if weight.ndim != 2:
            raise ValueError(f"`params.{part}.weight` has shape {tuple(weight.shape)}, expected (outputs, inputs).")
    for part, count, name in (("query", num_heads, "num_heads"), ("value", num_kv_heads, "num_kv_heads")):
        if weights[part].shape[0] % count:
            raise ValueError(
                f"`params.{part}.weight` has {weights[part].shape[0]} rows, which `{name}`, {count}, does not divide; "
                "each head has equally many."
            )
    Dk, Dv = weights["query"].shape[0] // num_heads, weights["value"].shape[0] // num_kv_heads
    sizes = f"H = {num_heads}, Hkv = {num_kv_heads}, Dk = {Dk} from the query weight, Dv = {Dv} from the value weight"
    expected = {
        "query": ("(H Dk, Eq)", num_heads * Dk, query.shape[-1]),
        "key": ("(Hkv Dk, Ek)", num_kv_heads * Dk, key.shape[-1]),
        "value": ("(Hkv Dv, Ev)", num_kv_heads * Dv, value.shape[-1]),
        "out": ("(E, H Dv)", weights["out"].shape[0], num_heads * Dv),
    }
    for part, (axes, *shape) in expected.items():
        inputs = "" if part == "out" else f", and `{part}` has {shape[1]} features"
        checks.shape(f"params.{part}.weight", weights[part], tuple(shape), f"{axes}, where {sizes}{inputs}")
        if "bias" in params[part]:
            because = f"one number per row of `params.{part}.weight`"
            checks.shape(f"params.{part}.bias", params[part]["bias"], (shape[0],), because)
    check_optional_parts(params, num_heads, num_kv_heads, Dk, Dv, query.shape[-1])

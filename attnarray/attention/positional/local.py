"""Local attention (Luong): a window of keys around one position per query, which moves on or is predicted.

Around predicted positions the keys are gathered, so that every query is a batch row of its own, with the N keys that a
window may have: R = B T rows against N keys. Cost and memory grow with T N, not with T S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Literal, NamedTuple, TypedDict, Unpack, get_args

from attnarray import checks
from attnarray.attention.blocks import join, query_blocks, total_gradient
from attnarray.attention.cotangents import lse_cotangent, weights_cotangent
from attnarray.attention.dot_product.scaled_dot_product import SDPAContext, scaled_dot_product_attention_bwd
from attnarray.attention.engine import DOT_PRODUCT, SOFTMAX, run
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import masked_softmax, masked_softmax_backward, masked_softmax_from_lse
from attnarray.attention.options import check_arrays, known_options, score_modifiers
from attnarray.attention.positional.local_near import Around, by_row, ends, gathered, gaussian, near_keys, sum_in_shape
from attnarray.attention.positional.local_position import PositionContext, predicted, predicted_backward
from attnarray.attention.products import dot_products, hiding_product, weighted_sum, weighted_sum_over_queries
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT, device_of, dtype_name, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.magnitude import check_number
from attnarray.masks import LARGEST_POSITION, Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox

Alignment = Literal["monotonic", "predictive"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)


class LocalOptions(TypedDict, total=False):
    """The keyword-only options: all of `ScoreOptions` but its window, which here is one number."""

    scale: float | None
    bias: Array | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None
    rng: Philox | int | None
    dropout_mask: Array | None


class AroundContext(NamedTuple):
    """What the backward of predictive attention needs: inputs as (B, 1, T, N), positions, output and lse."""

    q: Array
    k: Array
    v: Array
    around: Around
    out: Array
    lse: Array
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None

    def weights_of_rows(self, rows: slice) -> Array:
        """The weights of some queries, the Gaussian among them: (B, 1, rows, S)."""
        products, modifiers = dot_products(self.q[:, :, rows, :], self.k), self.modifiers.rows(rows.start, rows.stop)
        return dense_weights(products, self.lse[:, :, rows], self.around.rows(rows), modifiers)


class LocalContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the queries, the map of the score, the predicted positions, and the attention."""

    query: ArrayT
    query_map: LinearContext | None
    position: PositionContext | None
    attention: SDPAContext | AroundContext


class LocalGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    position_weight: ArrayT | None
    position_vector: ArrayT | None
    weight: ArrayT | None
    bias: ArrayT | None


def local_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    position_weight: ArrayT | None = None,
    position_vector: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    window: int,
    alignment: Alignment = "monotonic",
    sigma: float | None = None,
    weight: ArrayT | None = None,
    **options: Unpack[LocalOptions],
) -> ArrayT:
    r"""Luong's local attention: each query attends to the keys within `window` of one position, and to no others.

    .. math::
        \text{monotonic:} \quad & o_i = \sum_{|j - c_i| \le w} p_{ij} v_j, \qquad c_i = i \\
        \text{predictive:} \quad & o_i = \sum_{|j - c_i| \le w} p_{ij}\, e^{-(j - c_i)^2 / 2 \sigma^2}\, v_j, \qquad
        c_i = L\, \mathrm{sigmoid}\bigl(v_p \cdot \tanh(W_p q_i)\bigr)

    with p the softmax over the keys of the window that every mask allows, of the scores q k or q W k. L is the number
    of keys that exist, not the padded one. The Gaussian is applied after the softmax, and nothing is normalized again:
    the weights of a row sum to less than 1. Time and memory grow with T w, not with T S.

    Parameters
    ----------
    query : (*batch, T, Dq) floating
        The paper's h_t: float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, Dk)
        Dk = Dq without a `weight`.
    value : (*batch, S, Dv)
    position_weight : (A, Dq), for "predictive" alone
        W_p.
    position_vector : (A,), for "predictive" alone
        v_p.
    attn_mask, dropout_p, is_causal, bias, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `scaled_dot_product_attention`; there are no heads, so masks and biases broadcast to (*batch, T, S).
        All of them, and the window, must allow a key. `q_offset` moves the windows of "monotonic".
    window : int
        w, the paper's D: how many keys a query sees on either side of its position.
    alignment : {"monotonic", "predictive"}
        The paper's local-m and local-p.
    sigma : float, for "predictive" alone
        Standard deviation of the Gaussian in keys, w / 2 by default.
    weight : (Dq, Dk), optional
        W of the paper's score "general"; without it the score is "dot".
    scale : float
        1 by default, as in the paper.

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, the window is below 1, sigma not above 0, an array or sigma is missing or not
        taken by that alignment, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Keys have the positions 0 to S - 1, as everywhere in this library, and a predicted position is between 0 and L: the
    paper does not say where it counts from. The position has a gradient through the Gaussian; as it passes an integer,
    a key enters the window at one edge and another leaves at the other, a step whose gradient is taken to be 0. The
    step is small: at an edge the Gaussian is e^-2 with the default sigma.

    References
    ----------
    Luong, Pham and Manning, "Effective approaches to attention-based neural machine translation", 2015,
    arXiv:1508.04025, section 3.2.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> target, source = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 9, 4))
    >>> positions = {"position_weight": rng.standard_normal((3, 4)), "position_vector": rng.standard_normal(3)}
    >>> out, ctx = aa.local_attention_fwd(target, source, source, **positions, alignment="predictive", window=2)
    >>> weights = aa.attention_weights(ctx)
    >>> bool(np.all(weights.sum(-1) < 1)), int(np.max(np.sum(weights > 0, axis=-1)))
    (True, 4)
    """
    return writable(local_attention_fwd(
        query, key, value, position_weight, position_vector, attn_mask, dropout_p, is_causal, window=window,
        alignment=alignment, sigma=sigma, weight=weight, **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def local_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    position_weight: ArrayT | None = None,
    position_vector: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    window: int,
    alignment: Alignment = "monotonic",
    sigma: float | None = None,
    weight: ArrayT | None = None,
    **options: Unpack[LocalOptions],
) -> tuple[ArrayT, LocalContext[ArrayT]]:
    """`local_attention`, with the same options, and the context for its backward."""
    known_options(options, LocalOptions)
    given: dict[str, Any] = {"position_weight": position_weight, "position_vector": position_vector, "weight": weight}
    window = checks.whole("window", window, 1, LARGEST_POSITION, "how many keys on either side are seen")
    layout = _checked(alignment, sigma, attn_mask, options, query, key, value, given)
    q, k, v = wide(query), wide(key), wide(value)
    query_map = position = None
    if weight is not None:
        q, query_map = project(query, weight.mT)  # (*batch, T, Dk)
    attention: SDPAContext | AroundContext
    if position_weight is None or position_vector is None:
        band, arrays = {**options, "window": (window, window)}, (q, k, v)
        out, attention = run(SDPAContext, DOT_PRODUCT, SOFTMAX, layout, arrays, attn_mask, dropout_p, is_causal, band)
    else:
        q, k, v = layout.canonical(q), layout.canonical(k), layout.canonical(v)
        modifiers, bias_shape = score_modifiers(q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options)
        centers, position = predicted(query, position_weight, position_vector, _lengths(modifiers, k))
        deviation = window / 2 if sigma is None else checks.positive("sigma", sigma)
        check_number("sigma", deviation, dtype_name(query.dtype), power=4)  # distances are divided by its square
        around = Around(centers, window, deviation)
        out_and_lse = attend_around(q, k, v, around, modifiers)
        attention = AroundContext(q, k, v, around, *out_and_lse, modifiers, layout, bias_shape)
        out = read_only(layout.restore(attention.out))
    return narrow(out, query), LocalContext(query, query_map, position, attention)


@ignoring_fp_errors
def local_attention_bwd(
    dout: Array, ctx: LocalContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> LocalGrads[ArrayT]:
    r"""The gradients of local attention; weights p are recomputed from the lse.

    With g the Gaussian, which is 1 for "monotonic", u the logits of the positions and h = tanh(W_p q):

    .. math::
        a_{ij} = g_{ij}\, do_i \cdot v_j, \qquad
        de_{ij} = \mathrm{scale}\; p_{ij} (a_{ij} - do_i \cdot o_i), \qquad
        dv_j = \sum_i p_{ij}\, g_{ij}\, do_i, \qquad dk_j = \sum_i de_{ij}\, W^T q_i

    .. math::
        dc_i = \sum_j p_{ij}\, a_{ij} \frac{j - c_i}{\sigma^2}, \quad
        du_i = L\, \sigma'(u_i)\, dc_i, \quad dv_p = \sum_i du_i h_i, \quad
        dz_i = du_i\, v_p \odot (1 - h_i^2), \quad dW_p = \sum_i dz_i q_i^T

    .. math::
        dq_i = W \sum_j de_{ij} k_j + W_p^T dz_i, \qquad dW = \sum_{ij} de_{ij}\, q_i k_j^T

    where W is the identity for the score "dot".

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : LocalContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S), the Gaussian among them.

    Returns
    -------
    LocalGrads
        query, key, value, position_weight, position_vector, weight, bias; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
    >>> out, ctx = aa.local_attention_fwd(x, x, x, window=1, weight=np.eye(4))
    >>> aa.local_attention_bwd(np.ones_like(out), ctx).weight.shape
    (4, 4)
    """
    checks.context("ctx", ctx, LocalContext)
    attention, layout = ctx.attention, ctx.attention.layout
    checks.cotangent(dout, tuple(layout.restore(attention.out).shape), ctx.query)
    dposition_weight = dposition_vector = dweight = None
    if isinstance(attention, SDPAContext):
        dquery, dkey, dvalue, dbias, _ = scaled_dot_product_attention_bwd(wide(dout), attention, dlse, dweights)
    else:
        dquery, dkey, dvalue, dcenters, dbias = _around_gradients(wide(dout), attention, dlse, dweights)
    if ctx.query_map is not None:
        query_grads = project_backward(dquery, ctx.query_map)
        dquery, dweight = query_grads.x, query_grads.weight.mT
    if ctx.position is not None:
        position_grads = predicted_backward(dcenters, ctx.position)
        dquery = dquery + position_grads.query
        dposition_weight, dposition_vector = position_grads.weight, position_grads.vector
    found = dquery, dkey, dvalue, dposition_weight, dposition_vector, dweight, dbias
    return LocalGrads(*(narrow(grad, ctx.query) for grad in found))


@accelerated
def attend_around(q: Array, k: Array, v: Array, around: Around, modifiers: ScoreModifiers) -> tuple[Array, Array]:
    r"""The forward pass: the Gaussian is applied after the softmax.

    .. math::
        o_i = \sum_{|j - c_i| \le w} p_{ij}\, g_{ij}\, v_j, \qquad g_{ij} = e^{-(j - c_i)^2 / 2 \sigma^2}, \qquad
        p_i = \mathrm{softmax}_{|j - c_i| \le w}(s_{ij})

    Parameters
    ----------
    q : (B, 1, T, D) float32 or float64, k : (B, 1, S, D), v : (B, 1, S, Dv)
    around : Around
        c, w and sigma.
    modifiers : ScoreModifiers

    Returns
    -------
    out : (B, 1, T, Dv)
    lse : (B, 1, T)
        Of the scores within the window.
    """
    xp, centers = namespace_of(q, k, v), around.centers
    outs, lses = [], []
    for rows in _blocks(q, v, k.shape[2], around.window):
        near = near_keys(k, around.rows(rows), modifiers.rows(rows.start, rows.stop))
        weights, lse = masked_softmax(dot_products(by_row(q[:, :, rows, :]), near.of(k)), near.modifiers)
        out = weighted_sum(hiding_product(weights, near.factor), near.of(v), True)  # (R, 1, 1, Dv)
        outs.append(xp.reshape(out, (q.shape[0], 1, rows.stop - rows.start, v.shape[3])))
        lses.append(xp.reshape(lse, centers[:, :, rows].shape))
    return join(outs), join(lses)


@accelerated
def attend_around_backward(
    dout: Array, delta: Array, dweights: Array | None, q: Array, k: Array, v: Array, around: Around, lse: Array,
    modifiers: ScoreModifiers,
) -> tuple[Array, Array, Array, Array, Array | None]:  # fmt: skip
    r"""The backward pass. Scores and weights are computed again, for the windows of a block of queries at a time.

    .. math::
        a_{ij} = g_{ij} (do_i \cdot v_j + dw_{ij}), \quad ds_{ij} = p_{ij} (a_{ij} - \delta_i), \quad
        dc_i = \sum_j p_{ij}\, a_{ij}\, (j - c_i) / \sigma^2, \quad dv_j = \sum_i p_{ij}\, g_{ij}\, do_i

    .. math:: dq_i = \sum_j ds_{ij} k_j, \qquad dk_j = \sum_i ds_{ij} q_i

    with ds carried through softcap and scale before the last two. A center moves the Gaussian; that it also moves the
    window makes steps, whose gradient is 0.

    Parameters
    ----------
    dout : (B, 1, T, Dv)
    delta : (B, 1, T)
        delta_i = sum_j p_ij a_ij - dlse_i.
    dweights : (B, 1, T, S), optional
        dw, a cotangent of the weights p g.

    Returns
    -------
    dq, dk, dv, dcenters : the shapes of q, k, v and the centers
    dbias : the shape of modifiers.bias, or None
    """
    xp, (centers, _, sigma) = namespace_of(dout, q, k, v), around
    dqs, dcenters, dbiases = [], [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for rows in _blocks(q, v, k.shape[2], around.window):
        block = modifiers.rows(rows.start, rows.stop)
        near = near_keys(k, around.rows(rows), block)
        q_rows, dout_rows, keys = by_row(q[:, :, rows, :]), by_row(dout[:, :, rows, :]), near.of(k)
        dnear = hiding_product(near.factor, dot_products(dout_rows, near.of(v)))  # (R, 1, 1, N)
        if dweights is not None:
            direct = by_row(gathered(dweights[:, :, rows, :], near.keys)[:, None, :, :])
            dnear = dnear + gaussian(near.distances, sigma) * direct
        through_center = dnear * (near.distances / sigma**2)  # before a kernel overwrites dnear
        lses, deltas = (by_row(x[:, :, rows, None])[..., 0] for x in (lse, delta))
        scores = dot_products(q_rows, keys)
        weights, dscores, dmodified = masked_softmax_backward(scores, dnear, lses, deltas, near.modifiers)
        dqs.append(xp.reshape(weighted_sum(dscores, keys, True), q[:, :, rows, :].shape))
        dk = dk + near.sum(weighted_sum_over_queries(dscores, q_rows, 1, True), k)
        dv = dv + near.sum(weighted_sum_over_queries(hiding_product(weights, near.factor), dout_rows, 1, True), v)
        dcenter = xp.sum(hiding_product(weights, through_center), axis=-1)  # (R, 1, 1)
        dcenters.append(xp.reshape(dcenter, centers[:, :, rows].shape))
        if dmodified is not None and block.bias is not None:
            dbiases.append(sum_in_shape(dmodified, block.bias.shape, near.keys))
    return join(dqs), dk, dv, join(dcenters), total_gradient(dbiases, modifiers.bias)


def dense_weights(scores: Array, lse: Array, around: Around, modifiers: ScoreModifiers) -> Array:
    """The weights of queries against all keys, from scores (B, 1, T, S), before dropout."""
    xp, (centers, window, sigma) = namespace_of(scores), around
    center = centers[..., None]  # (B, 1, T, 1)
    lowest, highest = ends(center, scores.shape[3], window)
    keys = xp.arange(scores.shape[3], dtype=lowest.dtype, device=device_of(scores))
    inside = (keys >= lowest) & (keys <= highest)
    mask = inside if modifiers.mask is None else inside & modifiers.mask
    weights = masked_softmax_from_lse(scores, lse, modifiers._replace(mask=mask))
    return xp.where(weights == 0, 0.0, weights * gaussian(xp.astype(keys, centers.dtype) - center, sigma))


def _around_gradients(
    dout: Array, ctx: AroundContext, dlse: Array | None, dweights: Array | None
) -> tuple[Any, Any, Any, Any, Any]:
    """The gradients of queries, keys and values in the caller's layout, of the centers and of the bias."""
    q, k, v, around, out, lse, modifiers, layout, bias_shape = ctx
    do, dlse, dweights = layout.canonical(dout), lse_cotangent(dlse, ctx), weights_cotangent(dweights, ctx)
    xp = checks.namespace(dout=do, dlse=dlse, dweights=dweights, query=q)
    delta = xp.sum(hiding_product(out, do), axis=-1)  # (B, 1, T)
    if dweights is not None:
        delta = delta + xp.sum(hiding_product(ctx.weights_of_rows(slice(0, q.shape[2])), dweights), axis=-1)
    delta = delta if dlse is None else delta - dlse
    *grads, dcenters, dbias = attend_around_backward(do, delta, dweights, q, k, v, around, lse, modifiers)
    if dbias is not None and bias_shape is not None:
        dbias = layout.restore_bias(dbias, bias_shape)
    dquery, dkey, dvalue = (layout.restore(grad) for grad in grads)
    return dquery, dkey, dvalue, dcenters, dbias


def _lengths(modifiers: ScoreModifiers, k: Array) -> Array | float:
    """How many keys exist: one number, or (B, 1, 1)."""
    if modifiers.kv_lengths is None:
        return float(k.shape[2])
    return namespace_of(k).astype(modifiers.kv_lengths, k.dtype)[:, None, None]


def _checked(
    alignment: Alignment, sigma: Any, attn_mask: Any, options: Any, query: Array, key: Array, value: Array,
    given: dict[str, Any],
) -> Layout:  # fmt: skip
    """Check the arguments, and return the layout of query, key and value."""
    checks.choice("alignment", alignment, ALIGNMENTS)
    checks.required(query=query, key=key, value=value)
    predictive = alignment == "predictive"
    for name in ("position_weight", "position_vector"):
        if given[name] is None and predictive:
            raise ValueError(f"`{name}` is None, but the alignment 'predictive' needs it. Give it, or use 'monotonic'.")
    for name, there in (*given.items(), ("sigma", sigma)):
        if there is not None and not predictive and name != "weight":
            raise ValueError(
                f"`{name}` is given, but the alignment 'monotonic' predicts no positions and has no Gaussian. Leave it "
                "out, or use alignment='predictive'."
            )
    check_arrays(attn_mask, options, query=query, key=key, value=value, **given)
    layout = sequence_layout(query, key, value)
    Dq, Dk = query.shape[-1], key.shape[-1]
    named = checks.shapes(query=query, key=key, **given)[:-1]
    if given["weight"] is not None:
        checks.shape("weight", given["weight"], (Dq, Dk), f"(Dq, Dk). {named}")
    elif Dq != Dk:
        raise ValueError(
            f"`key` has {Dk} features but `query` has {Dq}; for the score 'dot' they must match. Give a `weight` "
            f"(Dq, Dk). {named}."
        )
    if predictive:
        A = (*given["position_weight"].shape, 1)[0]
        checks.shape("position_weight", given["position_weight"], (A, Dq), f"(A, Dq). {named}")
        because = f"one number per row of `position_weight`. {named}"
        checks.shape("position_vector", given["position_vector"], (A,), because)
    return layout


def _blocks(q: Array, v: Array, keys: int, window: int) -> Iterator[slice]:
    """Ranges of queries, so that the gathered keys and values of a range are held at a time."""
    return query_blocks(q[:, :, :, :1], v[:, :, : min(2 * window + 1, keys), :], q.shape[3] + v.shape[3])

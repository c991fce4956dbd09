"""Linear attention: a matrix as state, which four rules update; all steps of a chunk at once, chunk after chunk."""

from __future__ import annotations

from typing import Any, Generic, Literal, NamedTuple

from attnarray import checks, tree
from attnarray.attention.layout import Layout
from attnarray.attention.linear.call import (
    Call,
    Recurrence,
    denominators,
    hide,
    mapped,
    mapped_backward,
    prepare,
    results,
    state_shape,
)
from attnarray.attention.linear.chunks import (
    Chunks,
    from_chunks,
    scan_chunks,
    solver,
    sum_groups,
    times,
    to_borders,
    to_chunks,
)
from attnarray.attention.linear.decays import pair_products, pair_products_backward, sums_before, sums_from
from attnarray.attention.linear.features import FeatureMap, FeatureName
from attnarray.attention.sequences import narrow, result_cotangents
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.numpy_arrays import writable

Rule = Literal["linear", "gated", "delta", "gated_delta"]


class LinearAttentionResult(NamedTuple, Generic[ArrayT]):
    """The output of every step, and the state after the last one.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> result = aa.linear_attention(np.ones((2, 3, 5, 4)), np.ones((2, 3, 5, 4)), np.ones((2, 3, 5, 6)))
    >>> result.out.shape, result.state.shape
    ((2, 3, 5, 6), (2, 3, 4, 6))
    """

    out: ArrayT  # (*batch, H, T, Dv)
    state: ArrayT | Any  # (*batch, Hkv, Dk, Dv), in the dtype of sums; None in a cotangent that is 0


class LinearAttentionContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs in canonical layout, and the states at the borders of chunks."""

    query: ArrayT
    q: ArrayT  # before the feature map
    k: ArrayT
    v: ArrayT
    given: Recurrence
    states: ArrayT  # (B, Hkv, chunks, Dk, Dv), before each chunk
    out: ArrayT | None  # numerators and denominator of the normalized form: (B, H, T, Dv + 1)
    call: Call
    layout: Layout


class LinearAttentionGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    decay: ArrayT | None
    beta: ArrayT | None
    initial_state: ArrayT | None
    feature_map: Any


@ignoring_fp_errors
def linear_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    decay: ArrayT | None = None,
    beta: ArrayT | None = None,
    rule: Rule = "linear",
    scale: float | None = None,
    initial_state: ArrayT | None = None,
    normalize: bool = False,
    feature_map: FeatureName | FeatureMap | None = None,
    chunk_size: int = 64,
    lengths: Any = None,
    layout: checks.LayoutName = "BHTD",
) -> LinearAttentionResult[ArrayT]:
    r"""Linear attention: every step updates a state S (Dk, Dv) and reads from it, in time and memory linear in T.

    .. math::
        \text{linear:} \quad S_t &= S_{t-1} + k_t v_t^T, \qquad
        \text{gated:} \quad S_t = e^{g_t} S_{t-1} + k_t v_t^T, \\
        \text{delta:} \quad S_t &= S_{t-1} + \beta_t k_t (v_t - S_{t-1}^T k_t)^T, \\
        \text{gated delta:} \quad S_t &= e^{g_t} S_{t-1} + \beta_t k_t (v_t - (e^{g_t} S_{t-1})^T k_t)^T, \qquad
        o_t = \mathrm{scale}\; S_t^T q_t

    A decay per key dimension multiplies the rows of S. The steps of a chunk are computed at once by matrix products,
    those of the delta rules after a triangular system; the state goes from chunk to chunk.

    Parameters
    ----------
    query : (*batch, H, T, Dk) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Without H for three axes or
        fewer, as in `scaled_dot_product_attention`.
    key : (*batch, Hkv, T, Dk)
        H is a multiple of Hkv; the query heads of a group read from the same state. The delta rules expect keys of
        length 1 or less: with longer ones the state may grow without bound.
    value : (*batch, Hkv, T, Dv)
    decay : (*batch, Hkv, T) or (*batch, Hkv, T, Dk)
        g <= 0, the logarithm of the factor of the state, for all of it or for each key dimension; -inf resets it. For
        the rules "gated" and "gated_delta".
    beta : (*batch, Hkv, T)
        How much of the value at k_t is replaced, from 0 to 1; up to 2 is stable, too, for keys of length 1. Other
        numbers are computed with as they are. For the rules "delta" and "gated_delta".
    rule : {"linear", "gated", "delta", "gated_delta"}
    scale : float, optional
        1 / sqrt(Dk) by default, 1 with a feature map. It has no effect on the normalized form.
    initial_state : (*batch, Hkv, Dk, Dv), optional
        0 by default; the state of an earlier call continues it. For 16-bit queries in their dtype or in float32.
    normalize : bool
        Divide the output by q_t · z_t, where z_t is the sum of the keys with their decays: weights that sum to 1. It is
        the last column of the states, which are (Dk, Dv + 1). For the rules "linear" and "gated"; where q_t · z_t is 0
        the output is 0. Features should be positive.
    feature_map : {"elu+1", "relu", "squared", "exp", "softmax"} or a value, optional
        A map of queries and keys: one of these functions of each number, where "softmax" is that of each vector, or
        `FAVOR`, `Hedgehog`, or a value with their methods. The state then has a row for each feature.
    chunk_size : int
        The steps of a chunk, rounded up to a power of 2: a matter of speed and rounding only.
    lengths : int or (*batch) integers, optional
        The number of steps of each sequence. Later ones leave the state alone, and their output is 0.
    layout : {"BHTD", "BTHD"}
        Order of the axes of query, key, value, decay, beta and output; states are always (*batch, Hkv, Dk, Dv).

    Returns
    -------
    LinearAttentionResult
        out (*batch, H, T, Dv), of the dtype of query; state (*batch, Hkv, Dk, Dv), float32 for 16-bit queries.

    Raises
    ------
    ValueError
        If shapes do not fit, a rule lacks its arrays or is given others, a decay is positive, or an option is out of
        its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Katharopoulos et al., "Transformers are RNNs", 2020, arXiv:2006.16236; decays: Sun et al., "Retentive network",
    2023, arXiv:2307.08621, and for each key dimension Yang et al., "Gated linear attention transformers", 2023,
    arXiv:2312.06635; delta rules: Yang et al., "Parallelizing linear transformers with the delta rule", 2024,
    arXiv:2406.06484, and "Gated delta networks", 2024, arXiv:2412.06464. The semantics are those of ONNX's
    LinearAttention.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 4, 100, 8))
    >>> decay = -rng.random((2, 4, 100))
    >>> whole = aa.linear_attention(q, k, v, decay=decay, rule="gated")
    >>> half = aa.linear_attention(q[:, :, :50], k[:, :, :50], v[:, :, :50], decay=decay[..., :50], rule="gated")
    >>> rest = {"decay": decay[..., 50:], "rule": "gated", "initial_state": half.state}
    >>> bool(np.allclose(aa.linear_attention(q[:, :, 50:], k[:, :, 50:], v[:, :, 50:], **rest).state, whole.state))
    True
    """
    arrays = {"decay": decay, "beta": beta, "initial_state": initial_state}
    options = {"rule": rule, "scale": scale, "normalize": normalize, "feature_map": feature_map,
               "chunk_size": chunk_size, "lengths": lengths, "layout": layout}  # fmt: skip
    p = prepare(query, key, value, arrays, options)
    out, state, _ = attend_in_chunks(p.features_q, p.features_k, p.values, p.given, False)
    return writable(LinearAttentionResult(*results(out, state, p, query)))


@ignoring_fp_errors
def linear_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    decay: ArrayT | None = None,
    beta: ArrayT | None = None,
    rule: Rule = "linear",
    scale: float | None = None,
    initial_state: ArrayT | None = None,
    normalize: bool = False,
    feature_map: FeatureName | FeatureMap | None = None,
    chunk_size: int = 64,
    lengths: Any = None,
    layout: checks.LayoutName = "BHTD",
) -> tuple[LinearAttentionResult[ArrayT], LinearAttentionContext[ArrayT]]:
    """`linear_attention`, with the same options, and the context for its backward."""
    arrays = {"decay": decay, "beta": beta, "initial_state": initial_state}
    options = {"rule": rule, "scale": scale, "normalize": normalize, "feature_map": feature_map,
               "chunk_size": chunk_size, "lengths": lengths, "layout": layout}  # fmt: skip
    p = prepare(query, key, value, arrays, options)
    out, state, states = attend_in_chunks(p.features_q, p.features_k, p.values, p.given, True)
    held = out if p.call.normalize else None
    ctx = LinearAttentionContext(query, p.q, p.k, p.v, p.given, states, held, p.call, p.layout)
    return LinearAttentionResult(*results(out, state, p, query)), ctx


@ignoring_fp_errors
def linear_attention_bwd(
    dout: LinearAttentionResult | Array, ctx: LinearAttentionContext[ArrayT], dstate: Array | None = None
) -> LinearAttentionGrads[ArrayT]:
    r"""The gradients of linear attention: chunk after chunk from the last, with the gradient D of the state.

    .. math::
        D_t = D^{\mathrm{given}}_t + \mathrm{scale}\; q_t\, do_t^T, \qquad
        dq_t = \mathrm{scale}\; S_t\, do_t, \qquad
        dg_t = \Bigl\langle \frac{\partial S_t}{\partial g_t}, D_t \Bigr\rangle, \qquad
        D^{\mathrm{given}}_{t-1} = \mathrm{diag}(e^{g_t}) (D_t - k_t\, du_t^T)

    .. math::
        u_t = \beta_t (v_t - (e^{g_t} S_{t-1})^T k_t), \quad du_t' = D_t^T k_t, \quad du_t = \beta_t\, du_t', \quad
        dv_t = du_t, \quad d\beta_t = du_t' \cdot (v_t - (e^{g_t} S_{t-1})^T k_t)

    .. math:: dk_t = D_t u_t - e^{g_t} S_{t-1}\, du_t

    for the delta rules; without them u_t = v_t, dv_t = D_t^T k_t, dk_t = D_t v_t and D_(t-1) has no second term. The
    last D is the gradient of the initial state. States inside of a chunk are not computed: the same gradients follow
    from products of pairs of its steps.

    Parameters
    ----------
    dout : LinearAttentionResult
        The cotangents of out and state; None for one that does not count. Or that of out alone, an array.
    ctx : LinearAttentionContext
    dstate : (*batch, Hkv, Dk, Dv), optional
        The cotangent of the state, if `dout` is an array.

    Returns
    -------
    LinearAttentionGrads
        One gradient per array, None for what was not given; that of a feature map is a value of its type.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 100, 8))
    >>> result, ctx = aa.linear_attention_fwd(q, k, v)
    >>> grads = aa.linear_attention_bwd(aa.LinearAttentionResult(result.out, None), ctx)
    >>> bool(np.array_equal(aa.linear_attention_bwd(result.out, ctx).key, grads.key))
    True
    """
    checks.context("ctx", ctx, LinearAttentionContext)
    if checks.is_array(dout):
        dout = LinearAttentionResult(dout, dstate)
    elif dstate is not None:
        raise ValueError("`dstate` is given, but `dout` is no array: give LinearAttentionResult(dout, dstate) alone.")
    layout, call, xp = ctx.layout, ctx.call, namespace_of(ctx.q)
    features_q, features_k, v = mapped(ctx.q, ctx.k, ctx.v, call)
    shapes = layout.restored_shape((*ctx.q.shape[:3], ctx.v.shape[3])), state_shape(layout, features_k, v)
    do, dlast = result_cotangents(dout, LinearAttentionResult, shapes, ctx.query, wide_fields=("state",))
    do = hide(layout.canonical(do), call)
    if ctx.out is not None:
        numerators, below = ctx.out[..., :-1], ctx.out[..., -1:]
        inverse = denominators(below)
        dbelow = -xp.sum(do * numerators, axis=-1, keepdims=True) * inverse * inverse
        do = xp.concat([do * inverse, dbelow], axis=-1)
    dlast = xp.reshape(dlast, (ctx.k.shape[0], ctx.k.shape[1], features_k.shape[3], v.shape[3]))
    dq, dk, dv, ddecay, dbeta, dinitial = attend_in_chunks_backward(
        do, dlast, features_q, features_k, v, ctx.given, ctx.states
    )
    dq, dk, dmap = mapped_backward(hide(dq, call), hide(dk, call), ctx.q, ctx.k, call)
    dv = hide(dv, call)[..., : ctx.v.shape[3]]
    found: list[Any] = [narrow(layout.restore(x), ctx.query) for x in (dq, dk, dv)]
    for name, grad in (("decay", ddecay), ("beta", dbeta)):
        grad = None if grad is None else layout.restore(hide(grad, call))
        found.append(narrow(grad[..., 0] if grad is not None and name not in call.per_dim else grad, ctx.query))
    dinitial = None if call.initial is None else xp.astype(xp.reshape(dinitial, shapes[1]), call.initial, copy=False)
    dmap = None if dmap is None else tree.map(lambda x: narrow(x, ctx.query) if checks.is_array(x) else x, dmap)
    return LinearAttentionGrads(found[0], found[1], found[2], found[3], found[4], dinitial, dmap)


@accelerated
def attend_in_chunks(q: Array, k: Array, v: Array, given: Recurrence, keep: bool) -> tuple[Any, Any, Any]:
    r"""All steps, with S_0 the state before a chunk, and G_t the sum of its decays up to t.

    .. math::
        (I + \mathrm{diag}(\beta) M) U = \mathrm{diag}(\beta) (V - (K \odot e^G) S_0), \qquad
        M_{ts} = \sum_d k_{td} k_{sd} e^{G_{td} - G_{sd}} \quad (s < t)

    .. math::
        O = \mathrm{scale} \bigl((Q \odot e^G) S_0 + P U\bigr), \qquad
        S_C = \mathrm{diag}(e^{G_C}) S_0 + (K \odot e^{G_C - G})^T U

    where P is M with queries for the first keys and s = t too, and U = V without a delta rule.

    Parameters
    ----------
    q : (B, H, T, Dk), k : (B, Hkv, T, Dk), v : (B, Hkv, T, Dv)
    keep : bool
        Whether the states are returned.

    Returns
    -------
    out : (B, H, T, Dv)
    state : (B, Hkv, Dk, Dv)
        After the last step.
    states : (B, Hkv, chunks, Dk, Dv), or None
        Before each chunk.
    """
    xp = namespace_of(q, k, v)
    c = _chunks(q, k, v, given)
    borders, made, erased = to_borders(c), c.v, None  # U = made + erased S_0
    if c.beta is not None:
        inverse = solver(c)[1]
        made, erased = xp.matmul(inverse, c.beta * c.v), -xp.matmul(inverse, c.beta * borders.k)
    S, before, U = scan_chunks(given.initial[:, :, None, :, :], borders.whole, made, erased, borders.k_end, None)
    out = xp.matmul(borders.q, before) + xp.matmul(pair_products(c.q, c.k, c.decay), U)
    out = from_chunks(given.scale * out, (*q.shape[:3], v.shape[3]))
    return out, S[:, :, 0, :, :], before[:, :, 0, :, :, :] if keep else None


@accelerated
def attend_in_chunks_backward(
    dout: Array, dstate: Array, q: Array, k: Array, v: Array, given: Recurrence, states: Array
) -> tuple[Any, ...]:
    r"""From the last chunk back to the first; U and the products of pairs are computed again.

    .. math::
        dU = \mathrm{scale}\, P^T dO + (K \odot e^{G_C - G}) D, \qquad Y = (I + \mathrm{diag}(\beta) M)^{-T} dU, \qquad
        dR = \mathrm{diag}(\beta) Y

    .. math::
        D \leftarrow \mathrm{diag}(e^{G_C}) D + \mathrm{scale} (Q \odot e^G)^T dO - (K \odot e^G)^T dR, \qquad
        dP = \mathrm{scale}\, dO\, U^T, \qquad dM = -\mathrm{diag}(\beta) Y U^T

    Parameters
    ----------
    dout : (B, H, T, Dv), dstate : (B, Hkv, Dk, Dv)

    Returns
    -------
    dq, dk, dv : the shapes of q, k and v
    ddecay, dbeta : the shapes of the fields of `given`, or None
    dinitial : (B, Hkv, Dk, Dv)
    """
    xp = namespace_of(dout, q, k, v)
    c, do = _chunks(q, k, v, given), to_chunks(dout, k.shape[1], given.chunk_size) * given.scale
    borders, before = to_borders(c), states[:, :, None, :, :, :]  # (B, Hkv, 1, N, Dk, Dv)
    products, inverse = solver(c) if given.beta is not None else (None, None)
    rest = c.v if inverse is None else c.v - xp.matmul(borders.k, before)
    U = rest if inverse is None else xp.matmul(inverse, rest * c.beta)
    local = sum_groups(xp.matmul(pair_products(c.q, c.k, c.decay).mT, do))
    read = sum_groups(xp.matmul(borders.q.mT, do))  # (B, Hkv, 1, N, Dk, Dv)
    erased = None if c.beta is None else -xp.matmul(inverse, c.beta * borders.k)
    D, D_after, dU = scan_chunks(dstate[:, :, None, :, :], borders.whole, local, borders.k_end, erased, read, True)
    Y = dU if inverse is None else xp.matmul(inverse.mT, dU)
    dv = Y if c.beta is None else Y * c.beta
    dq, dk, ddecay = _pairs(do, U, c.q, c.k, c.decay)
    dq_start, dk_end = xp.matmul(do, before.mT), xp.matmul(U, D_after.mT)
    dq, dk = dq + times(dq_start, borders.start), sum_groups(dk) + times(dk_end, borders.end)
    dborders = [borders.q * dq_start, borders.k_end * dk_end, None]
    dbeta = None
    if products is not None and c.beta is not None:
        dbeta = xp.sum(Y * (rest - xp.matmul(products, U)), axis=-1, keepdims=True)
        dk_start = -xp.matmul(dv, before.mT)
        dk_late, dk_early, dpairs = _pairs(-dv, U, c.k, c.k, c.decay, strict=True)
        dk = dk + dk_late + dk_early + times(dk_start, borders.start)
        ddecay = None if ddecay is None else sum_groups(ddecay) + dpairs
        dborders[2] = borders.k * dk_start
    if c.decay is not None and borders.whole is not None:
        through = xp.sum(before * D_after, axis=-1)[:, :, :, :, None, :]  # (B, Hkv, 1, N, 1, Dk)
        ddecay = sum_groups(ddecay) + _decays(c.decay, borders.whole, through, dborders)
        ddecay = from_chunks(ddecay, (*k.shape[:3], c.decay.shape[-1]))
    dbeta = None if dbeta is None else from_chunks(dbeta, (*k.shape[:3], 1))
    grads = (from_chunks(x, like.shape) for x, like in ((dq, q), (dk, k), (dv, v)))
    return *grads, ddecay, dbeta, D[:, :, 0, :, :]


def _chunks(q: Array, k: Array, v: Array, given: Recurrence) -> Chunks:
    heads, size = k.shape[1], given.chunk_size
    decay, beta = (None if x is None else to_chunks(x, heads, size) for x in (given.decay, given.beta))
    return Chunks(to_chunks(q, heads, size), to_chunks(k, heads, size), to_chunks(v, heads, size), decay, beta)


def _pairs(
    dout: Array, U: Array, q: Array, k: Array, decay: Array | None, strict: bool = False
) -> tuple[Any, Any, Any]:
    """The gradients of the two arrays and the decay of products of pairs, from dP = dO U^T; `strict`: only s < t."""
    xp = namespace_of(dout, U)
    dproducts = xp.matmul(dout, U.mT)
    return pair_products_backward(xp.tril(dproducts, k=-1) if strict else dproducts, q, k, decay)


def _decays(decay: Array, whole: Array, through: Array, dborders: list[Any]) -> Any:
    """The gradient of the decays to the borders, from products of arrays at the borders with their gradients."""
    xp = namespace_of(decay)

    def each(x: Any) -> Any:
        return x if x is None or decay.shape[-1] == x.shape[-1] else xp.sum(x, axis=-1, keepdims=True)

    q_start, k_end, k_start = each(sum_groups(dborders[0])), each(dborders[1]), each(dborders[2])
    from_start = q_start if k_start is None else q_start + k_start
    return sums_from(from_start) + sums_before(k_end) + whole * each(through)

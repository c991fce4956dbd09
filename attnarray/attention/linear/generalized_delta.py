"""The generalized delta rule of RWKV-7: a state that reads itself at one vector and writes that at another."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.layout import Layout
from attnarray.attention.linear.call import Call, Recurrence, check_call, hide, recurrence, state_shape
from attnarray.attention.linear.chunks import (
    from_chunks,
    scan_chunks,
    sum_groups,
    times,
    to_chunks,
    unit_lower_inverse,
)
from attnarray.attention.linear.decays import (
    moved,
    pair_products,
    pair_products_backward,
    sums_after,
    sums_before,
    sums_from,
    sums_to,
)
from attnarray.attention.linear.linear_attention import LinearAttentionResult
from attnarray.attention.sequences import narrow, result_cotangents, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.numpy_arrays import writable


class GeneralizedDeltaContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs in canonical layout, and the states at the borders of chunks."""

    query: ArrayT
    q: ArrayT
    k: ArrayT
    v: ArrayT
    a: ArrayT
    b: ArrayT
    given: Recurrence
    states: ArrayT  # (B, Hkv, 1, chunks, Dk, Dv), before each chunk
    call: Call
    layout: Layout


class GeneralizedDeltaGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    a: ArrayT
    b: ArrayT
    decay: ArrayT | None
    initial_state: ArrayT | None


@ignoring_fp_errors
def generalized_delta_rule(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    a: ArrayT,
    b: ArrayT,
    *,
    decay: ArrayT | None = None,
    scale: float = 1.0,
    initial_state: ArrayT | None = None,
    chunk_size: int = 64,
    lengths: Any = None,
    layout: checks.LayoutName = "BHTD",
) -> LinearAttentionResult[ArrayT]:
    r"""The generalized delta rule: a state S (Dk, Dv) is read at a, and what was read is written at b.

    .. math::
        S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T, \qquad
        o_t = \mathrm{scale}\; S_t^T q_t

    RWKV-7 has a = -κ, a key of length 1 at which is removed, and b = κ ⊙ α with a rate α from 0 to 1 for each of its
    dimensions. `linear_attention` with rule="delta" is a = -k, b = β k and values β v. What is read is not decayed, as
    in RWKV-7; for the rule "gated_delta" give a ⊙ e^g.

    Parameters
    ----------
    query : (*batch, H, T, Dk) floating
        As in `linear_attention`, also without H for three axes or fewer.
    key, a, b : (*batch, Hkv, T, Dk)
        Vectors a and b beyond those of RWKV-7 are computed with as they are; the state may grow without bound.
    value : (*batch, Hkv, T, Dv)
    decay : (*batch, Hkv, T) or (*batch, Hkv, T, Dk), optional
        g <= 0, the logarithm of the factor of the state, for all of it or for each key dimension; none by default.
    scale : float
    initial_state, chunk_size, lengths, layout
        As in `linear_attention`.

    Returns
    -------
    LinearAttentionResult
        out (*batch, H, T, Dv), of the dtype of query; state (*batch, Hkv, Dk, Dv), float32 for 16-bit queries.

    Raises
    ------
    ValueError
        If shapes do not fit, a decay is positive, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Peng et al., "RWKV-7 'Goose' with expressive dynamic state evolution", 2025, arXiv:2503.14456. Chunks: Yang et al.,
    2024, arXiv:2406.06484.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, removed = rng.standard_normal((4, 2, 4, 100, 8))
    >>> removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
    >>> decay, rate = -rng.random((2, 4, 100, 8)), rng.random((2, 4, 100, 8))
    >>> aa.generalized_delta_rule(q, k, v, -removed, rate * removed, decay=decay).state.shape
    (2, 4, 8, 8)

    The delta rule is one of them:

    >>> out = aa.generalized_delta_rule(q, removed, v, -removed, removed).out
    >>> delta = aa.linear_attention(q, removed, v, beta=np.ones((2, 4, 100)), rule="delta", scale=1.0)
    >>> bool(np.allclose(out, delta.out))
    True
    """
    options = {"scale": scale, "chunk_size": chunk_size, "lengths": lengths, "layout": layout}
    result, _ = _run(query, key, value, a, b, {"decay": decay, "initial_state": initial_state}, options)
    return writable(result)


@ignoring_fp_errors
def generalized_delta_rule_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    a: ArrayT,
    b: ArrayT,
    *,
    decay: ArrayT | None = None,
    scale: float = 1.0,
    initial_state: ArrayT | None = None,
    chunk_size: int = 64,
    lengths: Any = None,
    layout: checks.LayoutName = "BHTD",
) -> tuple[LinearAttentionResult[ArrayT], GeneralizedDeltaContext[ArrayT]]:
    """`generalized_delta_rule`, with the same options, and the context for its backward."""
    options = {"scale": scale, "chunk_size": chunk_size, "lengths": lengths, "layout": layout}
    return _run(query, key, value, a, b, {"decay": decay, "initial_state": initial_state}, options)


@ignoring_fp_errors
def generalized_delta_rule_bwd(
    dout: LinearAttentionResult | Array, ctx: GeneralizedDeltaContext[ArrayT], dstate: Array | None = None
) -> GeneralizedDeltaGrads[ArrayT]:
    r"""The gradients, with D the gradient of the state and u = S^T a what was read.

    .. math::
        D_t = D^{\mathrm{given}}_t + \mathrm{scale}\; q_t\, do_t^T, \qquad dq_t = \mathrm{scale}\; S_t\, do_t, \qquad
        dk_t = D_t v_t, \quad dv_t = D_t^T k_t, \quad db_t = D_t u_t, \quad du_t = D_t^T b_t

    .. math::
        da_t = S_{t-1}\, du_t, \qquad D^{\mathrm{given}}_{t-1} = \mathrm{diag}(e^{g_t}) D_t + a_t\, du_t^T, \qquad
        dg_t = \mathrm{rowsum}(e^{g_t} S_{t-1} \odot D_t)

    Inside of a chunk there are no states: the same gradients follow from products of pairs of its steps.

    Parameters
    ----------
    dout : LinearAttentionResult
        The cotangents of out and state; None for one that does not count. Or that of out alone, an array.
    ctx : GeneralizedDeltaContext
    dstate : (*batch, Hkv, Dk, Dv), optional
        The cotangent of the state, if `dout` is an array.

    Returns
    -------
    GeneralizedDeltaGrads
        One gradient per array, None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((4, 10, 3))
    >>> result, ctx = aa.generalized_delta_rule_fwd(x[0], x[1], x[2], -x[3], 0.1 * x[3])
    >>> aa.generalized_delta_rule_bwd(result.out, ctx).a.shape
    (10, 3)
    """
    checks.context("ctx", ctx, GeneralizedDeltaContext)
    if checks.is_array(dout):
        dout = LinearAttentionResult(dout, dstate)
    elif dstate is not None:
        raise ValueError("`dstate` is given, but `dout` is no array: give LinearAttentionResult(dout, dstate) alone.")
    layout, call, xp = ctx.layout, ctx.call, namespace_of(ctx.q)
    shapes = layout.restored_shape((*ctx.q.shape[:3], ctx.v.shape[3])), state_shape(layout, ctx.k, ctx.v)
    do, dlast = result_cotangents(dout, LinearAttentionResult, shapes, ctx.query, wide_fields=("state",))
    do, dlast = hide(layout.canonical(do), call), xp.reshape(dlast, ctx.given.initial.shape)
    *grads, ddecay, dinitial = _backward(do, dlast, ctx)
    found: list[Any] = [narrow(layout.restore(hide(x, call)), ctx.query) for x in grads]
    if ddecay is not None:
        ddecay = layout.restore(hide(ddecay, call))
        ddecay = narrow(ddecay if "decay" in call.per_dim else ddecay[..., 0], ctx.query)
    dinitial = None if call.initial is None else xp.astype(xp.reshape(dinitial, shapes[1]), call.initial, copy=False)
    return GeneralizedDeltaGrads(found[0], found[1], found[2], found[3], found[4], ddecay, dinitial)


def _run(
    query: Any, key: Any, value: Any, a: Any, b: Any, arrays: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, Any]:
    checks.required(a=a, b=b)
    arrays = {**arrays, "beta": None}
    rule = {"rule": "linear" if arrays["decay"] is None else "gated", "normalize": False, "feature_map": None}
    layout, call = check_call(query, key, value, arrays, {**options, **rule})
    checks.namespace(query=query, a=a, b=b)
    checks.floating(query=query, a=a, b=b)
    for name, array in (("a", a), ("b", b)):
        checks.shape(name, array, tuple(key.shape), "the shape of `key`")
    q, k, v, a, b = (hide(wide(layout.canonical(x)), call) for x in (query, key, value, a, b))
    given = recurrence(arrays, layout, call, k, v)
    out, state, states = _forward(q, k, v, a, b, given)
    out = narrow(layout.restore(out), query)
    state = namespace_of(state).reshape(state, state_shape(layout, k, v))
    ctx = GeneralizedDeltaContext(query, q, k, v, a, b, given, states, call, layout)
    return LinearAttentionResult(out, state), ctx


class _Chunked(NamedTuple):
    """All arrays in chunks, what is decayed to their borders, and products of pairs of steps.

    Queries are (B, Hkv, G, N, C, Dk), the others (B, Hkv, 1, N, C, ...).
    """

    q: Any
    k: Any
    v: Any
    a: Any
    b: Any
    decay: Any  # None of no decay, as the four that follow
    start: Any  # the factors from the start of the chunk up to each step
    before: Any  # up to the step before
    end: Any  # from each step to the end
    whole: Any
    readers: Any  # queries and, as the last of each group, the a of the next step: (B, Hkv, G + 1, N, C, Dk)
    of_q: tuple[Any, Any]  # the products of queries with b and with k
    of_a: tuple[Any, Any]  # those of a with earlier steps of b and k
    inverse: Any  # of I - the products of a with b


def _chunked(q: Array, k: Array, v: Array, a: Array, b: Array, given: Recurrence) -> _Chunked:
    xp, heads, size, decay = namespace_of(q), k.shape[1], given.chunk_size, None
    q, k, v, a, b = (to_chunks(x, heads, size) for x in (q, k, v, a, b))
    start = before = end = whole = None
    if given.decay is not None:
        decay = to_chunks(given.decay, heads, size)
        start, before, end = (xp.exp(sums(decay)) for sums in (sums_to, sums_before, sums_after))
        whole = start[..., -1:, :]
    readers = xp.concat([q, moved(a, first=False)], axis=2)  # a reads the state before its step
    of_b, of_k = pair_products(readers, b, decay), pair_products(readers, k, decay)
    of_q = of_b[:, :, :-1, ...], of_k[:, :, :-1, ...]
    of_a = moved(of_b[:, :, -1:, ...], first=True), moved(of_k[:, :, -1:, ...], first=True)
    return _Chunked(q, k, v, a, b, decay, start, before, end, whole, readers, of_q, of_a, unit_lower_inverse(-of_a[0]))


def _forward(q: Array, k: Array, v: Array, a: Array, b: Array, given: Recurrence) -> tuple[Any, Any, Any]:
    r"""The outputs, the last state and the states before each chunk; G_t is the sum of the decays up to t.

    .. math::
        (I - N^b) U = N^k V + (A \odot e^{G - g}) S_0, \qquad
        O = \mathrm{scale} \bigl((Q \odot e^G) S_0 + P^b U + P^k V\bigr), \qquad
        S_C = \mathrm{diag}(e^{G_C}) S_0 + (B \odot e^{G_C - G})^T U + (K \odot e^{G_C - G})^T V
    """
    xp, c = namespace_of(q), _chunked(q, k, v, a, b, given)
    a_start, b_end, k_end = times(c.a, c.before), times(c.b, c.end), times(c.k, c.end)
    local, across = xp.matmul(c.inverse, xp.matmul(c.of_a[1], c.v)), xp.matmul(c.inverse, a_start)
    initial, written = given.initial[:, :, None, :, :], xp.matmul(k_end.mT, c.v)
    S, before, U = scan_chunks(initial, c.whole, local, across, b_end, written)
    out = xp.matmul(times(c.q, c.start), before) + xp.matmul(c.of_q[0], U) + xp.matmul(c.of_q[1], c.v)
    return from_chunks(given.scale * out, (*q.shape[:3], v.shape[3])), S[:, :, 0, :, :], before


def _backward(dout: Array, dstate: Array, ctx: GeneralizedDeltaContext) -> tuple[Any, ...]:
    r"""The gradients of q, k, v, a, b, the decays and the initial state, from the last chunk back to the first.

    .. math::
        dU = P^{bT} dO + (B \odot e^{G_C - G}) D, \qquad R = (I - N^b)^{-T} dU, \qquad dN^b = R U^T, \quad dN^k = R V^T

    .. math::
        D \leftarrow \mathrm{diag}(e^{G_C}) D + (Q \odot e^G)^T dO + (A \odot e^{G - g})^T R
    """
    given, before = ctx.given, ctx.states
    xp, c = namespace_of(ctx.q), _chunked(ctx.q, ctx.k, ctx.v, ctx.a, ctx.b, given)
    do = to_chunks(dout, ctx.k.shape[1], given.chunk_size) * given.scale
    q_start, a_start, b_end, k_end = (
        times(x, factor) for x, factor in ((c.q, c.start), (c.a, c.before), (c.b, c.end), (c.k, c.end))
    )
    U = xp.matmul(c.inverse, xp.matmul(c.of_a[1], c.v) + xp.matmul(a_start, before))
    local, read = (sum_groups(xp.matmul(x.mT, do)) for x in (c.of_q[0], q_start))
    across = xp.matmul(c.inverse, a_start)
    D, D_after, dU = scan_chunks(dstate[:, :, None, :, :], c.whole, local, b_end, across, read, True)
    R = xp.matmul(c.inverse.mT, dU)
    dv = sum_groups(xp.matmul(c.of_q[1].mT, do)) + xp.matmul(k_end, D_after) + xp.matmul(c.of_a[1].mT, R)
    dreaders, db, ddecay = pair_products_backward(_dproducts(do, R, U), c.readers, c.b, c.decay)
    dreaders_k, dk, ddecay_k = pair_products_backward(_dproducts(do, R, c.v), c.readers, c.k, c.decay)
    dreaders = dreaders + dreaders_k
    dq_start, da_start = xp.matmul(do, before.mT), xp.matmul(R, before.mT)
    db_end, dk_end = xp.matmul(U, D_after.mT), xp.matmul(c.v, D_after.mT)
    dq = dreaders[:, :, :-1, ...] + times(dq_start, c.start)
    da = moved(dreaders[:, :, -1:, ...], first=True) + times(da_start, c.before)
    db, dk = sum_groups(db) + times(db_end, c.end), sum_groups(dk) + times(dk_end, c.end)
    if c.decay is not None:
        through = c.whole * _each(xp.sum(before * D_after, axis=-1)[:, :, :, :, None, :], c.decay)
        ddecay = sum_groups(ddecay + ddecay_k) + through
        ddecay = ddecay + sums_from(_each(sum_groups(q_start * dq_start), c.decay))
        ddecay = ddecay + sums_after(_each(a_start * da_start, c.decay))
        ddecay = ddecay + sums_before(_each(b_end * db_end + k_end * dk_end, c.decay))
        ddecay = from_chunks(ddecay, (*ctx.k.shape[:3], c.decay.shape[-1]))
    likes = (dq, ctx.q), (dk, ctx.k), (dv, ctx.v), (da, ctx.a), (db, ctx.b)
    return *(from_chunks(x, like.shape) for x, like in likes), ddecay, D[:, :, 0, :, :]


def _dproducts(do: Array, R: Array, written: Array) -> Any:
    """The gradient of the products of queries and a with what was written: (B, Hkv, G + 1, N, C, C)."""
    xp = namespace_of(do, written)
    of_a = moved(xp.matmul(R, written.mT), first=False)
    return xp.concat([xp.matmul(do, written.mT), of_a], axis=2)


def _each(x: Array, decay: Array) -> Any:
    """What each key dimension gives to the gradient of its decay, summed if they have one."""
    return x if decay.shape[-1] == x.shape[-1] else namespace_of(x).sum(x, axis=-1, keepdims=True)

"""Dot-product attention with three scales, each learned if so wished: of the scores, of the softmax, of the output."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypedDict, Unpack

from attnarray import checks
from attnarray.attention.core import hiding_product, sum_to_shape
from attnarray.attention.dot_product.projection import attend_by_dots
from attnarray.attention.dot_product.scaled_core import Capped, CappedContext, attend_capped, attend_capped_backward
from attnarray.attention.dot_product.scaled_dot_product import SDPAContext, scaled_dot_product_attention_bwd
from attnarray.attention.form import Form, sequence_form
from attnarray.attention.options import check_arrays, known_options, scoring_of
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, dtype_name, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.magnitude import check_number
from attnarray.masks import Mask
from attnarray.random import Philox


class ScaledOptions(TypedDict, total=False):
    """The keyword-only options: all of `ScoreOptions` but its scale."""

    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None
    rng: Philox | int | None
    dropout_mask: Array | None


class Scales(NamedTuple):
    """The three scales: numbers, or arrays () or (*batch, T); None for what was not given."""

    gate: float | Array | None
    score_scale: float | Array | None
    inverse_temperature: float | Array | None

    def array(self, name: str) -> Any:
        """The scale as an array () or (*batch, T) in the dtype of sums, or None if it is a number or not given."""
        given = getattr(self, name)
        return wide(given) if checks.is_array(given) else None

    def number(self, name: str, default: float = 1.0) -> float:
        """The scale as a number: the default if it is not given, 1 if it is an array."""
        given = getattr(self, name)
        return default if given is None else 1.0 if checks.is_array(given) else float(given)


class ScaledContext(NamedTuple):
    """What the backward needs: the queries before any scale, the scales, and the context of the attention."""

    query: Array
    scales: Scales
    attention: SDPAContext | CappedContext


class ScaledGrads(NamedTuple):
    query: Array
    key: Array
    value: Array
    gate: Array | None
    score_scale: Array | None
    inverse_temperature: Array | None
    bias: Array | None


def scaled_attention(
    query: Array,
    key: Array,
    value: Array,
    gate: float | Array | None = None,
    score_scale: float | Array | None = None,
    inverse_temperature: float | Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScaledOptions],
) -> Array:
    r"""Dot-product attention with a score scale g, an inverse temperature beta and an output gate gamma.

    .. math::
        o_i = \gamma_i \sum_j p_{ij} v_j, \qquad
        p_i = \mathrm{softmax}_j\bigl(\beta_i\, e_{ij} + b_{ij}\bigr), \qquad
        e_{ij} = c \tanh(g_i\, q_i \cdot k_j / c)

    over the keys that every mask allows. Without softcap, e = g q k. The order is fixed: score scale, softcap, inverse
    temperature, bias, mask, softmax, dropout, times value, gate.

    Parameters
    ----------
    query : (*batch, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, D)
    value : (*batch, S, Dv)
    gate : float, or array () or (*batch, T), optional
        gamma: how much of the context comes through, for all queries or for each.
    score_scale : float, or array () or (*batch, T), optional
        g: 1 / sqrt(D) by default.
    inverse_temperature : float, or array () or (*batch, T), optional
        beta: above 1 the weights are sharper, below 1 smoother.
    attn_mask, dropout_p, is_causal, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `scaled_dot_product_attention`; there are no heads, so masks and biases broadcast to (*batch, T, S).

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or a scale or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    All three are called "the scale" somewhere, and do different things: g and beta change the weights, gamma leaves
    them as they are. Without softcap g and beta are one: only their product counts. Arrays are learned: they have
    gradients, numbers have none. `layers.ScaledAttention` makes gamma of the query, as Xu et al. do.

    References
    ----------
    g: Vaswani et al., 2017, arXiv:1706.03762. beta: Chorowski et al., 2015, arXiv:1506.07503, section 2.2. gamma, there
    called beta: Xu et al., "Show, attend and tell", 2015, arXiv:1502.03044, section 4.2.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
    >>> half = aa.scaled_attention(x, x, x, gate=0.5, inverse_temperature=2.0, is_causal=True)
    >>> whole = aa.scaled_attention(x, x, x, score_scale=1.0, is_causal=True)  # 2 / sqrt(4)
    >>> bool(np.allclose(half, 0.5 * whole))
    True
    """
    return scaled_attention_fwd(
        query, key, value, gate, score_scale, inverse_temperature, attn_mask, dropout_p, is_causal, **options
    )[0]


@ignoring_fp_errors
def scaled_attention_fwd(
    query: Array,
    key: Array,
    value: Array,
    gate: float | Array | None = None,
    score_scale: float | Array | None = None,
    inverse_temperature: float | Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScaledOptions],
) -> tuple[Array, ScaledContext]:
    """`scaled_attention`, with the same options, and the context for its backward."""
    known_options(options, ScaledOptions)
    given = Scales(gate, score_scale, inverse_temperature)
    form, scales = _checked(attn_mask, options, query, key, value, given)
    beta, number = scales.array("inverse_temperature"), scales.number("inverse_temperature")
    scale = scales.number("score_scale", 1.0 / math.sqrt(query.shape[-1] or 1)) * number
    rules: dict[str, Any] = {**options, "scale": scale}
    attention: SDPAContext | CappedContext
    capped = options.get("softcap") is not None
    if capped:  # beta c tanh(g q k / c) is c' tanh(beta g q k / c') with c' = |beta| c
        rules["softcap"] = checks.positive("softcap", options["softcap"]) * abs(number)  # type: ignore[arg-type]
    q, k, v = _times_rows(wide(query), scales.array("score_scale")), wide(key), wide(value)
    if capped and beta is not None:
        attention = _attend_capped(form, q, k, v, beta, attn_mask, dropout_p, is_causal, rules)
        out = form.restored(attention.out)
    else:
        q = _times_rows(q, beta)
        out, attention = attend_by_dots(form, q, k, v, attn_mask, dropout_p, is_causal, rules)
    out = _times_rows(out, scales.array("gate")) * scales.number("gate")
    return narrow(out, query), ScaledContext(query, scales, attention)


@ignoring_fp_errors
def scaled_attention_bwd(dout: Array, ctx: ScaledContext) -> ScaledGrads:
    r"""The gradients of scaled attention; weights are recomputed from the lse.

    With u the output before the gate, and ds those of the scores s = beta e + b:

    .. math::
        d\gamma_i = dy_i \cdot u_i, \quad du_i = \gamma_i\, dy_i, \quad
        ds_{ij} = p_{ij} (du_i \cdot v_j - du_i \cdot u_i), \quad dv_j = \sum_i p_{ij}\, du_i, \quad db = ds

    .. math::
        d\beta_i = \sum_j ds_{ij}\, e_{ij}, \quad
        a_{ij} = \beta_i\, ds_{ij} \bigl(1 - (e_{ij} / c)^2\bigr), \quad dg_i = \sum_j a_{ij}\, q_i \cdot k_j, \quad
        dq_i = g_i \sum_j a_{ij} k_j, \quad dk_j = \sum_i a_{ij}\, g_i q_i

    Gradients of scales of shape () are the sums over all queries.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : ScaledContext

    Returns
    -------
    ScaledGrads
        query, key, value, gate, score_scale, inverse_temperature, bias; None for what is a number or was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
    >>> out, ctx = aa.scaled_attention_fwd(x, x, x, gate=np.ones((2, 5)), score_scale=np.array(0.7))
    >>> grads = aa.scaled_attention_bwd(np.ones_like(out), ctx)
    >>> grads.gate.shape, grads.score_scale.shape, grads.inverse_temperature
    ((2, 5), (), None)
    """
    checks.context("ctx", ctx, ScaledContext)
    attention, form = ctx.attention, ctx.attention.form
    checks.cotangent(dout, tuple(form.restored(attention.out).shape), ctx.query)
    gamma, g, beta = (ctx.scales.array(name) for name in Scales._fields)
    dgate = None if gamma is None else _row_products(form.restored(attention.out), wide(dout), gamma)
    du = _times_rows(wide(dout), gamma) * ctx.scales.number("gate")
    dbeta = dscale = None
    if isinstance(attention, CappedContext):
        dq, dkey, dvalue, dbeta, dbias = _attend_capped_backward(du, attention)
        dbeta = sum_to_shape(dbeta, tuple(beta.shape))
    else:
        dq, dkey, dvalue, dbias, _ = scaled_dot_product_attention_bwd(du, attention)
        if beta is not None:  # a factor of the queries, as g is
            dbeta = _row_products(dq, _times_rows(wide(ctx.query), g), beta)
            dq = _times_rows(dq, beta)
    if g is not None:
        dscale = _row_products(dq, wide(ctx.query), g)
    found = _times_rows(dq, g), dkey, dvalue, dgate, dscale, dbeta, dbias
    return ScaledGrads(*(narrow(grad, ctx.query) for grad in found))


def _times_rows(x: Array, factor: Array | None) -> Array:
    """x (*batch, T, N) times a factor () or (*batch, T); rows of 0 are those of queries that attend to nothing."""
    return x if factor is None else hiding_product(x, factor[..., None])


def _row_products(x: Array, y: Array, like: Array) -> Array:
    """x_i . y_i of all rows (*batch, T, N), where 0 in x hides y, summed to the shape of a factor."""
    return sum_to_shape(namespace_of(x).sum(hiding_product(x, y), axis=-1), tuple(like.shape))


def _attend_capped(
    form: Form, q: Array, k: Array, v: Array, beta: Array, attn_mask: Any, dropout_p: float, is_causal: bool, rules: Any
) -> CappedContext:
    xp = namespace_of(q)
    temperature = form.canonical(xp.broadcast_to(beta[..., None], (*q.shape[:-1], 1)))  # (B, 1, T, 1)
    q, k, v = form.canonical(q), form.canonical(k), form.canonical(v)
    scoring, bias_shape = scoring_of(q, k.shape[2], form, attn_mask, dropout_p, is_causal, rules)
    after = scoring._replace(scale=1.0, softcap=None)
    problem = Capped(q, k, v, temperature, scoring.scale, float(scoring.softcap or 0.0), after)
    return CappedContext(problem, *attend_capped(problem), form, bias_shape)


def _attend_capped_backward(du: Array, ctx: CappedContext) -> tuple[Any, ...]:
    form = ctx.form
    dq, dk, dv, dbeta, dbias = attend_capped_backward(form.canonical(du), ctx.problem, ctx.out, ctx.lse)
    if dbias is not None and ctx.bias_shape is not None:
        dbias = form.restored_bias(dbias, ctx.bias_shape)
    return (*(form.restored(grad) for grad in (dq, dk, dv)), form.restored(dbeta)[..., 0], dbias)


def _checked(
    attn_mask: Any, options: Any, query: Array, key: Array, value: Array, scales: Scales
) -> tuple[Form, Scales]:
    """Check everything that is given; returns the form of query, key and value, and the scales as arrays or numbers."""
    checks.required(query=query, key=key, value=value)
    arrays = {name: given for name, given in scales._asdict().items() if checks.is_array(given)}
    xp = check_arrays(attn_mask, options, query=query, key=key, value=value, **arrays)
    form = sequence_form(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`key` has {key.shape[-1]} features but `query` has {query.shape[-1]}; they must match. "
            f"{checks.shapes(query=query, key=key, value=value)}"
        )
    rows = tuple(query.shape[:-1])
    for name, given in scales._asdict().items():
        if name in arrays and tuple(given.shape) not in ((), rows):
            raise ValueError(
                f"`{name}` has shape {tuple(given.shape)}, expected () for all queries or (*batch, T) = {rows} for "
                "each."
            )
        number = 1.0 if name in arrays or given is None else checks.real(given)
        if not math.isfinite(number) or (number == 0 and name != "gate"):
            other = "" if name == "gate" else " other than 0"
            raise ValueError(
                f"`{name}` is {checks.shown(given)}, expected a finite number{other}, or an array () or (*batch, T)."
            )
        check_number(name, number, dtype_name(query.dtype), small=name == "gate")
    return form, Scales(*(xp.asarray(given) if name in arrays else given for name, given in scales._asdict().items()))

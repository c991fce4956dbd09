"""Dot-product attention with three scales, each learned if so wished: of the scores, of the softmax, of the output."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, TypedDict, Unpack

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, SOFTMAX, AttentionContext, gradients, run_canonical
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.options import check_arrays, known_options, score_modifiers
from attnarray.attention.parts import declare
from attnarray.attention.products import (
    dot_products,
    hiding_product,
    sum_to_shape,
    weighted_sum,
    weighted_sum_over_queries,
)
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, dtype_name, namespace_of
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


@declare(PER_QUERY=("beta",), HELD=2, OVERWRITABLE=True)
class CappedDotProduct(NamedTuple):
    r"""The scorer of dot products with a softcap within an inverse temperature for each query.

    .. math:: s_{ij} = \beta_i\, e_{ij}, \qquad e_{ij} = c \tanh(\mathrm{scale}\; q_i \cdot k_j / c)
    """

    beta: Array  # (B, 1, T, 1)
    scale: float
    softcap: float

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        return self.beta * self._capped(q, k)

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, CappedDotProduct]:
        r"""The gradients of queries, keys and inverse temperatures.

        .. math::
            d\beta_i = \sum_j ds_{ij}\, e_{ij}, \quad
            g_{ij} = \mathrm{scale}\; \beta_i\, ds_{ij} \bigl(1 - (e_{ij} / c)^2\bigr), \quad
            dq_i = \sum_j g_{ij} k_j, \quad dk_j = \sum_i g_{ij} q_i
        """
        xp, capped = namespace_of(q), self._capped(q, k)
        dproducts = hiding_product(dscores, self.scale * self.beta * (1.0 - (capped / self.softcap) ** 2))
        dbeta = xp.sum(hiding_product(dscores, capped), axis=-1, keepdims=True)
        dq, dk = weighted_sum(dproducts, k), weighted_sum_over_queries(dproducts, q, 1)
        return dq, dk, self._replace(beta=dbeta)

    def _capped(self, q: Array, k: Array) -> Array:
        products = dot_products(q, k)
        return self.softcap * namespace_of(products).tanh(products * (self.scale / self.softcap))


class ScaledContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the queries before any scale, the scales, and the context of the attention."""

    query: ArrayT
    scales: Scales
    attention: AttentionContext


class ScaledGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    gate: ArrayT | None
    score_scale: ArrayT | None
    inverse_temperature: ArrayT | None
    bias: ArrayT | None


def scaled_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    gate: float | ArrayT | None = None,
    score_scale: float | ArrayT | None = None,
    inverse_temperature: float | ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScaledOptions],
) -> ArrayT:
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
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    gate: float | ArrayT | None = None,
    score_scale: float | ArrayT | None = None,
    inverse_temperature: float | ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScaledOptions],
) -> tuple[ArrayT, ScaledContext[ArrayT]]:
    """`scaled_attention`, with the same options, and the context for its backward."""
    known_options(options, ScaledOptions)
    given = Scales(gate, score_scale, inverse_temperature)
    layout, scales = _checked(attn_mask, options, query, key, value, given)
    beta, number = scales.array("inverse_temperature"), scales.number("inverse_temperature")
    scale = scales.number("score_scale", 1.0 / math.sqrt(query.shape[-1] or 1)) * number
    rules: dict[str, Any] = {**options, "scale": scale}
    capped = options.get("softcap") is not None
    if capped:  # beta c tanh(g q k / c) is c' tanh(beta g q k / c') with c' = |beta| c
        rules["softcap"] = checks.positive("softcap", options["softcap"]) * abs(number)  # type: ignore[arg-type]
    q, k, v = _times_rows(wide(query), scales.array("score_scale")), wide(key), wide(value)
    if beta is not None and not capped:
        q = _times_rows(q, beta)
    q, k, v = layout.canonical(q), layout.canonical(k), layout.canonical(v)
    modifiers, bias_shape = score_modifiers(q, k.shape[2], layout, attn_mask, dropout_p, is_causal, rules)
    scorer: Any = DOT_PRODUCT
    if beta is not None and modifiers.softcap is not None:
        betas = namespace_of(q).broadcast_to(beta[..., None], (*query.shape[:-1], 1))
        scorer = CappedDotProduct(layout.canonical(betas), modifiers.scale, modifiers.softcap)
        modifiers = modifiers._replace(scale=1.0, softcap=None)
    out, attention = run_canonical(AttentionContext, scorer, SOFTMAX, q, k, v, modifiers, layout, bias_shape)
    out = _times_rows(out, scales.array("gate")) * scales.number("gate")
    return narrow(out, query), ScaledContext(query, scales, attention)


@ignoring_fp_errors
def scaled_attention_bwd(
    dout: Array, ctx: ScaledContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> ScaledGrads[ArrayT]:
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
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

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
    attention, layout = ctx.attention, ctx.attention.layout
    checks.cotangent(dout, attention.out_shape, ctx.query)
    gamma, g, beta = (ctx.scales.array(name) for name in Scales._fields)
    dgate = None if gamma is None else _row_products(layout.restore(attention.out), wide(dout), gamma)
    du = _times_rows(wide(dout), gamma) * ctx.scales.number("gate")
    dbeta = dscale = None
    dq, dkey, dvalue, dbias, dscorer, *_ = gradients(du, attention, dlse, dweights)
    if isinstance(dscorer, CappedDotProduct):
        dbeta = sum_to_shape(layout.restore(dscorer.beta)[..., 0], tuple(beta.shape))
    elif beta is not None:  # a factor of the queries, as g is
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


def _checked(
    attn_mask: Any, options: Any, query: Array, key: Array, value: Array, scales: Scales
) -> tuple[Layout, Scales]:
    """Check everything that is given; return the layout of the sequences, and the scales as arrays or numbers."""
    checks.required(query=query, key=key, value=value)
    arrays = {name: given for name, given in scales._asdict().items() if checks.is_array(given)}
    xp = check_arrays(attn_mask, options, query=query, key=key, value=value, **arrays)
    layout = sequence_layout(query, key, value)
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
    return layout, Scales(*(xp.asarray(given) if name in arrays else given for name, given in scales._asdict().items()))

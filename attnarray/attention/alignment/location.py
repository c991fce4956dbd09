"""Location-aware attention: additive scores that also see the weights of the step before."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.additive import additive_scores, additive_scores_backward
from attnarray.attention.blocks import join, total_gradient
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.modifiers import ScoreModifiers, dropout_factor
from attnarray.attention.normalizers import masked_softmax, masked_softmax_backward
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.products import dot_products, sum_to_shape, weighted_sum, weighted_sum_over_queries
from attnarray.attention.sequences import narrow, result_cotangents, wide, without_padding
from attnarray.backend import Array, ArrayT, device_of, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.conv1d import Conv1dContext, conv1d_bwd, conv1d_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd


class Located(NamedTuple):
    """What all steps share, in float32 or float64. `before` is what is convolved in the first step."""

    k: Array  # (B, 1, S, A)
    v: Array  # (B, 1, S, Dv)
    score_vector: Array  # (A,)
    location_filter: Array  # (F, width)
    location_weight: Array  # (A, F)
    before: Array  # (B, 1, 1, S), 0 past the lengths
    cumulative: bool

    @property
    def maps(self) -> tuple[Array, Array]:
        """F and U, which together make the features of a step's keys from earlier weights."""
        return self.location_filter, self.location_weight


class LocationResult(NamedTuple, Generic[ArrayT]):
    """The output of every step, and its weights.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> query, key = rng.standard_normal((2, 1, 4)), rng.standard_normal((2, 7, 4))
    >>> result = aa.location_attention(query, key, key, np.ones(4), np.ones((3, 5)), np.ones((4, 3)))
    >>> result.out.shape, result.weights.shape
    ((2, 1, 4), (2, 1, 7))
    """

    out: ArrayT  # (*batch, T, Dv)
    weights: ArrayT | Any  # (*batch, T, S), before dropout; None in a cotangent that is 0


class LocationContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs as (B, 1, T, N), the weights and the lse; no scores, no tanh."""

    query: ArrayT
    q: ArrayT
    given: Located
    weights: ArrayT
    lse: ArrayT
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None
    has_previous: bool

    def weights_of_rows(self, rows: slice) -> ArrayT:
        """The weights of some queries: (B, 1, rows, S)."""
        return self.weights[:, :, rows, :]


class LocationGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    score_vector: ArrayT
    location_filter: ArrayT
    location_weight: ArrayT
    previous: ArrayT | None
    bias: ArrayT | None


def location_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    location_filter: ArrayT,
    location_weight: ArrayT,
    previous: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    cumulative: bool = False,
    **options: Unpack[ScoreOptions],
) -> LocationResult[ArrayT]:
    r"""Location-aware attention on projected queries and keys: one step of a decoder, or a whole run.

    .. math::
        f_i = F * \alpha_{i-1}, \qquad e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja} + (U f_{ij})_a), \qquad
        \alpha_i = \mathrm{softmax}_j(\mathrm{scale}\; e_{ij} + b_{ij}), \qquad o_i = \sum_j \alpha_{ij} v_j

    over the keys that every mask allows. The paper's e_ij = w^T tanh(W s_(i-1) + V h_j + U f_ij + b) is this with
    q = W s and k = V h + b; `layers.LocationAttention` has those parameters. The rows of `query` are steps, one after
    the other: each sees the weights of the one before. T calls with one row, each with the weights of the last one as
    `previous`, give the same.

    Parameters
    ----------
    query : (*batch, T, A) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, A)
    value : (*batch, S, Dv)
    score_vector : (A,)
        w.
    location_filter : (F, width)
        F filters of odd width, centered on j and not flipped, as in `conv1d` with padding "same".
    location_weight : (A, F)
        U.
    previous : (*batch, S), optional
        The weights before the first step, 0 by default. The paper leaves them open; its authors' code starts with
        all weight on the first key, others with equal weights. Any numbers will do, a distribution or not: the sums of
        several steps, say. Entries of keys past the length count as 0.
    attn_mask, dropout_p, is_causal, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `additive_attention`, where row i of the query is step i + q_offset. Dropout acts on the sum of the
        values, not on the weights that are given back or seen by the next step.
    scale : float
        1 by default. Above 1 it is the paper's sharpening, an inverse temperature.
    cumulative : bool
        Filter the sum of the weights of all steps before, and of `previous`, instead of those of the last one
        (Tacotron 2). To go step by step, hand on `previous + weights` then.

    Returns
    -------
    LocationResult
        out (*batch, T, Dv) and weights (*batch, T, S), of the dtype of query. A step for which nothing is allowed has
        weights 0 and gives 0.

    Raises
    ------
    ValueError
        If shapes do not fit, the width of the filters is even, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Often confused with Luong's location-based attention, which scores by the query alone. The paper's other two
    changes are not here: weights by sigmoids instead of exponentials ("smoothing"), and a window that follows the
    weights before; the second can be given step by step as `attn_mask`.

    References
    ----------
    Chorowski et al., "Attention-based models for speech recognition", 2015, arXiv:1506.07503. Cumulative: Shen et al.,
    "Natural TTS synthesis by conditioning WaveNet on mel spectrogram predictions", 2017, arXiv:1712.05884.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> query, key, w = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 7, 8)), rng.standard_normal(8)
    >>> maps = rng.standard_normal((3, 5)), rng.standard_normal((8, 3))
    >>> whole = aa.location_attention(query, key, key, w, *maps)
    >>> first = aa.location_attention(query[:, :1], key, key, w, *maps)
    >>> second = aa.location_attention(query[:, 1:2], key, key, w, *maps, previous=first.weights[:, 0])
    >>> bool(np.allclose(second.out, whole.out[:, 1:2]))
    True
    """
    return writable(location_attention_fwd(
        query, key, value, score_vector, location_filter, location_weight, previous, attn_mask, dropout_p, is_causal,
        cumulative=cumulative, **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def location_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    location_filter: ArrayT,
    location_weight: ArrayT,
    previous: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    cumulative: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[LocationResult[ArrayT], LocationContext[ArrayT]]:
    """`location_attention`, with the same options, and the context for its backward."""
    layout = _checked(
        attn_mask, options, query=query, key=key, value=value, score_vector=score_vector,
        location_filter=location_filter, location_weight=location_weight, previous=previous,
    )  # fmt: skip
    cumulative = checks.flag("cumulative", cumulative)
    q, k, v = (wide(layout.canonical(x)) for x in (query, key, value))
    modifiers, bias_shape = score_modifiers(q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options)
    before = _start(previous, k, modifiers)
    given = Located(k, v, wide(score_vector), wide(location_filter), wide(location_weight), before, cumulative)
    out, weights, lse = attend_by_location(q, given, modifiers)
    result = LocationResult(*(narrow(layout.restore(x), query) for x in (out, read_only(weights))))
    return result, LocationContext(query, q, given, weights, lse, modifiers, layout, bias_shape, previous is not None)


@ignoring_fp_errors
def location_attention_bwd(dout: LocationResult, ctx: LocationContext[ArrayT]) -> LocationGrads[ArrayT]:
    r"""The gradients of location-aware attention: back through the steps, and through the weights from step to step.

    .. math::
        d\alpha_{ij} = d\alpha^{\mathrm{given}}_{ij} + do_i \cdot v_j + (F^T df_{i+1})_j, \qquad
        de_{ij} = \mathrm{scale}\; \alpha_{ij} \Bigl(d\alpha_{ij} - \sum_l \alpha_{il}\, d\alpha_{il}\Bigr)

    .. math::
        g_{ija} = de_{ij}\, w_a (1 - h_{ija}^2), \quad df_{ij} = U^T g_{ij}, \quad
        dq_i = \sum_j g_{ij}, \quad dk_j = \sum_i g_{ij}, \quad dw = \sum_{ij} de_{ij} h_{ij}

    .. math::
        dU = \sum_{ij} g_{ij} f_{ij}^T, \quad dF_{fn} = \sum_{ij} df_{ijf}\, \alpha_{i-1,\, j - p + n}, \quad
        dv_j = \sum_i \alpha_{ij}\, do_i, \quad d\mathrm{previous} = F^T df_1

    where h is the hidden layer of the scores, p = (width - 1) / 2, and F^T the gradient of the convolution: (F^T df)_j
    is the sum over f and n of F_fn df_(j+p-n, f). With `cumulative` F^T df_(i+1) is that of all later steps together.

    Parameters
    ----------
    dout : LocationResult
        The cotangents of out and weights; None for one that does not count.
    ctx : LocationContext

    Returns
    -------
    LocationGrads
        One gradient per array, None for what was not given. That of `previous` goes on to the step before.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> query, key = np.random.default_rng(0).standard_normal((2, 2, 5, 4))
    >>> result, ctx = aa.location_attention_fwd(query, key, key, np.ones(4), np.ones((3, 5)), np.ones((4, 3)))
    >>> grads = aa.location_attention_bwd(aa.LocationResult(result.out, None), ctx)
    >>> grads.location_filter.shape
    (3, 5)
    """
    checks.context("ctx", ctx, LocationContext)
    layout, lengths = ctx.layout, ctx.modifiers.kv_lengths
    rows = (*layout.batch, ctx.q.shape[2])
    shapes = (*rows, ctx.given.v.shape[3]), (*rows, ctx.weights.shape[3])
    do, dweights = (layout.canonical(x) for x in result_cotangents(dout, LocationResult, shapes, ctx.query))
    dq, dk, dv, dw, dfilter, dweight, dbefore, dbias = attend_by_location_backward(
        do, dweights, ctx.q, ctx.given, ctx.weights, ctx.lse, ctx.modifiers
    )
    if dbias is not None and ctx.bias_shape is not None:
        dbias = layout.restore_bias(dbias, ctx.bias_shape)
    dprevious = None
    if ctx.has_previous:
        dprevious = layout.restore(without_padding(dbefore.mT, lengths))[..., 0]
    found = LocationGrads(
        layout.restore(dq), layout.restore(dk), layout.restore(dv), dw, dfilter, dweight, dprevious, dbias
    )
    return LocationGrads(*(narrow(grad, ctx.query) for grad in found))


@accelerated
def attend_by_location(q: Array, given: Located, modifiers: ScoreModifiers) -> tuple[Any, Any, Any]:
    r"""All steps of q (B, 1, T, A), one after the other.

    .. math::
        f_i = F * \alpha_{i-1}, \qquad e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja} + (U f_{ij})_a), \qquad
        \alpha_i = \mathrm{softmax}(e_i), \qquad o_i = \sum_j \alpha_{ij} v_j

    Returns
    -------
    out : (B, 1, T, Dv)
    weights : (B, 1, T, S)
        Before dropout.
    lse : (B, 1, T)
    """
    xp = namespace_of(q)
    kind = {"dtype": q.dtype, "device": device_of(q)}
    weights, lses = [xp.zeros((q.shape[0], 1, 0, given.k.shape[2]), **kind)], [xp.zeros((q.shape[0], 1, 0), **kind)]
    earlier = given.before
    for i in range(q.shape[2]):
        keys = keys_of_step(given, earlier).keys
        scores = additive_scores(q[:, :, i : i + 1, :], keys, given.score_vector)  # (B, 1, 1, S)
        step, lse = masked_softmax(scores, modifiers.rows(i, i + 1))
        earlier = earlier + step if given.cumulative else step
        weights.append(step)
        lses.append(lse)
    every = join(weights)
    factor = dropout_factor(modifiers, every.shape, every)
    used = every if factor is None else every * factor
    return weighted_sum(used, given.v, modifiers.hides()), every, join(lses)


@accelerated
def attend_by_location_backward(
    dout: Array, dweights: Array, q: Array, given: Located, weights: Array, lse: Array, modifiers: ScoreModifiers
) -> tuple[Any, ...]:
    r"""From the last step back to the first; the keys and the scores of each step are computed again.

    .. math::
        d\alpha_i \mathrel{+}= v\, do_i + F^T df_{i+1}, \qquad
        de_{ij} = \alpha_{ij} \Bigl(d\alpha_{ij} - \sum_l \alpha_{il}\, d\alpha_{il}\Bigr), \qquad
        df_{ij} = U^T g_{ij}, \qquad g_{ija} = de_{ij}\, w_a (1 - h_{ija}^2)

    where F^T is the gradient of the convolution and h the hidden layer. With `cumulative`, F^T df of every later step
    comes back.

    Parameters
    ----------
    dout : (B, 1, T, Dv), dweights : (B, 1, T, S)

    Returns
    -------
    dq : the shape of q
    dk, dv, dscore_vector, dlocation_filter, dlocation_weight, dbefore : the shapes of the fields of `given`
    dbias : the shape of modifiers.bias, or None
    """
    xp = namespace_of(dout, dweights, q)
    through, used, factor = dot_products(dout, given.v), weights, dropout_factor(modifiers, weights.shape, weights)
    if factor is not None:
        through, used = (xp.where(factor == 0, 0.0, x * factor) for x in (through, weights))
    dweights, dv = dweights + through, weighted_sum_over_queries(used, dout, 1, modifiers.hides())
    earlier, nothing, dqs = earlier_weights(given, weights), modifiers.rows(0, 0).bias, [q[:, :, :0, :]]
    dbiases = [] if nothing is None else [sum_to_shape(weights[:, :, :0, :], nothing.shape)]
    dk, dw, dfilter, dweight = (xp.zeros_like(x) for x in (given.k, given.score_vector, *given.maps))
    dearlier = xp.zeros_like(given.before)  # what comes back from the steps after
    for i in reversed(range(q.shape[2])):
        rows, block = slice(i, i + 1), modifiers.rows(i, i + 1)
        query, step, made = q[:, :, rows, :], weights[:, :, rows, :], keys_of_step(given, earlier[i])
        dstep = dweights[:, :, rows, :] + dearlier
        delta = xp.sum(xp.where(step == 0, 0.0, step * dstep), axis=-1)  # (B, 1, 1)
        scores = additive_scores(query, made.keys, given.score_vector)
        _, dscores, dmodified = masked_softmax_backward(scores, dstep, lse[:, :, rows], delta, block)
        dquery, dkeys, dw_step = additive_scores_backward(dscores, query, made.keys, given.score_vector)
        mapped = linear_bwd(dkeys, made.mapped)
        filtered = conv1d_bwd(mapped.x, made.filtered)
        dk, dw = dk + dkeys, dw + dw_step
        dfilter, dweight = dfilter + filtered.weight[:, 0, :], dweight + mapped.weight
        dearlier = filtered.x.mT + dearlier if given.cumulative else filtered.x.mT  # (B, 1, 1, S)
        dqs.insert(1, dquery)
        if dmodified is not None and block.bias is not None:
            dbiases.insert(1, sum_to_shape(dmodified, block.bias.shape))
    dbias = total_gradient(dbiases, modifiers.bias)
    return join(dqs), dk, dv, dw, dfilter, dweight, dearlier, dbias


class Keys(NamedTuple):
    """The keys of one step, k + U f, and the contexts of the two maps that made them."""

    keys: Array  # (B, 1, S, A)
    filtered: Conv1dContext
    mapped: LinearContext


def keys_of_step(given: Located, earlier: Array) -> Keys:
    """The keys for `earlier` weights (B, 1, 1, S)."""
    features, filtered = conv1d_fwd(earlier.mT, given.location_filter[:, None, :])  # (B, 1, S, F)
    moved, mapped = linear_fwd(features, given.location_weight)
    return Keys(given.k + moved, filtered, mapped)


def earlier_weights(given: Located, weights: Array) -> list[Array]:
    """What each step convolves, (B, 1, 1, S): the weights of the step before, or the sum of all so far."""
    earlier = [given.before]
    for i in range(weights.shape[2] - 1):
        step = weights[:, :, i : i + 1, :]
        earlier.append(earlier[-1] + step if given.cumulative else step)
    return earlier[: weights.shape[2]]


def _start(previous: Array | None, k: Array, modifiers: ScoreModifiers) -> Array:
    """What the first step filters, (B, 1, 1, S)."""
    xp = namespace_of(k)
    shape = (k.shape[0], 1, k.shape[2], 1)
    if previous is None:
        return xp.zeros(shape, dtype=k.dtype, device=device_of(k)).mT
    return without_padding(xp.reshape(wide(previous), shape), modifiers.kv_lengths).mT


def _checked(attn_mask: Array | Mask | None, options: Any, **arrays: Any) -> Layout:
    """Check the arguments, and return the layout of the sequences."""
    known_options(options, ScoreOptions)
    checks.required(**{name: array for name, array in arrays.items() if name != "previous"})
    check_arrays(attn_mask, options, **arrays)
    query, key, previous = arrays["query"], arrays["key"], arrays["previous"]
    layout = sequence_layout(query, key, arrays["value"])
    A, filters, weight = query.shape[-1], arrays["location_filter"], arrays["location_weight"]
    if key.shape[-1] != A:
        raise ValueError(
            f"`key` has {key.shape[-1]} features but `query` has {A}; they must match. Project them first, or use "
            f"layers.LocationAttention. {checks.shapes(query=query, key=key)}"
        )
    checks.shape("score_vector", arrays["score_vector"], (A,), "one number per feature of `query` and `key`")
    if filters.ndim != 2 or filters.shape[1] % 2 == 0:
        raise ValueError(
            f"`location_filter` has shape {tuple(filters.shape)}, expected (F, width) with an odd width: a filter of "
            "even width has no center."
        )
    F = filters.shape[0]
    checks.shape("location_weight", weight, (A, F), f"`query` has {A} features and `location_filter` {F} filters")
    if previous is not None:
        expected = (*layout.batch, key.shape[-2])
        checks.shape("previous", previous, expected, "(*batch, S), one weight for each key")
    return layout

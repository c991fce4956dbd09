"""Location-aware attention: additive scores that also see where the step before looked."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.additive_core import additive_scores
from attnarray.attention.alignment.location_core import (
    Located,
    attend_by_location,
    attend_by_location_backward,
    keys_of_step,
    looked_before,
)
from attnarray.attention.form import Form, sequence_form
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, scoring_of
from attnarray.attention.scoring import Scoring
from attnarray.attention.sequences import narrow, wide, without_padding
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable


class LocationResult(NamedTuple):
    """The output of every step, and where it looked.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> query, key = rng.standard_normal((2, 1, 4)), rng.standard_normal((2, 7, 4))
    >>> result = aa.location_attention(query, key, key, np.ones(4), np.ones((3, 5)), np.ones((4, 3)))
    >>> result.out.shape, result.weights.shape
    ((2, 1, 4), (2, 1, 7))
    """

    out: Array  # (*batch, T, Dv)
    weights: Array  # (*batch, T, S), before dropout


class LocationContext(NamedTuple):
    """What the backward needs: the inputs as (B, 1, T, N), the weights and the lse; no scores, no tanh."""

    query: Array
    q: Array
    given: Located
    weights: Array
    lse: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None
    has_previous: bool

    def dots(self, start: int, stop: int) -> Array:
        """The scores of the queries [start, stop) again, before scale, bias and masks: (B, 1, rows, S)."""
        looked = looked_before(self.given, self.weights)
        rows = [self.weights[:, :, :0, :]]
        for i in range(start, stop):
            keys = keys_of_step(self.given, looked[i]).keys
            rows.append(additive_scores(self.q[:, :, i : i + 1, :], keys, self.given.score_vector))
        return namespace_of(self.q).concat(rows, axis=2)


class LocationGrads(NamedTuple):
    query: Array
    key: Array
    value: Array
    score_vector: Array
    location_filter: Array
    location_weight: Array
    previous: Array | None
    bias: Array | None


def location_attention(
    query: Array,
    key: Array,
    value: Array,
    score_vector: Array,
    location_filter: Array,
    location_weight: Array,
    previous: Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    cumulative: bool = False,
    **options: Unpack[ScoreOptions],
) -> LocationResult:
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
        F filters of odd width, centred on j and not flipped, as in `conv1d` with padding "same".
    location_weight : (A, F)
        U.
    previous : (*batch, S), optional
        The weights before the first step, 0 by default. The paper leaves them open; its authors' code starts with
        all weight on the first key, others with equal weights. Any numbers will do, a distribution or not: the sums of
        several steps, say. What stands at keys past the length counts as 0.
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
    query: Array,
    key: Array,
    value: Array,
    score_vector: Array,
    location_filter: Array,
    location_weight: Array,
    previous: Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    cumulative: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[LocationResult, LocationContext]:
    """`location_attention`, with the same options, and the context for its backward."""
    form = _checked(
        attn_mask, options, query=query, key=key, value=value, score_vector=score_vector,
        location_filter=location_filter, location_weight=location_weight, previous=previous,
    )  # fmt: skip
    cumulative = checks.flag("cumulative", cumulative)
    q, k, v = (wide(form.canonical(x)) for x in (query, key, value))
    scoring, bias_shape = scoring_of(q, k.shape[2], form, attn_mask, dropout_p, is_causal, options)
    before = _start(previous, k, scoring)
    given = Located(k, v, wide(score_vector), wide(location_filter), wide(location_weight), before, cumulative)
    out, weights, lse = attend_by_location(q, given, scoring)
    result = LocationResult(*(narrow(form.restored(x), query) for x in (out, read_only(weights))))
    return result, LocationContext(query, q, given, weights, lse, scoring, form, bias_shape, previous is not None)


@ignoring_fp_errors
def location_attention_bwd(dout: LocationResult, ctx: LocationContext) -> LocationGrads:
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
    form, lengths = ctx.form, ctx.scoring.kv_lengths
    do, dweights = _cotangents(dout, ctx)
    dq, dk, dv, dw, dfilter, dweight, dbefore, dbias = attend_by_location_backward(
        do, dweights, ctx.q, ctx.given, ctx.weights, ctx.lse, ctx.scoring
    )
    if dbias is not None and ctx.bias_shape is not None:
        dbias = form.restored_bias(dbias, ctx.bias_shape)
    dprevious = None
    if ctx.has_previous:
        dprevious = form.restored(without_padding(dbefore.mT, lengths))[..., 0]
    found = LocationGrads(
        form.restored(dq), form.restored(dk), form.restored(dv), dw, dfilter, dweight, dprevious, dbias
    )
    return LocationGrads(*(narrow(grad, ctx.query) for grad in found))


def _start(previous: Array | None, k: Array, scoring: Scoring) -> Array:
    """What the first step filters, (B, 1, 1, S)."""
    xp = namespace_of(k)
    shape = (k.shape[0], 1, k.shape[2], 1)
    if previous is None:
        return xp.zeros(shape, dtype=k.dtype, device=device_of(k)).mT
    return without_padding(xp.reshape(wide(previous), shape), scoring.kv_lengths).mT


def _cotangents(dout: Any, ctx: LocationContext) -> list[Array]:
    """The cotangents of out (B, 1, T, Dv) and of the weights (B, 1, T, S); 0 where None."""
    if not isinstance(dout, tuple | list) or len(dout) != len(LocationResult._fields):
        raise TypeError(
            f"`dout` is {checks.shown(dout)}, expected LocationResult(out, weights): the cotangent of each, None for "
            "one that does not count."
        )
    named = {f"dout.{name}": array for name, array in zip(LocationResult._fields, dout, strict=True)}
    xp = checks.namespace(**named, query=ctx.query)
    found, rows = [], ctx.q.shape[2]
    for (name, array), width in zip(named.items(), (ctx.given.v.shape[3], ctx.weights.shape[3]), strict=True):
        if array is None:
            found.append(xp.zeros((ctx.q.shape[0], 1, rows, width), dtype=ctx.q.dtype, device=device_of(ctx.q)))
            continue
        checks.shape(name, array, (*ctx.form.batch, rows, width), "the shape of that result")
        checks.floating(**{name: array}, query=ctx.query)
        found.append(wide(ctx.form.canonical(array)))
    return found


def _checked(attn_mask: Array | Mask | None, options: Any, **arrays: Array) -> Form:
    """Check everything that is given, and tell the form of the sequences."""
    known_options(options, ScoreOptions)
    checks.required(**{name: array for name, array in arrays.items() if name != "previous"})
    check_arrays(attn_mask, options, **arrays)
    query, key, previous = arrays["query"], arrays["key"], arrays["previous"]
    form = sequence_form(query, key, arrays["value"])
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
            "even width has no centre."
        )
    F = filters.shape[0]
    checks.shape("location_weight", weight, (A, F), f"`query` has {A} features and `location_filter` {F} filters")
    if previous is not None:
        expected = (*form.batch, key.shape[-2])
        checks.shape("previous", previous, expected, "(*batch, S), one weight for each key")
    return form

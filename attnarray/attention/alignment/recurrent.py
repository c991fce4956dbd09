"""Attention with recurrent scores: for each query an LSTM reads the keys, and each of its states scores one pair."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.recurrent_core import Rows, Scorer, recurrent_scores, recurrent_scores_backward
from attnarray.attention.core import hiding_product, sum_to_shape, weigh, weigh_backward
from attnarray.attention.dot_product.projection import project, project_backward
from attnarray.attention.form import Form, sequence_form
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, scoring_of
from attnarray.attention.scoring import Scoring, allowed
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.linear import LinearContext


class RecurrentContext(NamedTuple):
    """What the backward needs: the inputs and the scores. The states of the LSTM are computed again."""

    key: Array
    query_map: LinearContext
    key_map: LinearContext
    rows: Rows
    scorer: Scorer
    v: Array
    scores: Array
    out: Array
    lse: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None
    state_shapes: tuple[tuple[int, ...] | None, ...]
    has_value: bool

    def dots(self, start: int, stop: int) -> Array:
        """The scores of the queries [start, stop), before scale, bias and masks: (B, 1, rows, S)."""
        return self.scores[:, :, start:stop, :]


class RecurrentGrads(NamedTuple):
    query: Array
    key: Array
    weight_ih: Array
    weight_hh: Array
    output_weight: Array
    score_vector: Array
    value: Array | None
    gate_bias: Array | None
    h0: Array | None
    c0: Array | None
    bias: Array | None


def recurrent_attention(
    query: Array,
    key: Array,
    weight_ih: Array,
    weight_hh: Array,
    output_weight: Array,
    score_vector: Array,
    value: Array | None = None,
    gate_bias: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> Array:
    r"""Attention whose scores come from an LSTM over the keys, one for each query.

    .. math::
        o_t = \sum_{t'} p_{tt'} v_{t'}, \qquad p_t = \mathrm{softmax}_{t'}(\mathrm{scale}\; e_{tt'} + b_{tt'}), \qquad
        e_{tt'} = v^T \tanh(W_r h_{tt'}), \qquad h_{tt'} = \mathrm{LSTM}([x_t; x_{t'}])_{t'}

    The LSTM goes over t' within each row t and starts anew in every row. Its product with [x_t; x_t'] is
    W_1 x_t + W_2 x_t', two maps of sequences, so that only the recurrence itself takes T S steps. A key that the masks
    hide from a query is no step of its row: the state stays as it is.

    Parameters
    ----------
    query : (*batch, T, Dq) floating
        x_t. float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, Dk)
        x_t'; in self-attention the same array as the query.
    weight_ih : (4 H, Dq + Dk)
        The rows of the gates i, f, g and o, as in `lstm`; the first Dq columns act on the query.
    weight_hh : (4 H, H)
    output_weight : (A, H)
        W_r.
    score_vector : (A,)
        v. A bias after it would have no effect.
    value : (*batch, S, Dv), optional
        The keys by default.
    gate_bias : (4 H,), optional
    h0, c0 : broadcastable to (*batch, T, H), optional
        The state that every row starts from, 0 by default.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `additive_attention`.

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    No publication has exactly this score. It is near the recurrent attention of Yang et al., where a recurrence reads
    the attention of earlier steps; here it reads the pairs of one step. A bias of -inf hides a score, but the key is
    still read: only masks take steps away.

    References
    ----------
    Near Yang et al., "Neural machine translation with recurrent attention modeling", 2016, arXiv:1607.05108.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> x, weight_ih, weight_hh = (rng.standard_normal(shape) for shape in ((2, 5, 3), (16, 6), (16, 4)))
    >>> output_weight, v = rng.standard_normal((8, 4)), rng.standard_normal(8)
    >>> aa.recurrent_attention(x, x, weight_ih, weight_hh, output_weight, v, kv_lengths=[5, 2]).shape
    (2, 5, 3)
    """
    return writable(recurrent_attention_fwd(
        query, key, weight_ih, weight_hh, output_weight, score_vector, value, gate_bias, h0, c0, attn_mask, dropout_p,
        is_causal, **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def recurrent_attention_fwd(
    query: Array,
    key: Array,
    weight_ih: Array,
    weight_hh: Array,
    output_weight: Array,
    score_vector: Array,
    value: Array | None = None,
    gate_bias: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[Array, RecurrentContext]:
    """`recurrent_attention`, with the same options, and the context for its backward."""
    form = _checked(
        attn_mask, options, query=query, key=key, value=value, weight_ih=weight_ih, weight_hh=weight_hh,
        output_weight=output_weight, score_vector=score_vector, gate_bias=gate_bias, h0=h0, c0=c0,
    )  # fmt: skip
    xp = namespace_of(query)
    q, k, v = (form.canonical(x) for x in (query, key, key if value is None else value))
    scoring, bias_shape = scoring_of(q, k.shape[2], form, attn_mask, dropout_p, is_causal, options)
    queries, query_map = project(q, weight_ih[:, : query.shape[-1]], gate_bias)  # (B, 1, T, 4 H)
    keys, key_map = project(k, weight_ih[:, query.shape[-1] :])  # (B, 1, S, 4 H)
    state = (*query.shape[:-1], weight_hh.shape[1])
    steps = _steps(scoring, queries, keys)
    starts = _start(h0, state, query, form), _start(c0, state, query, form)
    of_query, h, c = (_with_steps(x, steps) for x in (queries[:, 0, :, :], *starts))
    rows = Rows(of_query, keys[:, 0, :, :], h, c, steps)
    scorer = Scorer(*(wide(x) for x in (weight_hh, output_weight, score_vector)))
    scores = recurrent_scores(*rows, scorer)
    out, lse = weigh(xp.asarray(scores, copy=True), wide(v), scoring)
    shapes = tuple(None if x is None else tuple(x.shape) for x in (h0, c0))
    ctx = RecurrentContext(
        key, query_map, key_map, rows, scorer, wide(v), scores, out, lse, scoring, form, bias_shape, shapes,
        value is not None,
    )  # fmt: skip
    return read_only(narrow(form.restored(out), query)), ctx


@ignoring_fp_errors
def recurrent_attention_bwd(dout: Array, ctx: RecurrentContext) -> RecurrentGrads:
    r"""The gradients of attention with recurrent scores: backpropagation through the keys of every row.

    .. math::
        de_{tt'} = \mathrm{scale}\; p_{tt'} (do_t \cdot v_{t'} - do_t \cdot o_t), \qquad
        dz_{tt'} = de_{tt'}\, v \odot (1 - \tanh^2(W_r h_{tt'})), \qquad
        dh_{tt'} \mathrel{+}= W_r^T dz_{tt'}

    .. math::
        dW_r = \sum_{tt'} dz_{tt'} h_{tt'}^T, \quad dv = \sum_{tt'} de_{tt'} \tanh(W_r h_{tt'}), \quad
        dx_t = W_1^T \sum_{t'} da_{tt'}, \quad dx_{t'} = W_2^T \sum_t da_{tt'}

    with the gradients a of the sums in the gates as in `lstm_bwd`, from the last key of a row to its first. What is
    left of the gradients of the state at the first key is that of h0 and c0.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : RecurrentContext

    Returns
    -------
    RecurrentGrads
        One gradient per array, None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> x, maps = rng.standard_normal((2, 5, 3)), [rng.standard_normal(shape) for shape in ((16, 6), (16, 4), (8, 4))]
    >>> out, ctx = aa.recurrent_attention_fwd(x, x, *maps, np.ones(8))
    >>> aa.recurrent_attention_bwd(np.ones_like(out), ctx).weight_hh.shape
    (16, 4)
    """
    checks.context("ctx", ctx, RecurrentContext)
    form, xp = ctx.form, checks.cotangent(dout, tuple(ctx.form.restored(ctx.out).shape), ctx.key)
    do = wide(form.canonical(dout))
    delta = xp.sum(hiding_product(ctx.out, do), axis=-1)
    scores = xp.asarray(ctx.scores, copy=True)
    dscores, dv, dbias = weigh_backward(do, scores, ctx.v, ctx.lse, delta, ctx.scoring)
    drows, dscorer = recurrent_scores_backward(dscores, ctx.rows, ctx.scorer)
    query = project_backward(drows.queries[:, None, :, :], ctx.query_map)
    key = project_backward(drows.keys[:, None, :, :], ctx.key_map)
    if dbias is not None and ctx.bias_shape is not None:
        dbias = form.restored_bias(dbias, ctx.bias_shape)
    dh0, dc0 = (
        None if shape is None else sum_to_shape(form.restored(dx[:, None, :, :]), shape)
        for dx, shape in zip((drows.h0, drows.c0), ctx.state_shapes, strict=True)
    )
    found = RecurrentGrads(
        form.restored(query.x), form.restored(key.x if ctx.has_value else key.x + dv),
        xp.concat([query.weight, key.weight], axis=1), dscorer.hidden_weight, dscorer.output_weight,
        dscorer.score_vector, form.restored(dv) if ctx.has_value else None, query.bias, dh0, dc0, dbias,
    )  # fmt: skip
    return RecurrentGrads(*(narrow(grad, ctx.key) for grad in found))


def _start(state: Array | None, shape: tuple[int, ...], like: Array, form: Form) -> Array:
    """The states before the first key: (B, T, H)."""
    xp = namespace_of(like)
    if state is None:
        state = xp.zeros(shape, dtype=like.dtype, device=device_of(like))
    return wide(form.canonical(xp.broadcast_to(state, shape)))[:, 0, :, :]


def _steps(scoring: Scoring, queries: Array, keys: Array) -> Array | None:
    """Where there is a step of a row, (B, T, S); None for everywhere."""
    batch, _, T, _ = queries.shape
    S = keys.shape[2]
    seen = allowed(scoring, T, S, queries)
    return None if seen is None else namespace_of(queries).broadcast_to(seen, (batch, 1, T, S))[:, 0, :, :]


def _with_steps(x: Array, steps: Array | None) -> Array:
    """x (B, T, N) with 0 in rows without any step: what the LSTM of such a row holds must not be multiplied by 0."""
    xp = namespace_of(x)
    return x if steps is None else xp.where(xp.any(steps, axis=-1)[..., None], x, 0.0)


def _checked(attn_mask: Array | Mask | None, options: Any, **arrays: Array) -> Form:
    """Check everything that is given, and tell the form of the sequences."""
    known_options(options, ScoreOptions)
    optional = ("value", "gate_bias", "h0", "c0")
    checks.required(**{name: array for name, array in arrays.items() if name not in optional})
    check_arrays(attn_mask, options, **arrays)
    query, key, weight = arrays["query"], arrays["key"], arrays["weight_ih"]
    form = sequence_form(query, key, key if arrays["value"] is None else arrays["value"])
    named = checks.shapes(query=query, key=key, weight_ih=weight)
    width = query.shape[-1] + key.shape[-1]
    if weight.ndim != 2 or weight.shape[0] % 4 or weight.shape[1] != width:
        raise ValueError(
            f"`weight_ih` has shape {tuple(weight.shape)}, expected (4 H, {width}): rows for the four gates, "
            f"{query.shape[-1]} columns for the query and {key.shape[-1]} for the key. {named}"
        )
    hidden = weight.shape[0] // 4
    because = f"H = {hidden}, a quarter of the rows of `weight_ih`"
    checks.shape("weight_hh", arrays["weight_hh"], (4 * hidden, hidden), because)
    features = arrays["score_vector"].shape[0] if arrays["score_vector"].ndim else 0
    checks.shape("output_weight", arrays["output_weight"], (features, hidden), f"one row per score, {because}")
    checks.shape("score_vector", arrays["score_vector"], (features,), "one number per row of `output_weight`")
    if arrays["gate_bias"] is not None:
        checks.shape("gate_bias", arrays["gate_bias"], (4 * hidden,), "one number per row of `weight_ih`")
    for name in ("h0", "c0"):
        if arrays[name] is not None:
            checks.broadcasts(name, arrays[name], (*query.shape[:-1], hidden), "(*batch, T, H)")
    return form

"""Attention with recurrent scores: for each query an LSTM reads the keys, and each of its states scores one pair.

All rows of a block of queries take their steps together. The gates of every step are computed again in the backward
pass, so that no more is ever held than those of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.blocks import join, ranges
from attnarray.attention.engine import SOFTMAX, AttentionContext, gradients, run_canonical
from attnarray.attention.layout import Layout, sequence_layout
from attnarray.attention.modifiers import ScoreModifiers, allowed
from attnarray.attention.options import ScoreOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.parts import declare
from attnarray.attention.products import sum_to_shape
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT, device_of, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.activations import _tanh
from attnarray.ops.linear import LinearContext
from attnarray.ops.lstm_cell import lstm_cell, lstm_cell_backward

# Numbers held at a time: gates and states of all steps of a block of queries.
HELD = 2**24


class ScoreParams(NamedTuple):
    """The parameters of the score, in the dtype of sums."""

    hidden_weight: Array  # W_hh (4 H, H)
    output_weight: Array  # W_r (A, H)
    score_vector: Array  # (A,)


class Rows(NamedTuple):
    """What the LSTM of each query starts from and sees, (B, T, ...)."""

    queries: Array  # (B, T, 4 H): what the query adds to every gate
    keys: Array  # (B, S, 4 H): what the key of a step adds
    h0: Array  # (B, T, H)
    c0: Array  # (B, T, H)
    steps: Array | None  # (B, T, S) bool: where there is a step; elsewhere the state stays as it is

    def block(self, rows: slice) -> Rows:
        """These queries."""
        queries, h0, c0 = (x[:, rows, :] for x in (self.queries, self.h0, self.c0))
        return Rows(queries, self.keys, h0, c0, None if self.steps is None else self.steps[:, rows, :])

    def ranges(self) -> Iterator[slice]:
        """Ranges of queries, so that the gates and states of all steps of a range are held at a time."""
        batch, queries, gates = self.queries.shape
        return ranges(queries, 2 * batch * self.keys.shape[1] * gates, HELD)


@declare(PER_QUERY=("values",), GROUPED=True)
class Precomputed(NamedTuple):
    """The scorer of scores that were computed for all pairs, in one pass over the keys."""

    values: Array  # (B, H, T, S)

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        return self.values

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, Precomputed]:
        """The gradient of the scores; queries and keys have none."""
        xp = namespace_of(q, k)
        return xp.zeros_like(q), xp.zeros_like(k), Precomputed(dscores)


class RecurrentContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs and the scores. The states of the LSTM are computed again."""

    key: ArrayT
    query_map: LinearContext
    key_map: LinearContext
    rows: Rows
    params: ScoreParams
    attention: AttentionContext
    state_shapes: tuple[tuple[int, ...] | None, ...]
    has_value: bool


class RecurrentGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    weight_ih: ArrayT
    weight_hh: ArrayT
    output_weight: ArrayT
    score_vector: ArrayT
    value: ArrayT | None
    gate_bias: ArrayT | None
    h0: ArrayT | None
    c0: ArrayT | None
    bias: ArrayT | None


def recurrent_attention(
    query: ArrayT,
    key: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    output_weight: ArrayT,
    score_vector: ArrayT,
    value: ArrayT | None = None,
    gate_bias: ArrayT | None = None,
    h0: ArrayT | None = None,
    c0: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> ArrayT:
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
    query: ArrayT,
    key: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    output_weight: ArrayT,
    score_vector: ArrayT,
    value: ArrayT | None = None,
    gate_bias: ArrayT | None = None,
    h0: ArrayT | None = None,
    c0: ArrayT | None = None,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, RecurrentContext[ArrayT]]:
    """`recurrent_attention`, with the same options, and the context for its backward."""
    layout = _checked(
        attn_mask, options, query=query, key=key, value=value, weight_ih=weight_ih, weight_hh=weight_hh,
        output_weight=output_weight, score_vector=score_vector, gate_bias=gate_bias, h0=h0, c0=c0,
    )  # fmt: skip
    q, k, v = (layout.canonical(x) for x in (query, key, key if value is None else value))
    modifiers, bias_shape = score_modifiers(q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options)
    queries, query_map = project(q, weight_ih[:, : query.shape[-1]], gate_bias)  # (B, 1, T, 4 H)
    keys, key_map = project(k, weight_ih[:, query.shape[-1] :])  # (B, 1, S, 4 H)
    state = (*query.shape[:-1], weight_hh.shape[1])
    steps = _steps(modifiers, queries, keys)
    starts = _start(h0, state, query, layout), _start(c0, state, query, layout)
    q_steps, h, c = (_with_steps(x, steps) for x in (queries[:, 0, :, :], *starts))
    rows = Rows(q_steps, keys[:, 0, :, :], h, c, steps)
    params = ScoreParams(*(wide(x) for x in (weight_hh, output_weight, score_vector)))
    scorer = Precomputed(recurrent_scores(*rows, params))
    none = queries[..., :0], keys[..., :0]  # the scores are all that is needed of queries and keys
    out, attention = run_canonical(AttentionContext, scorer, SOFTMAX, *none, wide(v), modifiers, layout, bias_shape)
    shapes = tuple(None if x is None else tuple(x.shape) for x in (h0, c0))
    ctx = RecurrentContext(key, query_map, key_map, rows, params, attention, shapes, value is not None)
    return read_only(narrow(out, query)), ctx


@ignoring_fp_errors
def recurrent_attention_bwd(
    dout: Array, ctx: RecurrentContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> RecurrentGrads[ArrayT]:
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
    dlse, dweights : optional
        Cotangents of the lse (*batch, T) and of the weights (*batch, T, S).

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
    layout: Any = ctx.attention.layout
    xp = checks.cotangent(dout, ctx.attention.out_shape, ctx.key)
    grads = gradients(wide(dout), ctx.attention, dlse, dweights)
    drows, dparams = recurrent_scores_backward(grads.scorer.values, ctx.rows, ctx.params)
    query = project_backward(drows.queries[:, None, :, :], ctx.query_map)
    key = project_backward(drows.keys[:, None, :, :], ctx.key_map)
    dkey = layout.restore(key.x)
    dh0, dc0 = (
        None if shape is None else sum_to_shape(layout.restore(dx[:, None, :, :]), shape)
        for dx, shape in zip((drows.h0, drows.c0), ctx.state_shapes, strict=True)
    )
    found = RecurrentGrads(
        layout.restore(query.x), dkey if ctx.has_value else dkey + grads.value,
        xp.concat([query.weight, key.weight], axis=1), *dparams, grads.value if ctx.has_value else None, query.bias,
        dh0, dc0, grads.bias,
    )  # fmt: skip
    return RecurrentGrads(*(narrow(grad, ctx.key) for grad in found))


@accelerated
def recurrent_scores(
    queries: Array, keys: Array, h0: Array, c0: Array, steps: Array | None, params: ScoreParams
) -> Array:
    r"""The scores of all pairs, (B, 1, T, S), for the fields of `Rows`.

    .. math::
        e_{ij} = v \cdot \tanh(W_r h_{ij}), \qquad
        (h_{ij}, c_{ij}) = \mathrm{cell}(q_i + k_j + W_{hh} h_{i,j-1}, c_{i,j-1})
    """
    rows, blocks = Rows(queries, keys, h0, c0, steps), []
    for span in rows.ranges():
        xp = namespace_of(rows.queries)
        block, scores = rows.block(span), []
        h, c = block.h0, block.c0
        for j in range(rows.keys.shape[1]):
            _, h, c = _step(block, j, h, c, params)
            scores.append(xp.matmul(_tanh(xp.matmul(h, params.output_weight.mT)), params.score_vector))
        blocks.append(_stacked(scores, block)[:, None, :, :])
    return join(blocks)


@accelerated
def recurrent_scores_backward(dscores: Array, rows: Rows, params: ScoreParams) -> tuple[Rows, ScoreParams]:
    r"""The gradients of the scores, by backpropagation through the keys of every query.

    .. math::
        dh_{ij} \mathrel{+}= W_r^T \bigl(de_{ij}\, v \odot (1 - \tanh^2(W_r h_{ij}))\bigr), \qquad
        dq_i = \sum_j da_{ij}, \quad dk_j = \sum_i da_{ij}, \quad dh_{i,j-1} = W_{hh}^T da_{ij}

    with the gradients a of the sums in the gates, as `lstm_bwd` has them.
    """
    xp = namespace_of(dscores)
    parts = []
    dkeys = xp.zeros_like(rows.keys)
    dparams = ScoreParams(*(xp.zeros_like(x) for x in params))
    for span in rows.ranges():
        part, dparams_part = _block_backward(dscores[:, 0, span, :], rows.block(span), params)
        dkeys = dkeys + part.keys
        dparams = ScoreParams(*(total + x for total, x in zip(dparams, dparams_part, strict=True)))
        parts.append(part)
    queries, h0, c0 = (xp.concat([getattr(part, name) for part in parts], axis=1) for name in ("queries", "h0", "c0"))
    return Rows(queries, dkeys, h0, c0, None), dparams


def _block_backward(dscores: Array, rows: Rows, params: ScoreParams) -> tuple[Rows, ScoreParams]:
    xp = namespace_of(dscores)
    keys = rows.keys.shape[1]
    kept, h, c = [], rows.h0, rows.c0
    for j in range(keys):
        before = h, c
        gates, h, c = _step(rows, j, h, c, params)
        kept.append((gates, *before, h, c))
    dh, dc, dqueries = xp.zeros_like(rows.h0), xp.zeros_like(rows.c0), xp.zeros_like(rows.queries)
    dkeys = []
    dhidden, doutput, dvector = (xp.zeros_like(x) for x in params)
    for j in reversed(range(keys)):
        gates, h_before, c_before, h, c = kept.pop()
        read = _tanh(xp.matmul(h, params.output_weight.mT))  # (B, rows, A)
        ds = dscores[:, :, j, None]
        dread = ds * params.score_vector * (1.0 - read * read)
        dvector = dvector + xp.sum(ds * read, axis=(0, 1))
        doutput = doutput + _products(dread, h)
        dh = dh + xp.matmul(dread, params.output_weight)
        da, dc_before = lstm_cell_backward(dh, dc, gates, c_before, c)
        if rows.steps is not None:  # where there was no step, the state and its gradient pass by
            there = rows.steps[:, :, j, None]
            da, dc_before = xp.where(there, da, 0.0), xp.where(there, dc_before, dc)
            dh = xp.where(there, xp.matmul(da, params.hidden_weight), dh)
        else:
            dh = xp.matmul(da, params.hidden_weight)
        dc = dc_before
        dhidden = dhidden + _products(da, h_before)
        dqueries = dqueries + da
        dkeys.append(xp.sum(da, axis=1))  # (B, 4 H)
    dkeys = xp.stack(dkeys[::-1], axis=1) if dkeys else xp.zeros_like(rows.keys)
    return Rows(dqueries, dkeys, dh, dc, None), ScoreParams(dhidden, doutput, dvector)


def _step(rows: Rows, j: int, h: Array, c: Array, params: ScoreParams) -> tuple[Array, Array, Array]:
    """The gates of a step, and the state after it."""
    xp = namespace_of(h)
    sums = xp.matmul(h, params.hidden_weight.mT)  # (B, rows, 4 H)
    gates, h_new, c_new = lstm_cell(sums, rows.queries + rows.keys[:, j : j + 1, :], c)
    if rows.steps is None:
        return gates, h_new, c_new
    there = rows.steps[:, :, j, None]
    return gates, xp.where(there, h_new, h), xp.where(there, c_new, c)


def _products(x: Array, y: Array) -> Array:
    """sum over batches and rows of x y^T: (N, M)."""
    xp = namespace_of(x)
    x, y = (xp.reshape(z, (z.shape[0] * z.shape[1], z.shape[2])) for z in (x, y))
    return xp.matmul(x.mT, y)


def _stacked(scores: list[Array], rows: Rows) -> Array:
    """(B, rows) of each key -> (B, rows, S)."""
    xp = namespace_of(rows.queries)
    if scores:
        return xp.stack(scores, axis=-1)
    return xp.zeros((*rows.queries.shape[:2], 0), dtype=rows.queries.dtype, device=device_of(rows.queries))


def _start(state: Array | None, shape: tuple[int, ...], like: Array, layout: Layout) -> Array:
    """The states before the first key: (B, T, H)."""
    xp = namespace_of(like)
    if state is None:
        state = xp.zeros(shape, dtype=like.dtype, device=device_of(like))
    return wide(layout.canonical(xp.broadcast_to(state, shape)))[:, 0, :, :]


def _steps(modifiers: ScoreModifiers, queries: Array, keys: Array) -> Array | None:
    """Where there is a step of a row, (B, T, S); None for everywhere."""
    batch, _, T, _ = queries.shape
    S = keys.shape[2]
    seen = allowed(modifiers, T, S, queries)
    return None if seen is None else namespace_of(queries).broadcast_to(seen, (batch, 1, T, S))[:, 0, :, :]


def _with_steps(x: Array, steps: Array | None) -> Array:
    """x (B, T, N) with 0 in rows without any step: what the LSTM of such a row holds must not be multiplied by 0."""
    xp = namespace_of(x)
    return x if steps is None else xp.where(xp.any(steps, axis=-1)[..., None], x, 0.0)


def _checked(attn_mask: Array | Mask | None, options: Any, **arrays: Any) -> Layout:
    """Check the arguments, and return the layout of the sequences."""
    known_options(options, ScoreOptions)
    optional = ("value", "gate_bias", "h0", "c0")
    checks.required(**{name: array for name, array in arrays.items() if name not in optional})
    check_arrays(attn_mask, options, **arrays)
    query, key, weight = arrays["query"], arrays["key"], arrays["weight_ih"]
    layout = sequence_layout(query, key, key if arrays["value"] is None else arrays["value"])
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
    return layout

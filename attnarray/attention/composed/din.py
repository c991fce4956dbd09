"""The activation unit of deep interest networks: a network scores each pair of candidate and behavior."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.blocks import join, query_blocks
from attnarray.attention.engine import SOFTMAX, AttentionContext, gradients, run
from attnarray.attention.layout import sequence_layout
from attnarray.attention.options import ScoreOptions, check_arrays, known_options
from attnarray.attention.parts import declare
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.ops.activations import silu_bwd, silu_fwd


@declare(HELD=3, OVERWRITABLE=True)  # beside the hidden layer, which has blocks of its own
class ActivationUnit(NamedTuple):
    r"""The scorer: a network with one hidden layer reads query, key and their product.

    .. math:: e_{ij} = w \cdot \mathrm{silu}(W_1 q_i + b + M_i k_j), \qquad M_i = W_2 + W_3\, \mathrm{diag}(q_i)

    W = [W_1, W_2, W_3]. So each query has a linear map M_i of its own, and no product of query and key is laid out.
    """

    weight: Array  # (A, 3 D)
    bias: Array  # (A,)
    score_vector: Array  # (A,)

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        xp = namespace_of(q)
        parts = query_blocks(q, k, self.bias.shape[0])
        hidden = (silu_fwd(self._hidden(q[:, :, part, :], k)[0])[0] for part in parts)
        return join([xp.matmul(each, self.score_vector[:, None])[..., 0] for each in hidden])

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, ActivationUnit]:
        r"""The gradients; the hidden layer h = silu(a) is computed again.

        .. math::
            dw = \sum_{ij} de_{ij} h_{ij}, \qquad da_{ij} = de_{ij}\, \mathrm{silu}'(a_{ij}) \odot w, \qquad
            dM_i = \sum_j da_{ij} k_j^T

        .. math::
            dk_j = \sum_i M_i^T da_{ij}, \qquad dq_i = W_1^T \sum_j da_{ij} + \sum_a (W_3 \odot dM_i)_a, \qquad
            db = \sum_{ij} da_{ij}

        .. math::
            dW_1 = \sum_{ij} da_{ij} q_i^T, \qquad dW_2 = \sum_i dM_i, \qquad dW_3 = \sum_i dM_i\, \mathrm{diag}(q_i)

        Where a score has gradient 0, the pair does not matter, even if it holds NaN.
        """
        xp, D = namespace_of(q), q.shape[3]
        first, _, third = (self.weight[:, n * D : (n + 1) * D] for n in range(3))
        dqs: list[Array] = []
        dk: Any = xp.zeros_like(k)
        dweight, dbias, dvector = xp.zeros_like(self.weight), xp.zeros_like(self.bias), xp.zeros_like(self.bias)
        for part in query_blocks(q, k, self.bias.shape[0]):
            de = dscores[:, :, part, :, None]
            queries = xp.where(xp.any(de != 0, axis=(3, 4))[..., None], q[:, :, part, :], 0.0)
            before, maps = self._hidden(queries, k)
            hidden, ctx = silu_fwd(before)
            dvector = dvector + xp.sum(xp.where(de == 0, 0.0, de * hidden), axis=(0, 1, 2, 3))
            da = xp.where(de == 0, 0.0, silu_bwd(de * self.score_vector, ctx).x)  # (B, H, rows, S, A)
            seen = xp.where(xp.any(de != 0, axis=(2, 4))[..., None], k, 0.0)
            dmaps = xp.matmul(da.mT, seen[:, :, None, :, :])  # (B, H, rows, A, D)
            sums = xp.sum(da, axis=3)  # (B, H, rows, A)
            dk = dk + xp.sum(xp.matmul(da, maps), axis=2)
            dqs.append(xp.matmul(sums, first) + xp.sum(dmaps * third, axis=3))
            outer = sums[..., None] * queries[..., None, :]
            parts = [xp.sum(each, axis=(0, 1, 2)) for each in (outer, dmaps, dmaps * queries[..., None, :])]
            dweight = dweight + xp.concat(parts, axis=1)
            dbias = dbias + xp.sum(sums, axis=(0, 1, 2))
        return join(dqs), dk, ActivationUnit(dweight, dbias, dvector)

    def _hidden(self, queries: Array, k: Array) -> tuple[Array, Array]:
        """The hidden layer before its activation (B, H, rows, S, A), and the maps M (B, H, rows, A, D)."""
        xp, D = namespace_of(queries), queries.shape[3]
        first, second, third = (self.weight[:, n * D : (n + 1) * D] for n in range(3))
        maps = second + third * queries[..., None, :]
        own = xp.matmul(queries, first.mT) + self.bias  # (B, H, rows, A)
        return xp.matmul(k[:, :, None, :, :], maps.mT) + own[..., None, :], maps


class Unnormalized(NamedTuple):
    """The scores themselves as weights, and 0 where a key is masked."""

    def weights(self, scores: Array, rows: slice) -> tuple[Array, None]:
        return namespace_of(scores).where(scores == -math.inf, 0.0, scores), None

    def backward(
        self, dweights: Array, dkept: None, weights: Array, kept: None, scores: Array, rows: slice
    ) -> tuple[Array, Unnormalized]:
        return namespace_of(scores).where(scores == -math.inf, 0.0, dweights), self


class DINContext(AttentionContext[ArrayT]):
    """The context of the backward: canonical inputs, and with normalized weights the output and the lse."""

    __slots__ = ()


class DINGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    weight: ArrayT
    unit_bias: ArrayT
    score_vector: ArrayT
    bias: ArrayT | None


def din_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    weight: ArrayT,
    unit_bias: ArrayT,
    score_vector: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    normalize: bool = False,
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Attention of candidates to a history by the activation unit of deep interest networks (DIN).

    .. math::
        o_i = \sum_j e_{ij} v_j, \qquad
        e_{ij} = w \cdot \mathrm{silu}(W [q_i; k_j; q_i \odot k_j] + b)

    The weights are the scores themselves: their sum says how much of the history is near the candidate. With
    `normalize` they are softmax(e).

    Parameters
    ----------
    query : (*batch, T, D) floating
        Candidates: float64, float32, float16 or bfloat16; the 16-bit types are computed in float32.
    key : (*batch, S, D)
        The history.
    value : (*batch, S, Dv)
        What is summed; in the paper the keys.
    weight : (A, 3 D)
        W: columns 0 to D act on the query, D to 2 D on the key, 2 D to 3 D on their product.
    unit_bias : (A,)
        b.
    score_vector : (A,)
        w.
    attn_mask, dropout_p, is_causal, bias, scale, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `additive_attention`. A floating mask and a bias are added to e; a boolean mask makes weights 0.
    normalize : bool
        Whether the weights are normalized by a softmax.

    Returns
    -------
    (*batch, T, Dv) of the dtype of query
        A candidate for which nothing is allowed gives 0.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Authors' code also reads the difference q - k, which is a linear map of q and k, and has other activations: sigmoid,
    PReLU, or Dice, which is silu of normalized inputs where its slope is 0.

    References
    ----------
    Zhou et al., "Deep interest network for click-through rate prediction", 2017, arXiv:1706.06978.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> candidate, history = rng.standard_normal((2, 1, 4)), rng.standard_normal((2, 6, 4))
    >>> weight, b, w = rng.standard_normal((8, 12)), np.zeros(8), rng.standard_normal(8)
    >>> aa.din_attention(candidate, history, history, weight, b, w, kv_lengths=[6, 2]).shape
    (2, 1, 4)
    """
    return writable(din_attention_fwd(
        query, key, value, weight, unit_bias, score_vector, attn_mask, dropout_p, is_causal, normalize=normalize,
        **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def din_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    weight: ArrayT,
    unit_bias: ArrayT,
    score_vector: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    normalize: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, DINContext[ArrayT]]:
    """`din_attention`, with the same options, and the context for its backward."""
    known_options(options, ScoreOptions)
    arrays = {
        "query": query, "key": key, "value": value, "weight": weight, "unit_bias": unit_bias,
        "score_vector": score_vector,
    }  # fmt: skip
    checks.required(**arrays)
    check_arrays(attn_mask, options, **arrays)
    normalize = checks.flag("normalize", normalize)
    layout = sequence_layout(query, key, value)
    D, named = query.shape[-1], checks.shapes(query=query, key=key, weight=weight)
    if key.shape[-1] != D or weight.ndim != 2 or weight.shape[1] != 3 * D:
        raise ValueError(
            "`query` (*batch, T, D) and `key` (*batch, S, D) must have equally many features D, and `weight` (A, 3 D) "
            f"columns for query, key and their product. {named}"
        )
    for name in ("unit_bias", "score_vector"):
        checks.shape(name, arrays[name], (weight.shape[0],), f"one number per row of `weight`. {named[:-1]}")
    scorer = ActivationUnit(wide(weight), wide(unit_bias), wide(score_vector))
    given: Any = (query, key, value)
    normalizer = SOFTMAX if normalize else Unnormalized()
    return run(DINContext, scorer, normalizer, layout, given, attn_mask, dropout_p, is_causal, options)


@ignoring_fp_errors
def din_attention_bwd(
    dout: Array, ctx: DINContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> DINGrads[ArrayT]:
    r"""The gradients of `din_attention`.

    .. math::
        dv_j = \sum_i e_{ij}\, do_i, \qquad de_{ij} = do_i \cdot v_j, \qquad
        da_{ij} = de_{ij}\, \mathrm{silu}'(a_{ij}) \odot w

    and from da those of q, k, W, b and w, as in `ActivationUnit.backward`. With normalized weights p,
    de_ij = p_ij (do_i . v_j - do_i . o_i).

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : DINContext
    dlse, dweights : optional
        Cotangents of the lse (*batch, T), with normalized weights only, and of the weights (*batch, T, S).

    Returns
    -------
    DINGrads
        query, key, value, weight, unit_bias, score_vector, bias (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, weight = np.random.default_rng(0).standard_normal((2, 5, 3)), np.ones((4, 9))
    >>> out, ctx = aa.din_attention_fwd(x, x, x, weight, np.zeros(4), np.ones(4))
    >>> aa.din_attention_bwd(np.ones_like(out), ctx).weight.shape
    (4, 9)
    """
    checks.context("ctx", ctx, DINContext)
    grads = gradients(dout, ctx, dlse, dweights)
    weight, unit_bias, score_vector = (narrow(grad, ctx.q) for grad in grads.scorer)
    return DINGrads(grads.query, grads.key, grads.value, weight, unit_bias, score_vector, grads.bias)

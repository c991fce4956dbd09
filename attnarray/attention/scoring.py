"""How dot products become attention weights, and the way back: the one elementwise stage of attention.

dots -> scale -> softcap -> + bias -> mask -> softmax (with sinks) -> weights
"""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import NamedTuple

from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.masks import band, within
from attnarray.random import attention_keep_mask


class Dropout(NamedTuple):
    """Dropout of attention weights: by an explicit keep-mask, else by the seed and the positions of query and key.

    Key j stands at j + first_key and query i at i + q_offset + first_key: `q_offset` counts from the first key given.
    """

    p: float
    seed: int
    keep: Array | None  # (B|1, H|1, T|1, S|1) bool
    first_key: int = 0


class Scoring(NamedTuple):
    """Everything between the dot products and the weights, in canonical form.

    `bias` and `mask` have four axes, each of full size or 1. Query i stands at position i + q_offset.
    """

    scale: float
    softcap: float | None = None
    bias: Array | None = None  # (B|1, H|1, T|1, S|1)
    mask: Array | None = None  # (B|1, H|1, T|1, S|1) bool
    left: int | None = None
    right: int | None = None
    q_offset: int | Array = 0  # an int or (B,)
    kv_lengths: Array | None = None  # (B,)
    sinks: Array | None = None  # (H,)
    dropout: Dropout | None = None

    def rows(self, start: int, stop: int) -> Scoring:
        """The scoring of the query rows [start, stop)."""

        def cut(array: Array | None) -> Array | None:
            return array if array is None or array.shape[2] == 1 else array[:, :, start:stop, :]

        dropout = self.dropout
        if dropout is not None:
            dropout = dropout._replace(keep=cut(dropout.keep))
        return self._replace(bias=cut(self.bias), mask=cut(self.mask), q_offset=self.q_offset + start, dropout=dropout)

    def hides(self) -> bool:
        """Whether some weight may be zero by rule, so that what it multiplies must not matter."""
        given = (self.bias, self.mask, self.left, self.right, self.kv_lengths, self.dropout)
        return any(part is not None for part in given)


def allowed(scoring: Scoring, queries: int, keys: int, like: Array) -> Array | None:
    """Which keys each query may attend to, broadcastable to (B, H, T, S); None for all."""
    offset = scoring.q_offset if isinstance(scoring.q_offset, int) else scoring.q_offset[:, None, None, None]
    parts = [scoring.mask, band(scoring.left, scoring.right, queries, keys, offset, like)]
    if scoring.kv_lengths is not None:
        parts.append(within(scoring.kv_lengths, keys, like))  # (B, 1, 1, S)
    given = [part for part in parts if part is not None]
    return reduce(operator.and_, given) if given else None


def scores_of(dots: Array, scoring: Scoring) -> Array:
    """softcap(scale * dots) + bias, with -inf where masked: (B, H, T, S)."""
    xp = namespace_of(dots)
    scores = dots * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * xp.tanh(scores / scoring.softcap)
    if scoring.bias is not None:
        bias = xp.astype(scoring.bias, scores.dtype)
        scores = xp.where(bias == -math.inf, -math.inf, scores + bias)  # also where the score is NaN
    mask = allowed(scoring, dots.shape[2], dots.shape[3], dots)
    return scores if mask is None else xp.where(mask, scores, -math.inf)


@accelerated
def weights_from_dots(dots: Array, scoring: Scoring) -> tuple[Array, Array]:
    r"""Attention weights before dropout and the log-sum-exp of the scores.

    .. math:: p_{ij} = e^{s_{ij} - \mathrm{lse}_i}, \qquad \mathrm{lse}_i = \log\Bigl(e^{z} + \sum_j e^{s_{ij}}\Bigr)

    with the sink z of the head, if any. Kernels may overwrite `dots`.

    Parameters
    ----------
    dots : (B, H, T, S) float32 or float64
    scoring : Scoring

    Returns
    -------
    weights : (B, H, T, S)
        Fully masked rows are 0.
    lse : (B, H, T)
        -inf for fully masked rows without a sink.
    """
    xp = namespace_of(dots)
    scores = scores_of(dots, scoring)
    sink = None if scoring.sinks is None else xp.astype(scoring.sinks, dots.dtype)[None, :, None, None]
    if dots.shape[3] == 0:
        largest = xp.full((*dots.shape[:3], 1), -math.inf, dtype=dots.dtype, device=device_of(dots))
    else:
        largest = xp.max(scores, axis=-1, keepdims=True)  # (B, H, T, 1)
    largest = largest if sink is None else xp.maximum(largest, sink)
    largest = xp.where(largest == -math.inf, 0.0, largest)
    exps = xp.exp(scores - largest)
    total = xp.sum(exps, axis=-1, keepdims=True)
    total = total if sink is None else total + xp.exp(sink - largest)
    lse = largest + xp.log(total)  # log 0 = -inf for fully masked rows
    return exps / xp.where(total == 0, 1.0, total), lse[..., 0]


@accelerated
def gradients_of_dots(
    dots: Array, dweights: Array, lse: Array, delta: Array, scoring: Scoring
) -> tuple[Array, Array, Array | None]:
    r"""Recompute the weights from the saved lse and carry dweights back to the dot products.

    .. math::
        ds_{ij} = p_{ij} (dp_{ij} - \delta_i), \qquad
        d\mathrm{dots}_{ij} = \mathrm{scale}\; ds_{ij} \bigl(1 - \tanh^2(\mathrm{scale}\, \mathrm{dots}_{ij} / c)\bigr)

    (the last factor only with a softcap c). Kernels may overwrite `dots` and `dweights`.

    Parameters
    ----------
    dots, dweights : (B, H, T, S)
    lse, delta : (B, H, T)
        delta = sum_d dout * out - dlse.
    scoring : Scoring

    Returns
    -------
    weights, ddots : (B, H, T, S)
    dscores : (B, H, T, S) or None
        Only when there is a bias.
    """
    xp = namespace_of(dots)
    weights = weights_from_lse(dots, lse, scoring)
    dscores = xp.where(weights == 0, 0.0, weights * (dweights - delta[..., None]))
    ddots = dscores * scoring.scale
    if scoring.softcap is not None:
        slope = 1.0 - xp.tanh(dots * (scoring.scale / scoring.softcap)) ** 2
        ddots = xp.where(weights == 0, 0.0, ddots * slope)
    return weights, ddots, None if scoring.bias is None else dscores


def weights_from_lse(dots: Array, lse: Array, scoring: Scoring) -> Array:
    """The weights again, before dropout: exp(scores - lse), 0 in fully masked rows: (B, H, T, S)."""
    xp = namespace_of(dots)
    scores = scores_of(dots, scoring)
    weights = xp.exp(scores - xp.where(lse == -math.inf, 0.0, lse)[..., None])
    return xp.where(scores == -math.inf, 0.0, weights)  # also where the lse is NaN: what is hidden stays apart


def gradient_of_sinks(lse: Array, delta: Array, sinks: Array) -> Array:
    """The gradient of the sinks (H,): minus the sink's own weight times delta, over all batches and queries."""
    xp = namespace_of(lse)
    finite_lse = xp.where(lse == -math.inf, 0.0, lse)
    weight = xp.exp(xp.astype(sinks, lse.dtype)[None, :, None] - finite_lse)  # (B, H, T)
    return xp.astype(-xp.sum(xp.where(weight == 0, 0.0, weight * delta), axis=(0, 2)), sinks.dtype)


def dropout_factor(scoring: Scoring, shape: tuple[int, int, int, int], like: Array) -> Array | None:
    """What the weights are multiplied by: 1 / (1 - p) where kept, 0 where dropped; None without dropout."""
    dropout = scoring.dropout
    if dropout is None:
        return None
    xp = namespace_of(like)
    keep = dropout.keep
    if keep is None:
        first_query = scoring.q_offset + dropout.first_key
        keep = attention_keep_mask(dropout.seed, dropout.p, shape, xp, device_of(like), first_query, dropout.first_key)
    return xp.astype(keep, like.dtype) * (1.0 / (1.0 - dropout.p) if dropout.p < 1 else 0.0)

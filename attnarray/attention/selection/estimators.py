"""The estimators of hard attention: normalizers that choose keys, each with the gradient that it passes back.

A choice has the log-probability log P and the weights the entropy H, under p = softmax(s); both have exact gradients:

    ds_ij = dlog P_i (share_ij - p_ij) - dH_i p_ij (log p_ij + H_i)

where share is 1 for a choice of one key. The estimators differ in the choice, the weights and what they add to ds.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import finite_lse, masked_softmax
from attnarray.attention.parts import declare
from attnarray.attention.selection.top_k import choice_mask, top_k_indices
from attnarray.backend import Array, device_of, index_dtype, namespace_of, to_numpy
from attnarray.random import attention_noise

UNMODIFIED = ScoreModifiers(1.0)


class ChoiceRows(NamedTuple):
    """What is kept of every query."""

    log_prob: Array  # (B, H, T)
    entropy: Array  # (B, H, T)
    lse: Any  # (B, H, T); None in a cotangent, as is the choice
    choice: Any  # (B, H, T, k), -1 where nothing is allowed


@declare(HIDES=True)
class Argmax(NamedTuple):
    """Hard weights: the key with the largest score has weight 1. The weights pass no gradient back.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out = aa.attend(q, k, v, normalizer=aa.Argmax())
    >>> bool(np.all(out == aa.hard_attention(q, k, v, estimator="argmax").out))
    True
    """

    def weights(self, scores: Array, rows: slice) -> tuple[Array, ChoiceRows]:
        return _one_key(scores, None, rows)

    def weights_again(self, scores: Array, kept: ChoiceRows, rows: slice) -> Array:
        return _one_hot(scores, kept)

    def backward(
        self, dweights: Array, dkept: ChoiceRows | None, weights: Array, kept: ChoiceRows, scores: Array, rows: slice
    ) -> tuple[Array, Argmax]:
        return _rows_backward(dkept, weights, kept, scores), self


@declare(PER_QUERY=("noise",), HIDES=True)
class Reinforce(NamedTuple):
    """A key drawn from p has weight 1: the largest score plus Gumbel noise. The weights pass no gradient back."""

    seed: int | None = None
    noise: Array | None = None  # (B|1, H|1, T|1, S|1), instead of a seed
    q_offset: int | Array = 0

    def weights(self, scores: Array, rows: slice) -> tuple[Array, ChoiceRows]:
        return _one_key(scores, _noise(self, scores, rows), rows)

    def weights_again(self, scores: Array, kept: ChoiceRows, rows: slice) -> Array:
        return _one_hot(scores, kept)

    def backward(
        self, dweights: Array, dkept: ChoiceRows | None, weights: Array, kept: ChoiceRows, scores: Array, rows: slice
    ) -> tuple[Array, Reinforce]:
        return _rows_backward(dkept, weights, kept, scores), self._replace(noise=None)


@declare(PER_QUERY=("noise",), HIDES=True)
class StraightThrough(NamedTuple):
    r"""The weights of `Reinforce`, with the gradient of the softmax of `Gumbel`: biased."""

    seed: int | None = None
    noise: Array | None = None
    q_offset: int | Array = 0
    temperature: float = 1.0

    def weights(self, scores: Array, rows: slice) -> tuple[Array, ChoiceRows]:
        return _one_key(scores, _noise(self, scores, rows), rows)

    def weights_again(self, scores: Array, kept: ChoiceRows, rows: slice) -> Array:
        return _one_hot(scores, kept)

    def backward(
        self, dweights: Array, dkept: ChoiceRows | None, weights: Array, kept: ChoiceRows, scores: Array, rows: slice
    ) -> tuple[Array, StraightThrough]:
        soft = _relaxed(self, scores, rows)
        dscores = _softmax_backward(dweights, soft) / self.temperature
        return dscores + _rows_backward(dkept, weights, kept, scores), self._replace(noise=None)


@declare(PER_QUERY=("noise",), HIDES=True)
class Gumbel(NamedTuple):
    r"""A relaxed draw.

    .. math:: w_i = \mathrm{softmax}((s_i + g_i) / \vartheta)
    """

    seed: int | None = None
    noise: Array | None = None
    q_offset: int | Array = 0
    temperature: float = 1.0

    def weights(self, scores: Array, rows: slice) -> tuple[Array, ChoiceRows]:
        _, kept = _one_key(scores, _noise(self, scores, rows), rows)
        return _relaxed(self, scores, rows), kept

    def weights_again(self, scores: Array, kept: ChoiceRows, rows: slice) -> Array:
        return _relaxed(self, scores, rows)

    def backward(
        self, dweights: Array, dkept: ChoiceRows | None, weights: Array, kept: ChoiceRows, scores: Array, rows: slice
    ) -> tuple[Array, Gumbel]:
        r"""The gradient of the scores.

        .. math:: ds_{ij} = \frac{w_{ij}}{\vartheta} \Bigl(dw_{ij} - \sum_l w_{il}\, dw_{il}\Bigr)
        """
        dscores = _softmax_backward(dweights, weights) / self.temperature
        return dscores + _rows_backward(dkept, _one_hot(scores, kept), kept, scores), self._replace(noise=None)


@declare(HIDES=True)
class TopK(NamedTuple):
    r"""The k largest weights of a softmax, divided by their sum.

    .. math:: w_{ij} = \frac{[j \in C_i]\, p_{ij}}{\sum_{l \in C_i} p_{il}}, \qquad p_i = \mathrm{softmax}(s_i)

    The gradient is exact for the choice C as it is. Every query must have at least k allowed keys, or none.

    Parameters
    ----------
    k : int

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.attend_fwd(q, k, v, normalizer=aa.TopK(3))
    >>> int((aa.attention_weights(ctx) > 0).sum(-1).max())
    3
    """

    k: int = 1

    def weights(self, scores: Array, rows: slice) -> tuple[Array, ChoiceRows]:
        xp = namespace_of(scores)
        p, lse = masked_softmax(xp.asarray(scores, copy=True), UNMODIFIED)
        choice = _choose(scores, lse, None, self.k, rows.start)
        weights, total = _share(p, choice)
        log_prob = xp.log(xp.where(lse == -math.inf, 1.0, total[..., 0]))
        return weights, ChoiceRows(log_prob, _entropy(scores, p, lse), lse, choice)

    def weights_again(self, scores: Array, kept: ChoiceRows, rows: slice) -> Array:
        return _share(_probabilities(scores, kept)[0], kept.choice)[0]

    def backward(
        self, dweights: Array, dkept: ChoiceRows | None, weights: Array, kept: ChoiceRows, scores: Array, rows: slice
    ) -> tuple[Array, TopK]:
        r"""The gradient of the scores.

        .. math:: ds_{ij} = w_{ij} \Bigl(dw_{ij} - \sum_l w_{il}\, dw_{il}\Bigr)
        """
        return _softmax_backward(dweights, weights) + _rows_backward(dkept, weights, kept, scores), self


Estimator = Literal["reinforce", "gumbel", "straight_through", "argmax", "top_k"]
ESTIMATORS: dict[Estimator, Any] = {
    "reinforce": Reinforce, "gumbel": Gumbel, "straight_through": StraightThrough, "argmax": Argmax, "top_k": TopK,
}  # fmt: skip


def _one_key(scores: Array, noise: Array | None, rows: slice) -> tuple[Array, ChoiceRows]:
    """The key with the largest score, noise included: its one-hot weights, and what is kept."""
    xp = namespace_of(scores)
    p, lse = masked_softmax(xp.asarray(scores, copy=True), UNMODIFIED)
    choice = _choose(scores, lse, noise, 1, rows.start)
    chosen = choice_mask(choice, scores.shape[3])
    log_prob = xp.sum(xp.where(chosen, scores, 0.0), axis=-1) - finite_lse(lse)
    log_prob = xp.where(lse == -math.inf, 0.0, log_prob)
    return xp.astype(chosen, scores.dtype), ChoiceRows(log_prob, _entropy(scores, p, lse), lse, choice)


def _one_hot(scores: Array, kept: ChoiceRows) -> Array:
    return namespace_of(scores).astype(choice_mask(kept.choice, scores.shape[3]), scores.dtype)


def _rows_backward(dkept: ChoiceRows | None, share: Array, kept: ChoiceRows, scores: Array) -> Array:
    """The gradient of the scores from the cotangents of log P and H."""
    if dkept is None:
        return namespace_of(scores).zeros_like(scores)
    p, logs = _probabilities(scores, kept)
    entropy = kept.entropy[..., None]
    return dkept.log_prob[..., None] * (share - p) - dkept.entropy[..., None] * p * (logs + entropy)


def _probabilities(scores: Array, kept: ChoiceRows) -> tuple[Array, Array]:
    """p and log p from the lse; both 0 where a score is hidden."""
    logs = _log_probabilities(scores, kept.lse)
    xp = namespace_of(scores)
    return xp.where(scores == -math.inf, 0.0, xp.exp(logs)), logs


def _log_probabilities(scores: Array, lse: Array) -> Array:
    return namespace_of(scores).where(scores == -math.inf, 0.0, scores - finite_lse(lse)[..., None])


def _entropy(scores: Array, p: Array, lse: Array) -> Array:
    return -namespace_of(p).sum(p * _log_probabilities(scores, lse), axis=-1)


def _share(p: Array, choice: Array) -> tuple[Array, Array]:
    """p of the choice divided by its sum, and that sum (B, H, T, 1)."""
    xp = namespace_of(p)
    kept = xp.where(choice_mask(choice, p.shape[3]), p, 0.0)
    total = xp.sum(kept, axis=-1, keepdims=True)
    return kept / xp.where(total == 0, 1.0, total), total


def _relaxed(normalizer: Any, scores: Array, rows: slice) -> Array:
    """softmax((scores + noise) / temperature)."""
    xp = namespace_of(scores)
    if scores.shape[3] == 0:
        return scores
    noisy = scores + _noise(normalizer, scores, rows)
    row_max = xp.max(noisy, axis=-1, keepdims=True)  # less which no temperature makes them overflow
    return masked_softmax((noisy - finite_lse(row_max)) / normalizer.temperature, UNMODIFIED)[0]


def _softmax_backward(dweights: Array, weights: Array) -> Array:
    """The gradient of scores whose softmax the weights are; what dweights holds where a weight is 0 does not matter."""
    xp = namespace_of(weights)
    dweights = xp.where(weights == 0, 0.0, dweights)
    return weights * (dweights - xp.sum(weights * dweights, axis=-1, keepdims=True))


def _noise(normalizer: Any, scores: Array, rows: slice) -> Array:
    """Gumbel noise for the scores of some queries: given, or drawn by the positions of queries and keys."""
    xp = namespace_of(scores)
    if normalizer.noise is not None:
        return xp.astype(normalizer.noise, scores.dtype)
    first = normalizer.q_offset + rows.start
    noise = attention_noise(normalizer.seed, scores.shape, xp, device_of(scores), first, 0)
    return xp.astype(noise, scores.dtype)


def _choose(scores: Array, lse: Array, noise: Array | None, k: int, first: int) -> Array:
    """The k keys (B, H, T, k) with the largest scores, noise included: -1 in fully masked rows."""
    xp = namespace_of(scores)
    if scores.shape[3] == 0:
        kind = {"dtype": index_dtype(xp, scores), "device": device_of(scores)}
        return xp.full((*scores.shape[:3], k), -1, **kind)
    if k > 1:
        _check_allowed(scores, k, first)
    scores = scores if noise is None else scores + noise
    if bool(xp.any(xp.isnan(lse))):  # NaN is chosen, so that it comes through
        scores = xp.where(xp.isnan(scores), math.inf, scores)
    return xp.where((lse == -math.inf)[..., None], -1, top_k_indices(scores, k))


def _check_allowed(scores: Array, k: int, first: int) -> None:
    xp = namespace_of(scores)
    counts = xp.sum(xp.astype(scores != -math.inf, index_dtype(xp, scores)), axis=-1)  # (B, H, T)
    few = (counts > 0) & (counts < k)
    if bool(xp.any(few)):
        b, h, t = (int(index[0]) for index in to_numpy(few).nonzero())
        raise ValueError(
            f"`k` is {k}, but query {first + t} of batch {b} and head {h} may attend to {int(counts[b, h, t])} keys; "
            "expected at least k, or none at all. Choose a smaller `k`, or allow more keys."
        )

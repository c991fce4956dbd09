"""Hard attention on canonical arrays (B, H, T, D): choices, their log-probabilities, and the entropy of the weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.attention.core import dot_products, join, query_blocks, times, transposed_times
from attnarray.attention.score_gradients import EACH, gradients_of_scores, scored
from attnarray.attention.scoring import Scoring, weights_from_dots
from attnarray.attention.selection.top_k import mask_of, top_k_indices
from attnarray.backend import Array, device_of, index_dtype, namespace_of, to_numpy
from attnarray.random import attention_noise

UNIFORM = Scoring(1.0)
ESTIMATORS = ("reinforce", "gumbel", "straight_through", "argmax", "top_k")
SAMPLING = ("reinforce", "gumbel", "straight_through")
RELAXED = ("gumbel", "straight_through")


class Rule(NamedTuple):
    """How keys are chosen: the noise is given as an array, drawn from a seed, or absent."""

    estimator: str
    temperature: float = 1.0
    k: int = 1
    seed: int | None = None
    noise: Array | None = None  # (B|1, H|1, T|1, S|1)

    def noise_of(self, scores: Array, block: Scoring, rows: slice) -> Array | None:
        """Gumbel noise for a block of scores, by the positions of queries and keys; None without."""
        xp = namespace_of(scores)
        if self.noise is not None:
            noise = self.noise if self.noise.shape[2] == 1 else self.noise[:, :, rows, :]
        elif self.seed is not None:
            noise = attention_noise(self.seed, scores.shape, xp, device_of(scores), block.q_offset, 0)
        else:
            return None
        return xp.astype(noise, scores.dtype)


class Chosen(NamedTuple):
    """What the forward pass finds for every query."""

    out: Array  # (B, H, T, Dv)
    log_prob: Array  # (B, H, T)
    entropy: Array  # (B, H, T)
    lse: Array  # (B, H, T)
    choice: Array  # (B, H, T, k), -1 where nothing is allowed


def attend_hard(q: Array, k: Array, v: Array, scoring: Scoring, rule: Rule) -> Chosen:
    r"""The forward pass, block by block of queries.

    .. math:: o_i = \sum_j w_{ij} v_j, \qquad \log P_i = \log \sum_{j \in C_i} p_{ij}, \qquad
        H_i = -\sum_j p_{ij} \log p_{ij}

    with the weights w of the estimator: 1 for the choice, or those of `soft_weights`.
    """
    blocks = []
    for start, stop in query_blocks(q, k, EACH):
        rows = slice(start, stop)
        dots, scores, block = scored(q, k, scoring, start, stop)
        p, lse = weights_from_dots(dots, block)  # which may overwrite the dots
        noise = rule.noise_of(scores, block, rows)
        choice = choose(scores, lse, noise, rule.k, start)
        blocks.append(_of_block(scores, p, lse, noise, choice, v, rule))
    return Chosen(*(join(list(parts)) for parts in zip(*blocks, strict=True)))


def _of_block(scores: Array, p: Array, lse: Array, noise: Array | None, choice: Array, v: Array, rule: Rule) -> Chosen:
    xp = namespace_of(scores)
    chosen = mask_of(choice, scores.shape[3])
    empty, finite = lse == -math.inf, finite_lse(lse)
    if rule.estimator == "top_k":
        log_prob = xp.log(xp.where(empty, 1.0, xp.sum(xp.where(chosen, p, 0.0), axis=-1)))
    else:
        log_prob = xp.sum(xp.where(chosen, scores, 0.0), axis=-1) - finite
    logs = xp.where(scores == -math.inf, 0.0, scores - finite[..., None])
    soft = soft_weights(scores, p, chosen, noise, rule)
    weights = used_weights(soft, chosen, p, rule)
    entropy = -xp.sum(p * logs, axis=-1)
    return Chosen(times(weights, v, True), xp.where(empty, 0.0, log_prob), entropy, lse, choice)


def attend_hard_backward(
    dout: Array, dlog_prob: Array, dentropy: Array, q: Array, k: Array, v: Array, scoring: Scoring, rule: Rule,
    found: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    r"""The backward pass, from the lse, the entropy and the choice that the forward pass found.

    .. math:: ds_{ij} = \frac{\tilde w_{ij}}{\vartheta} \Bigl(dw_{ij} - \sum_l \tilde w_{il}\, dw_{il}\Bigr)
        + d\log P_i \Bigl(\frac{[j \in C_i]\, p_{ij}}{P_i} - p_{ij}\Bigr) - dH_i\, p_{ij} (\log p_{ij} + H_i)

    with dw = do v^T, the soft weights w~ of the estimator (without any, the first term is 0) and its temperature.

    Returns
    -------
    dq, dk, dv : the shapes of q, k, v
    dbias : the shape of scoring.bias, or None
    """
    xp = namespace_of(q)
    lse, entropy, choice = found
    finite = finite_lse(lse)

    def of_block(scores: Array, block: Scoring, rows: slice) -> tuple[Array, Array]:
        chosen = mask_of(choice[:, :, rows, :], scores.shape[3])
        hidden = scores == -math.inf
        logs = xp.where(hidden, 0.0, scores - finite[:, :, rows, None])
        p = xp.where(hidden, 0.0, xp.exp(logs))
        soft = soft_weights(scores, p, chosen, rule.noise_of(scores, block, rows), rule)
        weights = used_weights(soft, chosen, p, rule)
        share = soft if rule.estimator == "top_k" and soft is not None else xp.astype(chosen, p.dtype)
        dlog, dh = dlog_prob[:, :, rows, None], dentropy[:, :, rows, None]
        dscores = dlog * (share - p) - dh * p * (logs + entropy[:, :, rows, None])
        drows = dout[:, :, rows, :]
        if soft is not None:
            dweights = xp.where(soft == 0, 0.0, dot_products(drows, v))  # which may be NaN where v is
            mean = xp.sum(soft * dweights, axis=-1, keepdims=True)
            dscores = dscores + soft * (dweights - mean) / rule.temperature
        return xp.where(hidden, 0.0, dscores), transposed_times(weights, drows, v.shape[1], True)

    return gradients_of_scores(q, k, v, scoring, of_block)


def choose(scores: Array, lse: Array, noise: Array | None, k: int, first: int) -> Array:
    """The k keys (B, H, T, k) with the largest scores, noise included: -1 in rows where nothing is allowed."""
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
        b, h, t = (int(place[0]) for place in to_numpy(few).nonzero())
        raise ValueError(
            f"`k` is {k}, but query {first + t} of batch {b} and head {h} may attend to {int(counts[b, h, t])} keys; "
            "expected at least k, or none at all. Choose a smaller `k`, or allow more keys."
        )


def soft_weights(scores: Array, p: Array, chosen: Array, noise: Array | None, rule: Rule) -> Any:
    """The weights through which the output has a gradient for the scores, (B, H, T, S); None without such."""
    xp = namespace_of(scores)
    if rule.estimator == "top_k":
        kept = xp.where(chosen, p, 0.0)
        total = xp.sum(kept, axis=-1, keepdims=True)
        return kept / xp.where(total == 0, 1.0, total)
    if rule.estimator in RELAXED and noise is not None and scores.shape[3] == 0:
        return scores
    if rule.estimator in RELAXED and noise is not None:
        noisy = scores + noise
        largest = xp.max(noisy, axis=-1, keepdims=True)  # less which no temperature makes them overflow
        return weights_from_dots((noisy - xp.where(largest == -math.inf, 0.0, largest)) / rule.temperature, UNIFORM)[0]
    return None


def used_weights(soft: Any, chosen: Array, p: Array, rule: Rule) -> Any:
    """The weights of the values: the soft ones, or 1 for the choice."""
    return soft if rule.estimator in ("gumbel", "top_k") else namespace_of(p).astype(chosen, p.dtype)


def finite_lse(lse: Array) -> Array:
    """The lse, with 0 in rows where nothing is allowed."""
    return namespace_of(lse).where(lse == -math.inf, 0.0, lse)

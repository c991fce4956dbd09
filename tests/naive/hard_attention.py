"""Hard attention as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.scores import scores_of, weighted_sum


def hard_attention(
    query, key, value, attn_mask=None, is_causal=False, *, estimator="reinforce", temperature=1.0, k=1, noise=0.0,
    layout="BHTD", **options,
):  # fmt: skip
    """Output, log-probability of the choice and entropy, float64."""
    scores = scores_of(query, key, value, attn_mask, is_causal, layout=layout, **options)
    noise = np.broadcast_to(np.asarray(noise, np.float64), scores.shape)
    weights = np.zeros(scores.shape)
    log_prob, entropy = np.zeros(scores.shape[:-1]), np.zeros(scores.shape[:-1])
    for index in np.ndindex(scores.shape[:-1]):
        existing = [s for s in range(scores.shape[-1]) if scores[index][s] > -np.inf]
        if not existing:
            continue
        p = softmax({s: scores[index][s] for s in existing})
        noisy = {s: scores[index][s] + noise[index][s] for s in existing}
        chosen = sorted(existing, key=lambda s, noisy=noisy: (-noisy[s], s))[:k]
        log_prob[index] = math.log(sum(p[s] for s in chosen))
        entropy[index] = -sum(number * math.log(number) for number in p.values())
        soft = dict.fromkeys(chosen, 1.0)
        if estimator == "gumbel":
            soft = softmax({s: number / temperature for s, number in noisy.items()})
        if estimator == "top_k":
            soft = softmax({s: scores[index][s] for s in chosen})
        for s, weight in soft.items():
            weights[index][s] = weight
    return weighted_sum(weights, value, layout), log_prob, entropy


def softmax(logits):
    """Of a dict of numbers."""
    exps = {name: math.exp(number - max(logits.values())) for name, number in logits.items()}
    return {name: number / sum(exps.values()) for name, number in exps.items()}

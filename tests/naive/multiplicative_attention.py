"""Luong's attention as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def multiplicative_attention(
    query, key, value, weight=None, score_vector=None, attn_mask=None, dropout_p=0.0, is_causal=False, *, score="dot",
    **options,
):  # fmt: skip
    """The output, float64."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    scores = np.zeros((*query.shape[:-1], key.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, i, j = index
        scores[index] = SCORES[score](query[(*b, i)], key[(*b, j)], weight, score_vector)
    return weigh(scores, value, attn_mask, dropout_p, is_causal, **options)


def dot(h, s, weight, score_vector):
    return sum(h[d] * s[d] for d in range(len(h)))


def general(h, s, weight, score_vector):
    return sum(h[d] * weight[d, e] * s[e] for d in range(len(h)) for e in range(len(s)))


def concat(h, s, weight, score_vector):
    both = [*h, *s]
    hidden = [math.tanh(sum(row[n] * both[n] for n in range(len(both)))) for row in weight]
    return sum(w * unit for w, unit in zip(score_vector, hidden, strict=True))


SCORES = {"dot": dot, "general": general, "concat": concat}

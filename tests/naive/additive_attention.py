"""Additive attention as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def additive_attention(query, key, value, score_vector, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    """The output, float64."""
    return weigh(additive_scores(query, key, score_vector), value, attn_mask, dropout_p, is_causal, **options)


def additive_scores(query, key, score_vector):
    """(*batch, T, S)."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    scores = np.zeros((*query.shape[:-1], key.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, i, j = index
        for a, w in enumerate(np.asarray(score_vector, np.float64)):
            scores[index] += w * math.tanh(query[(*b, i, a)] + key[(*b, j, a)])
    return scores

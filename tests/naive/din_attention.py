"""Attention by the activation unit of deep interest networks as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def din_attention(
    query, key, value, weight, unit_bias, score_vector, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    normalize=False, **options,
):  # fmt: skip
    """The output, float64."""
    query, key, weight = (np.asarray(x, np.float64) for x in (query, key, weight))
    scores = np.zeros((*query.shape[:-1], key.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, i, j = index
        q, k = query[(*b, i)], key[(*b, j)]
        pair = [*q, *k, *(left * right for left, right in zip(q, k, strict=True))]
        for a, w in enumerate(np.asarray(score_vector, np.float64)):
            inner = float(unit_bias[a]) + sum(float(x) * y for x, y in zip(weight[a], pair, strict=True))
            scores[index] += w * inner / (1.0 + math.exp(-inner))
    return weigh(scores, value, attn_mask, dropout_p, is_causal, unnormalized=not normalize, **options)

"""Convolutional attention as loops over windows in float64."""

import math

import numpy as np

from tests.naive.pairwise_attention import zero_past
from tests.naive.weighing import weigh


def convolutional_attention(
    x, query_weight, key_weight, value=None, score_vector=None, query_bias=None, attn_mask=None, dropout_p=0.0,
    is_causal=False, *, padding="same", scale=None, **options,
):  # fmt: skip
    """The output, float64."""
    x = zero_past(options.get("kv_lengths"), x)
    query, key = windows(x, query_weight, query_bias, padding), windows(x, key_weight, None, padding)
    features = query.shape[-1]
    scores = np.zeros((*x.shape[:-1], x.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, t, other = index
        for a in range(features):
            q, k = query[(*b, t, a)], key[(*b, other, a)]
            scores[index] += q * k if score_vector is None else float(score_vector[a]) * math.tanh(q + k)
    if scale is None:
        scale = 1 / math.sqrt(features) if score_vector is None else 1.0
    return weigh(scores, x if value is None else value, attn_mask, dropout_p, is_causal, scale=scale, **options)


def windows(x, weight, bias, padding):
    """The sum over each window of x (*batch, T, D), times the weight (A, D, width): (*batch, T, A)."""
    steps, (features, dim, width) = x.shape[-2], weight.shape
    before = width - 1 if padding == "causal" else width // 2
    out = np.zeros((*x.shape[:-1], features))
    for *b, t, a in np.ndindex(out.shape):
        total = 0.0 if bias is None else float(bias[a])
        for n in range(width):
            index = t - before + n
            if 0 <= index < steps:
                for d in range(dim):
                    total += float(weight[a, d, n]) * x[(*b, index, d)]
        out[(*b, t, a)] = total
    return out

"""Dot-product attention with three scales as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def scaled_attention(
    query, key, value, gate=None, score_scale=None, inverse_temperature=None, attn_mask=None, dropout_p=0.0,
    is_causal=False, *, softcap=None, **options,
):  # fmt: skip
    """The output, float64."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    rows = query.shape[:-1]
    default = 1 / math.sqrt(query.shape[-1])
    gates, score_scales, temperatures = (
        np.broadcast_to(default if given is None else given, rows)
        for given, default in ((gate, 1.0), (score_scale, default), (inverse_temperature, 1.0))
    )
    scores = np.zeros((*rows, key.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, i, j = index
        score = score_scales[(*b, i)] * sum(query[(*b, i, d)] * key[(*b, j, d)] for d in range(query.shape[-1]))
        score = score if softcap is None else softcap * math.tanh(score / softcap)
        scores[index] = temperatures[(*b, i)] * score
    out = weigh(scores, value, attn_mask, dropout_p, is_causal, **options)
    for index in np.ndindex(rows):
        out[index] *= gates[index]
    return out

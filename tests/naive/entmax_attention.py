"""Entmax attention as loops over single numbers in float64."""

import numpy as np

from tests.naive.entmax import probabilities
from tests.naive.scores import scores_of, weighted_sum


def entmax_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, alpha=1.5, dropout_mask=None, layout="BHTD",
    **options,
):  # fmt: skip
    """The output, float64."""
    scores = scores_of(query, key, value, attn_mask, is_causal, layout=layout, **options)
    weights = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape[:-1]):
        existing = [s for s in range(scores.shape[-1]) if scores[index][s] > -np.inf]
        for s, weight in zip(existing, probabilities([scores[index][s] for s in existing], alpha), strict=True):
            weights[index][s] = weight
    if dropout_mask is not None:
        weights = weights * np.broadcast_to(dropout_mask, weights.shape) / (1 - dropout_p)
    return weighted_sum(weights, value, layout)

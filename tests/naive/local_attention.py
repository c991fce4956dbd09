"""Luong's local attention as loops over all pairs of query and key in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def local_attention(
    query, key, value, position_weight=None, position_vector=None, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    window, alignment="monotonic", sigma=None, weight=None, dropout_mask=None, **options,
):  # fmt: skip
    """The output, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, queries, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    scores, gaussians, seen = (np.zeros((*batch, queries, keys)) for _ in range(3))
    lengths, offsets = (
        np.broadcast_to(options.get(name, default), batch) for name, default in (("kv_lengths", keys), ("q_offset", 0))
    )
    for *b, i in np.ndindex(*batch, queries):
        h, length, offset = query[(*b, i)], float(lengths[tuple(b)]), offsets[tuple(b)]
        p = i + offset if alignment == "monotonic" else length * predicted(h, position_weight, position_vector)
        for j in range(keys):
            scores[(*b, i, j)] = score(h, key[(*b, j)], weight)
            seen[(*b, i, j)] = abs(j - p) <= window
            deviation = window / 2 if sigma is None else sigma
            exponent = 0.0 if alignment == "monotonic" else (j - p) ** 2 / (2 * deviation**2)
            gaussians[(*b, i, j)] = math.exp(-exponent)
    seen = seen.astype(bool)
    mask = seen if attn_mask is None else seen & attn_mask
    one_hot = np.broadcast_to(np.eye(keys), (*batch, keys, keys))
    weights = weigh(scores, one_hot, mask, 0.0, is_causal, **options)
    out = np.zeros((*batch, queries, value.shape[-1]))
    kept = np.broadcast_to(True if dropout_mask is None else dropout_mask, scores.shape)
    for *b, i, j in np.ndindex(scores.shape):
        if kept[(*b, i, j)]:
            share = weights[(*b, i, j)] * gaussians[(*b, i, j)] / (1 - dropout_p)
            out[(*b, i)] += share * value[(*b, j)]
    return out


def predicted(h, weight, vector):
    """The position as a share of the length."""
    hidden = [math.tanh(sum(row[d] * h[d] for d in range(len(h)))) for row in weight]
    return 1 / (1 + math.exp(-sum(v * unit for v, unit in zip(vector, hidden, strict=True))))


def score(h, s, weight):
    if weight is None:
        return sum(h[d] * s[d] for d in range(len(h)))
    return sum(h[d] * weight[d, e] * s[e] for d in range(len(h)) for e in range(len(s)))

"""Attention with relative positions as loops over single numbers in float64: each distance looked up by its number."""

import math

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def relative_attention(
    query, key, value, position_key, content_bias, position_bias, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    scale=None, bias=None, q_offset=0, layout="BHTD", **options,
):  # fmt: skip
    """The output, float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    if layout == "BTHD":
        query, key, value = (np.swapaxes(array, -3, -2) for array in (query, key, value))
    has_heads = query.ndim > 3
    r, u, v = (np.asarray(array, np.float64) for array in (position_key, content_bias, position_bias))
    if not has_heads:
        r, u, v = r[None], u[None], v[None]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    largest = query.shape[-2] - 1 + q_offset
    group = query.shape[-3] // key.shape[-3] if has_heads else 1
    scores = np.zeros((*query.shape[:-1], key.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, i, j = index
        h = b.pop() if has_heads else 0
        before = (*b, h) if has_heads else b
        q = query[(*before, i)]
        k = key[(*b, h // group, j) if has_heads else (*b, j)]
        distance = i + q_offset - j
        row = largest - distance
        positional = np.dot(q + v[h], r[h // group, row]) if row < r.shape[1] else 0.0  # of masked pairs alone
        scores[index] = scale * (np.dot(q + u[h], k) + positional)
    for given in (attn_mask, bias):
        if given is not None and np.asarray(given).dtype != bool:
            scores = scores + np.asarray(given, np.float64)
    mask = attn_mask if attn_mask is not None and np.asarray(attn_mask).dtype == bool else None
    out = scaled_dot_product_attention(
        np.zeros((*query.shape[:-1], 1)), np.zeros((*key.shape[:-1], 1)), value, mask, dropout_p, is_causal,
        bias=scores, q_offset=q_offset, **options,
    )  # fmt: skip
    return np.swapaxes(out, -3, -2) if layout == "BTHD" else out

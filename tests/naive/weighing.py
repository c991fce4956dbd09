"""Weights of given scores, and the weighted sum of the values: shared by all mechanisms without heads."""

import math

import numpy as np

from tests.naive.scaled_dot_product_attention import attention_weights_and_lse, scaled_dot_product_attention


def weigh(
    scores, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=1.0, bias=None, softcap=None,
    unnormalized=False, **options,
):  # fmt: skip
    """The output (*batch, T, Dv) of scores (*batch, T, S): as a bias of dot products that are all 0.

    Unnormalized, the weights are the scores of what is not masked.
    """
    scores, value = np.asarray(scores, np.float64), np.asarray(value, np.float64)
    batch, (queries, keys) = scores.shape[:-2], scores.shape[-2:]
    count = math.prod(batch)
    added = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape):
        score = scale * scores[index]
        added[index] = score if softcap is None else softcap * math.tanh(score / softcap)
    exists = np.ones(scores.shape, bool)
    for array in (attn_mask, bias):
        if array is not None and np.asarray(array).dtype == bool:
            exists = exists & array
        elif array is not None:
            added = added + np.asarray(array, np.float64)
    given = {
        name: np.broadcast_to(options.pop(name), batch).reshape(count)
        for name in ("q_offset", "kv_lengths")
        if name in options
    }
    if options.get("dropout_mask") is not None:
        kept = np.broadcast_to(options["dropout_mask"], scores.shape)
        options["dropout_mask"] = kept.reshape(count, queries, keys)
    q, k, v = np.zeros((count, queries, 1)), np.zeros((count, keys, 1)), value.reshape(count, *value.shape[-2:])
    exists, options = exists.reshape(count, queries, keys), {**given, **options}
    options["bias"] = added.reshape(count, queries, keys)
    if unnormalized:
        kept = options.pop("dropout_mask", None)
        weights, lse = attention_weights_and_lse(q, k, v, exists, 0.0, is_causal, **options)
        out = np.zeros((count, queries, value.shape[-1]))
        for b, i, j in np.ndindex(weights.shape):
            if weights[b, i, j] > 0 and (kept is None or kept[b, i, j]) and dropout_p < 1:
                out[b, i] += (math.log(weights[b, i, j]) + lse[b, i]) / (1 - dropout_p) * v[b, j]
    else:
        out = scaled_dot_product_attention(q, k, v, exists, dropout_p, is_causal, **options)
    return out.reshape(*scores.shape[:-1], value.shape[-1])

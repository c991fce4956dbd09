"""Location-aware attention as loops over steps, keys and taps in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def location_attention(
    query, key, value, score_vector, location_filter, location_weight, previous=None, attn_mask=None, dropout_p=0.0,
    is_causal=False, *, cumulative=False, q_offset=0, **options,
):  # fmt: skip
    """The outputs (*batch, T, Dv) and the weights (*batch, T, S), float64."""
    batch, steps, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    outs, weights = np.zeros((*query.shape[:-1], value.shape[-1])), np.zeros((*query.shape[:-1], keys))
    previous_weights = np.zeros((*batch, keys)) if previous is None else np.array(previous, np.float64)
    lengths = options.get("kv_lengths")
    for b, length in np.ndenumerate(np.broadcast_to(keys if lengths is None else lengths, batch)):
        previous_weights[(*b, slice(int(length), None))] = 0.0
    arrays = {
        "attn_mask": attn_mask,
        "bias": options.pop("bias", None),
        "dropout_mask": options.pop("dropout_mask", None),
    }
    for i in range(steps):
        scores = np.zeros((*batch, 1, keys))
        for *b, j in np.ndindex(*batch, keys):
            features = filtered(previous_weights[tuple(b)], location_filter, j)
            inner = np.asarray(query, np.float64)[(*b, i)] + np.asarray(key, np.float64)[(*b, j)]
            for a, w in enumerate(score_vector):
                location = sum(float(location_weight[a, f]) * feature for f, feature in enumerate(features))
                scores[(*b, 0, j)] += float(w) * math.tanh(inner[a] + location)
        step_arrays = {name: step_of(array, i) for name, array in arrays.items() if array is not None}
        mask = step_arrays.pop("attn_mask", None)
        common = {"attn_mask": mask, "is_causal": is_causal, "q_offset": q_offset + i, **options}
        undropped = {name: array for name, array in step_arrays.items() if name != "dropout_mask"}
        one_hot = np.broadcast_to(np.eye(keys), (*batch, keys, keys))
        weights[..., i, :] = weigh(scores, one_hot, **common, **undropped)[..., 0, :]
        outs[..., i, :] = weigh(scores, value, dropout_p=dropout_p, **common, **step_arrays)[..., 0, :]
        previous_weights = previous_weights + weights[..., i, :] if cumulative else weights[..., i, :]
    return outs, weights


def filtered(weights, location_filter, j):
    """The output at j of each filter (F, width), centered, of weights (S,)."""
    width = location_filter.shape[1]
    taps = [(n, j - width // 2 + n) for n in range(width)]
    return [sum(float(row[n]) * weights[p] for n, p in taps if 0 <= p < len(weights)) for row in location_filter]


def step_of(array, i):
    """The rows of step i of an array that broadcasts to (*batch, T, S)."""
    rows = array.shape[-2] if array.ndim > 1 else 1
    return array if rows == 1 else array[..., i : i + 1, :]

"""Attention with recurrent scores as loops over single numbers in float64: an LSTM for each query."""

import math

import numpy as np

from tests.naive.lstm import lstm
from tests.naive.weighing import weigh


def recurrent_attention(
    query, key, weight_ih, weight_hh, output_weight, score_vector, value=None, gate_bias=None, h0=None, c0=None,
    attn_mask=None, dropout_p=0.0, is_causal=False, **options,
):  # fmt: skip
    """The output, float64. Steps are the keys that equal scores would give weight to."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    scores = np.zeros((*query.shape[:-1], key.shape[-2]))
    masks = {name: options[name] for name in ("window", "q_offset", "kv_lengths") if name in options}
    mask = attn_mask if attn_mask is not None and np.asarray(attn_mask).dtype == bool else None
    eyes = np.broadcast_to(np.eye(key.shape[-2]), (*key.shape[:-1], key.shape[-2]))
    steps = weigh(scores, eyes, mask, is_causal=is_causal, **masks) != 0
    state = (*query.shape[:-1], np.shape(weight_hh)[1])
    h0, c0 = (None if x is None else np.broadcast_to(x, state) for x in (h0, c0))
    for index in np.ndindex(query.shape[:-1]):
        pairs = np.stack([np.concatenate([query[index], other]) for other in key[index[:-1]]])
        pairs = np.where(steps[index][:, None], pairs, 0)
        start = (None if x is None else x[index] for x in (h0, c0))
        states, *_ = lstm(pairs, weight_ih, weight_hh, gate_bias, None, *start, mask=steps[index])
        for j, h in enumerate(states):
            for a, w in enumerate(score_vector):
                scores[(*index, j)] += w * math.tanh(sum(output_weight[a, e] * h[e] for e in range(state[-1])))
    value = key if value is None else value
    return weigh(scores, value, attn_mask, dropout_p, is_causal, **options)

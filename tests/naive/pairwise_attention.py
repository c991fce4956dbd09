"""Pairwise additive attention as loops over single pairs in float64."""

import math

import numpy as np

from tests.naive.weighing import weigh


def pairwise_attention(
    x, input_weight, score_vector, hidden=None, hidden_weight=None, input_bias=None, memory=None, value=None,
    attn_mask=None, dropout_p=0.0, is_causal=False, **options,
):  # fmt: skip
    """The output, float64."""
    lengths = options.get("kv_lengths")
    if memory is None:
        x = memory = zero_past(lengths, x)
        hidden = None if hidden is None else zero_past(lengths, hidden)
    else:
        x, memory = np.asarray(x, np.float64), zero_past(lengths, memory)
    scores = np.zeros((*x.shape[:-1], memory.shape[-2]))
    for index in np.ndindex(scores.shape):
        *b, t, other = index
        pair = [*x[(*b, t)], *memory[(*b, other)]]
        for a, v in enumerate(np.asarray(score_vector, np.float64)):
            inner = 0.0 if input_bias is None else float(input_bias[a])
            for n, number in enumerate(pair):
                inner += float(input_weight[a, n]) * number
            for n, number in enumerate([] if hidden is None else hidden[(*b, t)]):
                inner += float(hidden_weight[a, n]) * float(number)
            scores[index] += v * math.tanh(inner)
    value = memory if value is None else value
    return weigh(scores, value, attn_mask, dropout_p, is_causal, **options)


def zero_past(lengths, x):
    """A copy of x (*batch, S, N), float64, with 0 at positions past the lengths."""
    x = np.array(x, np.float64)
    if lengths is not None:
        for b, length in np.ndenumerate(np.broadcast_to(lengths, x.shape[:-2])):
            x[(*b, slice(int(length), None))] = 0.0
    return x

"""Attention with forget gates as loops over single numbers in float64: the gates between key and query are added."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def forgetting_attention(query, key, value, log_forget, *args, bias=None, q_offset=0, **options):
    """The output, float64."""
    keys = key.shape[-2]
    decays = np.zeros((*query.shape[:-1], keys))
    for index in np.ndindex(decays.shape):
        *rest, i, j = index
        gates = np.asarray(log_forget, np.float64)[tuple(rest)]
        position = i + q_offset
        between = range(j + 1, position + 1) if j <= position else range(position + 1, j + 1)
        total = sum(gates[n] for n in between)
        decays[index] = total if j <= position else -total
    bias = decays if bias is None else decays + np.asarray(bias, np.float64)
    return scaled_dot_product_attention(query, key, value, *args, bias=bias, q_offset=q_offset, **options)

"""The scores of dot-product attention, for mechanisms with other weights than the softmax."""

import numpy as np

from tests.naive.scaled_dot_product_attention import attention_weights_and_lse


def scores_of(query, key, value, attn_mask=None, is_causal=False, **options):
    """(*batch, H, T, S), -inf where masked: log p = score - lse."""
    weights, lse = attention_weights_and_lse(query, key, value, attn_mask, 0.0, is_causal, **options)
    return np.where(weights == 0, -np.inf, np.log(np.where(weights == 0, 1.0, weights)) + lse[..., None])


def weighted_sum(weights, value, layout="BHTD"):
    """The output, in the layout of the value, of weights (*batch, H, T, S), or without H if there are no heads."""
    value = np.asarray(value, np.float64)
    values = np.swapaxes(value, -3, -2) if layout == "BTHD" else value
    heads = weights.ndim > 3
    out = np.zeros((*weights.shape[:-1], value.shape[-1]))
    for *index, s in np.ndindex(weights.shape):
        if heads:
            b, h, _ = index[:-2], index[-2], index[-1]
            row = values[(*b, h // (weights.shape[-3] // values.shape[-3]), s)]
        else:
            row = values[(*index[:-1], s)]
        if weights[(*index, s)] != 0:
            out[tuple(index)] += weights[(*index, s)] * row
    return np.swapaxes(out, -3, -2) if layout == "BTHD" else out

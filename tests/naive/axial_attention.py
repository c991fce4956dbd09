"""Axial attention: line by line of the other axes."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def axial_attention(query, key, value, axis, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    """The output, float64."""
    query, key, value = (np.moveaxis(np.asarray(x), axis, -3) for x in (query, key, value))
    out = np.zeros((*query.shape[:-1], value.shape[-1]))
    for line in np.ndindex(query.shape[:-3]):
        given = (x[line][None] for x in (query, key, value))
        out[line] = scaled_dot_product_attention(*given, attn_mask, dropout_p, is_causal, layout="BTHD", **options)[0]
    return np.moveaxis(out, -3, axis)

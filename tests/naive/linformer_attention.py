"""Linformer as loops over single numbers in float64."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def linformer_attention(query, key, value, key_projection, value_projection=None, *, scale=None):
    """The output, float64."""
    value_projection = key_projection if value_projection is None else value_projection
    return scaled_dot_product_attention(
        query, projected(key_projection, key), projected(value_projection, value), scale=scale
    )


def projected(projection, x):
    """The linear combinations of the rows of each head."""
    of_each_head = np.broadcast_to(projection, (*x.shape[:-2], *projection.shape[-2:]))
    out = np.zeros((*x.shape[:-2], projection.shape[-2], x.shape[-1]))
    for index in np.ndindex(out.shape):
        *head, n, d = index
        out[index] = sum(of_each_head[(*head, n, s)] * x[(*head, s, d)] for s in range(x.shape[-2]))
    return out

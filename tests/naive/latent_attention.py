"""Latent attention as loops over single numbers in float64: keys and values of all heads, projected."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def latent_attention(query, latent, key_up, value_up, *args, absorb=None, **options):
    """The output (*batch, H, T, Dv), float64."""
    (H, Dn, C), Dv = key_up.shape, value_up.shape[1]
    batch, S = latent.shape[:-2], latent.shape[-2]
    key = np.zeros((*batch, H, S, query.shape[-1]))
    value = np.zeros((*batch, H, S, Dv))
    for index in np.ndindex(*batch, H, S):
        *b, h, s = index
        c, shared = np.split(np.asarray(latent[(*b, s)], np.float64), [C])
        for n in range(Dn):
            key[(*index, n)] = sum(key_up[h, n, m] * c[m] for m in range(C))
        key[(*index, slice(Dn, None))] = shared
        for n in range(Dv):
            value[(*index, n)] = sum(value_up[h, n, m] * c[m] for m in range(C))
    return scaled_dot_product_attention(query, key, value, *args, **options)

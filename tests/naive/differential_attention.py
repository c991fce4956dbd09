"""Differential attention in float64, from the naive attention of the first and of the second head of each pair."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def differential_attention(
    query, key, value, lambd, attn_mask=None, *args, bias=None, sinks=None, dropout_mask=None, **options
):  # fmt: skip
    """The output (*batch, H, T, Dv), float64."""
    heads = query.shape[-3]
    outs = []
    for n in (0, 1):
        own = {"bias": bias, "dropout_mask": dropout_mask}
        own = {name: x[..., n::2, :, :] if np.ndim(x) > 2 and x.shape[-3] == heads else x for name, x in own.items()}
        mask = attn_mask[..., n::2, :, :] if np.ndim(attn_mask) > 2 and attn_mask.shape[-3] == heads else attn_mask
        outs.append(
            scaled_dot_product_attention(
                query[..., n::2, :, :], key[..., n::2, :, :], value, mask, *args,
                sinks=None if sinks is None else sinks[n::2], **own, **options,
            )
        )  # fmt: skip
    first, second = outs
    for h in range(heads // 2):
        first[..., h, :, :] -= float(np.broadcast_to(lambd, heads // 2)[h]) * second[..., h, :, :]
    return first

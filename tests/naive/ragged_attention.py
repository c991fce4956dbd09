"""Attention of packed sequences, one after the other, as loops over single numbers in float64."""

import numpy as np

from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def ragged_attention(
    query, key, value, cu_seqlens_q, cu_seqlens_k=None, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    align="end", bias=None, dropout_mask=None, **options,
):  # fmt: skip
    """The output (sum T, H, Dv), float64."""
    rows = [int(n) for n in cu_seqlens_q]
    keys = rows if cu_seqlens_k is None else [int(n) for n in cu_seqlens_k]
    outs = [np.zeros((0, np.shape(query)[1], np.shape(value)[2]))]
    for n in range(len(rows) - 1):
        i, j = slice(rows[n], rows[n + 1]), slice(keys[n], keys[n + 1])
        count = j.stop - j.start
        own = {
            "bias": None if bias is None else bias[:, i, :count],
            "dropout_mask": None if dropout_mask is None else dropout_mask[:, i, :count],
            "q_offset": count - (i.stop - i.start) if align == "end" else 0,
        }
        given = (np.asarray(query)[None, i], np.asarray(key)[None, j], np.asarray(value)[None, j])
        outs.append(
            scaled_dot_product_attention(*given, attn_mask, dropout_p, is_causal, layout="BTHD", **own, **options)[0]
        )
    return np.concatenate(outs)

"""Sparsemax attention as loops over single numbers in float64."""

from tests.naive.entmax_attention import entmax_attention


def sparsemax_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    """The output, float64."""
    return entmax_attention(query, key, value, attn_mask, dropout_p, is_causal, alpha=2.0, **options)

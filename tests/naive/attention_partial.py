"""Attention with its log-sum-exp, float64, to compare the library with."""

from tests.naive.scaled_dot_product_attention import attention_weights_and_lse, scaled_dot_product_attention


def attention_partial(*args, **kwargs):
    """(out, lse); the parameters are those of `scaled_dot_product_attention`."""
    _, lse = attention_weights_and_lse(*args, **kwargs)
    return scaled_dot_product_attention(*args, **kwargs), lse

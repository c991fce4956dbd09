"""Sigmoid attention as loops over single numbers in float64: that of `attend`, with heads of one batch if need be."""

import numpy as np

from tests.naive.attend import attend


class Sigmoid:
    """The normalizer, as `attend` reads it."""

    def __init__(self, shift):
        self.shift = shift


def sigmoid_attention(query, key, value, shift=None, *args, **options):
    """The output, float64, of arrays (B, H, T, D) or (T, D)."""
    given = [np.asarray(x)[None, None] if np.ndim(x) == 2 else np.asarray(x) for x in (query, key, value)]
    out = attend(*given, *args, normalizer=Sigmoid(shift), **options)
    return out[0, 0] if np.ndim(query) == 2 else out

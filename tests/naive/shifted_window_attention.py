"""Shifted window attention as loops over single numbers in float64: nothing is rolled, nothing masked."""

import math

import numpy as np


def shifted_window_attention(query, key, value, window_size, relative_bias=None, *, shift=0, scale=None):
    """The output, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    size, heads, D = query.shape[1:-2], query.shape[-2], query.shape[-1]
    widths, shifts = (x if isinstance(x, tuple) else (x,) * len(size) for x in (window_size, shift))
    shifts = [0 if width == n else step for n, width, step in zip(size, widths, shifts, strict=True)]
    scale = 1 / math.sqrt(D) if scale is None else scale
    out = np.zeros(value.shape)
    for b, *i, h in np.ndindex(query.shape[0], *size, heads):
        weights = {}
        for j in np.ndindex(size):
            if window(i, widths, shifts) == window(j, widths, shifts):
                score = scale * sum(query[(b, *i, h, d)] * key[(b, *j, h, d)] for d in range(D))
                if relative_bias is not None:
                    score += relative_bias[(h, *(x - y + width - 1 for x, y, width in zip(i, j, widths, strict=True)))]
                weights[j] = math.exp(score)
        for j, weight in weights.items():
            out[(b, *i, h)] += weight / sum(weights.values()) * value[(b, *j, h)]
    return out


def window(i, widths, shifts):
    """The number of the window of a position along each axis."""
    return [(x - step) // width for x, width, step in zip(i, widths, shifts, strict=True)]

"""Deformable attention as loops over all pixels in float64: each counts by its distance from the point."""

import numpy as np


def deformable_attention(value, spatial_shapes, sampling_locations, attention_weights):
    """The output, float64."""
    value = np.asarray(value, np.float64)
    B, T, heads, levels, points = attention_weights.shape
    out = np.zeros((B, T, heads, value.shape[3]))
    for b, t, h, level, n in np.ndindex(B, T, heads, levels, points):
        H, W = spatial_shapes[level]
        start = sum(rows * columns for rows, columns in spatial_shapes[:level])
        x, y = sampling_locations[b, t, h, level, n] * (W, H) - 0.5
        for row, column in np.ndindex(H, W):
            share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            out[b, t, h] += attention_weights[b, t, h, level, n] * share * value[b, start + row * W + column, h]
    return out

"""Neighborhood attention as loops over single numbers in float64: windows are searched for, not computed."""

import math

import numpy as np


def neighborhood_attention(
    query, key, value, kernel_size, relative_bias=None, *, dilation=1, is_causal=False, scale=None
):
    """The output, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    size, heads, D = query.shape[1:-2], query.shape[-2], query.shape[-1]
    widths, steps, causal = (
        x if isinstance(x, tuple) else (x,) * len(size) for x in (kernel_size, dilation, is_causal)
    )
    scale = 1 / math.sqrt(D) if scale is None else scale
    out = np.zeros(value.shape)
    for b, *i, h in np.ndindex(query.shape[0], *size, heads):
        along = [neighbors(*each) for each in zip(i, size, widths, steps, causal, strict=True)]
        weights = {}
        for n in np.ndindex(*map(len, along)):
            j = [each[m] for each, m in zip(along, n, strict=True)]
            score = scale * sum(query[(b, *i, h, d)] * key[(b, *j, h, d)] for d in range(D))
            if relative_bias is not None:
                at = [(y - x) // d + width - 1 for x, y, d, width in zip(i, j, steps, widths, strict=True)]
                score += relative_bias[(h, *at)]
            weights[tuple(j)] = math.exp(score)
        for j, weight in weights.items():
            out[(b, *i, h)] += weight / sum(weights.values()) * value[(b, *j, h)]
    return out


def neighbors(i, size, width, step, is_causal):
    """The nearest positions of the grid of i: of all runs of `width` of them that have i, the one centered best."""
    grid = range(i % step, size, step)
    if is_causal:
        return [j for j in grid if j <= i][-width:]
    runs = [grid[first : first + width] for first in range(len(grid) - width + 1)]
    return min(runs, key=lambda run: abs(run[width // 2] - i))

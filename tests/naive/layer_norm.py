"""Layer normalization by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """Each vector less its mean, over the root of its variance plus eps, then scaled and shifted per feature."""
    out = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        numbers = [float(number) for number in x[row]]
        mean = sum(numbers) / len(numbers)
        variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
        for e, number in enumerate(numbers):
            scale = 1.0 if weight is None else float(weight[e])
            shift = 0.0 if bias is None else float(bias[e])
            out[(*row, e)] = scale * (number - mean) / math.sqrt(variance + eps) + shift
    return out

"""Root-mean-square normalization by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def rms_norm(x, weight=None, *, eps=1e-6):
    """Each vector over the root of its mean square plus eps, then scaled per feature."""
    out = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        numbers = [float(number) for number in x[row]]
        mean_square = sum(number**2 for number in numbers) / len(numbers)
        for e, number in enumerate(numbers):
            scale = 1.0 if weight is None else float(weight[e])
            out[(*row, e)] = scale * number / math.sqrt(mean_square + eps)
    return out

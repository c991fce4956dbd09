"""ReLU by a loop over single numbers in float64, to compare the library with."""

import numpy as np


def relu(x):
    """The larger of x and 0."""
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        out[index] = max(float(x[index]), 0.0)
    return out

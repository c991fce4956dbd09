"""ReLU by a loop over single numbers in float64: the twin that the library is compared with."""

import numpy as np


def relu(x):
    """The larger of x and 0."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        out[place] = max(float(x[place]), 0.0)
    return out

"""The logistic function by a loop over single numbers in float64: the twin that the library is compared with."""

import math

import numpy as np


def sigmoid(x):
    """1 over 1 + exp(-x)."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        out[place] = 1 / (1 + math.exp(-x[place]))
    return out

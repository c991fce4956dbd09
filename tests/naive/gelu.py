"""GELU by a loop over single numbers in float64, to compare the library with."""

import math

import numpy as np


def gelu(x, *, approximate="none"):
    """x times the probability that a standard normal number is smaller than x, or the approximation of that."""
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        number = float(x[index])
        if approximate == "tanh":
            probability = (1 + math.tanh(math.sqrt(2 / math.pi) * (number + 0.044715 * number**3))) / 2
        else:
            probability = (1 + math.erf(number / math.sqrt(2))) / 2
        out[index] = number * probability
    return out

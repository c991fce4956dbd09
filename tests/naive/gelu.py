"""GELU by a loop over single numbers in float64: the twin that the library is compared with."""

import math

import numpy as np


def gelu(x, *, approximate="none"):
    """x times the chance that a standard normal number is smaller than x, or the approximation of that chance."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        number = float(x[place])
        if approximate == "tanh":
            chance = (1 + math.tanh(math.sqrt(2 / math.pi) * (number + 0.044715 * number**3))) / 2
        else:
            chance = (1 + math.erf(number / math.sqrt(2))) / 2
        out[place] = number * chance
    return out

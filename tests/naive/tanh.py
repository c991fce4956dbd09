"""The hyperbolic tangent by a loop over single numbers in float64, to compare the library with."""

import math

import numpy as np


def tanh(x):
    """The quotient of the hyperbolic sine and cosine."""
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        out[index] = math.sinh(x[index]) / math.cosh(x[index])
    return out

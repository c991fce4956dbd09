"""The hyperbolic tangent by a loop over single numbers in float64: the twin that the library is compared with."""

import math

import numpy as np


def tanh(x):
    """The quotient of the hyperbolic sine and cosine."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        out[place] = math.sinh(x[place]) / math.cosh(x[place])
    return out

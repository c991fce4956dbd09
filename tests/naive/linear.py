"""The linear map by loops over single numbers in float64, to compare the library with."""

import numpy as np


def linear(x, weight, bias=None):
    """Each output is the sum of x_e weight_oe over e, and its bias."""
    out = np.zeros((*x.shape[:-1], weight.shape[0]))
    for index in np.ndindex(out.shape):
        *row, o = index
        out[index] = sum(float(x[(*row, e)]) * float(weight[o, e]) for e in range(weight.shape[1]))
        if bias is not None:
            out[index] += bias[o]
    return out

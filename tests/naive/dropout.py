"""Dropout by a loop over single numbers in float64, to compare the library with."""

import numpy as np


def dropout(x, p, mask=None):
    """x over 1 - p where the mask keeps it, else 0."""
    out = np.zeros(x.shape)
    keep = np.broadcast_to(p == 0 if mask is None else mask, x.shape)
    for index in np.ndindex(x.shape):
        if keep[index] and p < 1:
            out[index] = float(x[index]) / (1 - p)
    return out

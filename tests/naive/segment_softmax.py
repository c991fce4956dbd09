"""Softmax of segments by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def segment_softmax(x, segments, count, *, mask=None):
    """exp(x_e) over the sum of exp(x_e') of the entries that exist in the same segment."""
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        *batch, entry, column = index
        same = [(*batch, other, column) for other in range(len(segments)) if segments[other] == segments[entry]]
        if exists[index]:
            out[index] = math.exp(x[index]) / sum(math.exp(x[other]) for other in same if exists[other])
    return out

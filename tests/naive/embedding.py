"""Embedding by loops over single numbers: the twin that the library is compared with."""

import numpy as np


def embedding(indices, weight):
    """A copy of the row of weight for each index."""
    out = np.zeros((*indices.shape, weight.shape[1]))
    for place in np.ndindex(indices.shape):
        for e in range(weight.shape[1]):
            out[(*place, e)] = weight[int(indices[place]), e]
    return out

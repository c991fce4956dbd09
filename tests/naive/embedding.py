"""Embedding by loops over single numbers, to compare the library with."""

import numpy as np


def embedding(indices, weight):
    """A copy of the row of weight for each index."""
    out = np.zeros((*indices.shape, weight.shape[1]))
    for position in np.ndindex(indices.shape):
        for e in range(weight.shape[1]):
            out[(*position, e)] = weight[int(indices[position]), e]
    return out

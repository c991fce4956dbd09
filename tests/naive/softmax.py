"""Softmax by loops over single numbers in float64: the twin that the library is compared with."""

import math

import numpy as np


def softmax(x, axis=-1, *, mask=None):
    """exp(x_i) over the sum of exp(x_j), both over the entries that exist."""
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    rows, exists = np.moveaxis(x, axis, -1), np.moveaxis(exists, axis, -1)
    out = np.zeros(rows.shape)
    for place in np.ndindex(rows.shape[:-1]):
        exps = [math.exp(number) if there else 0.0 for number, there in zip(rows[place], exists[place], strict=True)]
        for i in range(len(exps)):
            if exps[i] > 0:
                out[place][i] = exps[i] / sum(exps)
    return np.moveaxis(out, -1, axis)

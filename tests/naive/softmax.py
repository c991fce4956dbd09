"""Softmax by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def softmax(x, axis=-1, *, mask=None):
    """exp(x_i) over the sum of exp(x_j), both over the entries that exist."""
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    rows, exists = np.moveaxis(x, axis, -1), np.moveaxis(exists, axis, -1)
    out = np.zeros(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        exps = [math.exp(number) if kept else 0.0 for number, kept in zip(rows[index], exists[index], strict=True)]
        for i in range(len(exps)):
            if exps[i] > 0:
                out[index][i] = exps[i] / sum(exps)
    return np.moveaxis(out, -1, axis)

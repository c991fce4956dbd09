"""Log-softmax by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def log_softmax(x, axis=-1, *, mask=None):
    """x_i minus the logarithm of the sum of exp(x_j) over the entries that exist; -inf for those that do not."""
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    rows, exists = np.moveaxis(x, axis, -1), np.moveaxis(exists, axis, -1)
    out = np.full(rows.shape, -math.inf)
    for index in np.ndindex(rows.shape[:-1]):
        total = sum(math.exp(number) for number, present in zip(rows[index], exists[index], strict=True) if present)
        for i in range(rows.shape[-1]):
            if exists[index][i]:
                out[index][i] = rows[index][i] - math.log(total)
    return np.moveaxis(out, -1, axis)

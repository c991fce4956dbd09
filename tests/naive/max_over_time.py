"""The maximum over time by loops over single numbers in float64, to compare the library with."""

import numpy as np


def max_over_time(x, *, lengths=None):
    """The largest number of each feature among the steps that exist; 0 without one."""
    *batch, steps, features = x.shape
    out = np.zeros((*batch, features))
    for index in np.ndindex(out.shape):
        *row, c = index
        count = steps if lengths is None else int(np.broadcast_to(lengths, batch)[tuple(row)])
        if count:
            out[index] = max(float(x[(*row, t, c)]) for t in range(count))
    return out

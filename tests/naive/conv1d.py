"""Convolution by loops over single numbers in float64, to compare the library with."""

import numpy as np


def conv1d(x, weight, bias=None, *, padding="same", dilation=1):
    """Each output is the sum over taps and channels of weight times x; x is 0 outside."""
    *batch, steps, _ = x.shape
    width = weight.shape[2]
    reach = (width - 1) * dilation
    before, behind = {"same": (reach // 2, reach // 2), "causal": (reach, 0), "valid": (0, 0)}.get(
        padding, (padding, padding)
    )
    out = np.zeros((*batch, steps + before + behind - reach, weight.shape[0]))
    for index in np.ndindex(out.shape):
        *row, t, o = index
        out[index] = 0.0 if bias is None else float(bias[o])
        for k in range(width):
            source = t - before + k * dilation
            if 0 <= source < steps:
                for c in range(weight.shape[1]):
                    out[index] += float(weight[o, c, k]) * float(x[(*row, source, c)])
    return out

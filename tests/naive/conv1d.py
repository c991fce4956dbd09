"""Convolution by loops over single numbers in float64, to compare the library with."""

import numpy as np


def conv1d(x, weight, bias=None, *, padding="same", dilation=1, stride=1, groups=1):
    """Each output is the sum over taps and channels of its group of weight times x; x is 0 outside."""
    *batch, steps, _ = x.shape
    width = weight.shape[2]
    before, windows = along(steps, width, padding, dilation, stride)
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    out = np.zeros((*batch, windows, weight.shape[0]))
    for index in np.ndindex(out.shape):
        *row, t, o = index
        out[index] = 0.0 if bias is None else float(bias[o])
        for k in range(width):
            source = t * stride - before + k * dilation
            if 0 <= source < steps:
                for c in range(inputs):
                    out[index] += float(weight[o, c, k]) * float(x[(*row, source, o // outputs * inputs + c)])
    return out


def along(steps, width, padding, dilation, stride):
    """The zeros before the first step, and the number of windows: those that fit, one after each stride."""
    reach = (width - 1) * dilation
    named = {"same": (reach // 2, reach // 2), "causal": (reach, 0), "valid": (0, 0)}
    before, behind = named.get(padding, (padding, padding))
    return before, len(range(0, steps + before + behind - reach, stride))

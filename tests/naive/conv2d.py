"""Convolution of images by loops over single numbers in float64, to compare the library with."""

import numpy as np

from tests.naive.conv1d import along


def conv2d(x, weight, bias=None, *, padding="same", dilation=1, stride=1, groups=1):
    """Each output is the sum over taps and channels of its group of weight times x; x is 0 outside."""
    padding, dilation, stride = (a if isinstance(a, tuple | list) else (a, a) for a in (padding, dilation, stride))
    *batch, height, width, _ = x.shape
    above, down = along(height, weight.shape[2], padding[0], dilation[0], stride[0])
    left, across = along(width, weight.shape[3], padding[1], dilation[1], stride[1])
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    out = np.zeros((*batch, down, across, weight.shape[0]))
    for index in np.ndindex(out.shape):
        *image, i, j, o = index
        out[index] = 0.0 if bias is None else float(bias[o])
        for c, k, n in np.ndindex(weight.shape[1:]):
            row, column = i * stride[0] - above + k * dilation[0], j * stride[1] - left + n * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                source = (*image, row, column, o // outputs * inputs + c)
                out[index] += float(weight[o, c, k, n]) * float(x[source])
    return out

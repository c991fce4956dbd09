"""The merge of partial attention by loops over single numbers, float64, to compare the library with."""

import math

import numpy as np


def merge_partials(partials, *, layout="BHTD"):
    """(out, lse): the mean of the outputs of all parts, each weighted by its share exp(lse) of the softmax's sum."""
    lse = np.full(partials[0][1].shape, -math.inf)
    out = np.zeros(partials[0][0].shape)
    for row in np.ndindex(lse.shape):
        shares = [math.exp(part_lse[row]) for _, part_lse in partials]
        index = (*row[:-2], row[-1], row[-2]) if layout == "BTHD" else row
        if sum(shares) > 0:
            lse[row] = math.log(sum(shares))
            for (part_out, _), share in zip(partials, shares, strict=True):
                for d in range(out.shape[-1]):
                    out[(*index, d)] += share / sum(shares) * float(part_out[(*index, d)])
    return out, lse

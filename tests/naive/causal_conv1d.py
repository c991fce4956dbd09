"""Causal convolution of each channel as loops over single numbers in float64."""

import math

import numpy as np


def causal_conv1d(x, weight, bias=None, initial_state=None, activation=None):
    """The output and the last steps, for any number of batch axes."""
    *batch, T, C = x.shape
    width = weight.shape[1]
    out, state = np.zeros(x.shape), np.zeros((*batch, width - 1, C))

    def step(b, t, c):
        if t >= 0:
            return x[b][t, c]
        return 0.0 if initial_state is None else initial_state[b][width - 1 + t, c]

    for b in np.ndindex(*batch):
        for c in range(C):
            for t in range(T):
                total = sum(weight[c, k] * step(b, t - width + 1 + k, c) for k in range(width))
                total += 0.0 if bias is None else bias[c]
                out[b][t, c] = total / (1.0 + math.exp(-total)) if activation == "silu" else total
            for n in range(width - 1):
                state[b][n, c] = step(b, T - width + 1 + n, c)
    return out, state

"""Entmax by loops over single numbers in float64, with its threshold found by halving an interval."""

import numpy as np


def entmax(x, axis=-1, *, alpha=1.5, mask=None):
    """max((alpha - 1) x_i - tau, 0)^(1 / (alpha - 1)) over the entries that exist."""
    x = np.asarray(x, np.float64)
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    rows, exists = np.moveaxis(x, axis, -1), np.moveaxis(exists, axis, -1)
    out = np.zeros(rows.shape)
    for place in np.ndindex(rows.shape[:-1]):
        there = [i for i in range(rows.shape[-1]) if exists[place][i]]
        for i, number in zip(there, probabilities([rows[place][i] for i in there], alpha), strict=True):
            out[place][i] = number
    return np.moveaxis(out, -1, axis)


def probabilities(logits, alpha):
    """Those of a list of numbers."""
    if not logits:
        return []
    scaled = [(alpha - 1) * (number - max(logits)) for number in logits]  # the threshold lies between -1 and 0
    low, high = -1.0, 0.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(powers(scaled, middle, alpha)) >= 1 else (low, middle)
    return powers(scaled, low, alpha)


def powers(scaled, tau, alpha):
    return [max(number - tau, 0.0) ** (1 / (alpha - 1)) for number in scaled]

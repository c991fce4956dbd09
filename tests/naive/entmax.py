"""Entmax by loops over single numbers in float64, with the threshold found by bisection."""

import numpy as np


def entmax(x, axis=-1, *, alpha=1.5, mask=None):
    """max((alpha - 1) x_i - tau, 0)^(1 / (alpha - 1)) over the entries that exist."""
    x = np.asarray(x, np.float64)
    exists = np.broadcast_to(True if mask is None else mask, x.shape)
    rows, exists = np.moveaxis(x, axis, -1), np.moveaxis(exists, axis, -1)
    out = np.zeros(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        existing = [i for i in range(rows.shape[-1]) if exists[index][i]]
        for i, number in zip(existing, probabilities([rows[index][i] for i in existing], alpha), strict=True):
            out[index][i] = number
    return np.moveaxis(out, -1, axis)


def probabilities(logits, alpha):
    """The probabilities of a list of numbers."""
    if not logits:
        return []
    scaled = [(alpha - 1) * (number - max(logits)) for number in logits]  # the threshold lies between -1 and 0
    low, high = -1.0, 0.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(powers(scaled, middle, alpha)) >= 1 else (low, middle)
    return powers(scaled, low, alpha)


def powers(scaled, tau, alpha):
    return [max(number - tau, 0.0) ** (1 / (alpha - 1)) for number in scaled]

"""Cross-entropy by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def cross_entropy(logits, targets, weight=None, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"):
    """Per row the sum of -q_v w_v log(p_v), with q the smoothed target and p the softmax of the logits."""
    losses = np.zeros(targets.shape)
    total = 0.0
    for row in np.ndindex(targets.shape):
        if targets[row] == ignore_index:
            continue
        total += 1 if weight is None else weight[targets[row]]
        exps = [math.exp(number) for number in logits[row]]
        for v in range(len(exps)):
            q = label_smoothing / len(exps) + (1 - label_smoothing if v == targets[row] else 0.0)
            losses[row] -= q * (1 if weight is None else weight[v]) * math.log(exps[v] / sum(exps))
    if reduction == "none":
        return losses
    loss = sum(float(losses[row]) for row in np.ndindex(losses.shape))
    return np.asarray(loss if reduction == "sum" else loss / (total or 1))

"""Nystroem attention in float64, head by head, as matrices."""

import math

import numpy as np


def nystrom_attention(query, key, value, *, num_landmarks, iterations=6, scale=None):
    """The output, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = np.zeros((*query.shape[:-1], value.shape[-1]))
    for head in np.ndindex(query.shape[:-2]):
        q, k = query[head], key[head]
        landmarks_q, landmarks_k = segment_means(q, num_landmarks), segment_means(k, num_landmarks)
        weights = softmax(scale * landmarks_q @ landmarks_k.T)
        inverse = pseudo_inverse(weights, iterations)
        out[head] = softmax(scale * q @ landmarks_k.T) @ inverse @ softmax(scale * landmarks_q @ k.T) @ value[head]
    return out


def segment_means(x, count):
    segments = [[x[t] for t in range(len(x)) if t * count // len(x) == n] for n in range(count)]
    return np.array([sum(rows) / len(rows) for rows in segments])


def softmax(scores):
    weights = np.exp(scores)
    return weights / weights.sum(axis=1, keepdims=True)


def pseudo_inverse(a, iterations):
    eye = np.eye(len(a))
    z = a.T / (max(sum(abs(column)) for column in a.T) * max(sum(abs(row)) for row in a))
    for _ in range(iterations):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    return z

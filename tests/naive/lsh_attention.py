"""LSH attention in float64: the keys of each query are searched for, round by round."""

import math

import numpy as np


def lsh_attention(query, value, rotations, *, chunk_size, is_causal=False, scale=None):
    """The output, float64."""
    query, value = (np.asarray(x, np.float64) for x in (query, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = np.zeros(value.shape)
    for head in np.ndindex(query.shape[:-2]):
        q, v = query[head], value[head]
        keys = [set() for _ in q]
        for rotation in rotations:
            buckets = [bucket(x, rotation) for x in q]
            order = sorted(range(len(q)), key=lambda t, buckets=buckets: (buckets[t], t))
            for i, first in enumerate(order):
                for j, second in enumerate(order):
                    near = 0 <= i // chunk_size - j // chunk_size <= 1
                    if near and buckets[first] == buckets[second] and not (is_causal and second > first):
                        keys[first].add(second)
        for t, seen in enumerate(keys):
            found = sorted(seen - {t}) or [t]
            weights = [math.exp(scale * q[t] @ q[s] / math.sqrt(q[s] @ q[s])) for s in found]
            out[(*head, t)] = sum(weight * v[s] for weight, s in zip(weights, found, strict=True)) / sum(weights)
    return out


def bucket(x, rotation):
    rotated = [*(x @ rotation), *(-(x @ rotation))]
    return max(range(len(rotated)), key=lambda n: rotated[n])

"""Attention to chosen blocks of keys as loops over single numbers in float64."""

import math

import numpy as np


def block_topk_attention(
    query, key, value, gates=None, *, top_k, block_size=64, is_causal=False, window=None, by_block=False, scale=None
):
    """The output, float64, of arrays (B, H, T, D)."""
    (B, H, T, D), (S, Dv) = query.shape, value.shape[2:]
    group, scale = H // key.shape[1], 1 / math.sqrt(D) if scale is None else scale
    blocks = [range(start, min(start + block_size, S)) for start in range(0, S, block_size)]
    out = np.zeros((B, H, T, Dv))
    for b, h, t in np.ndindex(B, H, T):
        keys, values = key[b, h // group], value[b, h // group]
        mean_keys, mean_values = ([np.mean(x[list(block)], axis=0) for block in blocks] for x in (keys, values))
        choosers = query[b, h : h + 1]
        if gates is not None:
            choosers = query[b, h // group * group : (h // group + 1) * group]
        rows = [t]
        if by_block:
            first = t // block_size * block_size
            rows = list(range(first, min(first + block_size, T)))
        full = {i: _ended(S, block_size, is_causal, i) for i in rows}
        scores = [_block_scores(choosers[:, i], mean_keys, gates is not None, scale, full[i]) for i in rows]
        means = np.mean(scores, axis=0)
        order = sorted(range(len(blocks)), key=lambda n, means=means: -means[n])
        if is_causal:
            own = t // block_size
            order = [own, *(n for n in order if n < own)]
        seen = [j for n in order[:top_k] for j in blocks[n] if not is_causal or j <= t]
        selected = _attend(scale, query[b, h, t], keys, values, seen)
        if gates is None:
            out[b, h, t] = selected
            continue
        near = [j for j in range(S) if abs(t - j) <= window and (not is_causal or j <= t)]
        compressed = _attend(scale, query[b, h, t], mean_keys, mean_values, _ended(S, block_size, is_causal, t))
        branches = compressed, selected, _attend(scale, query[b, h, t], keys, values, near)
        out[b, h, t] = sum(gate * branch for gate, branch in zip(gates[b, h, t], branches, strict=True))
    return out


def _ended(keys, block_size, is_causal, t):
    """The blocks of the compressed branch."""
    return [n for n in range(-(-keys // block_size)) if not is_causal or (n + 1) * block_size - 1 <= t]


def _block_scores(queries, mean_keys, gated, scale, ended):
    """The score of each block for one query; with gates the sum of the weights of all heads of a group."""
    if not gated:
        return [scale * float(np.dot(queries[0], mean)) for mean in mean_keys]
    total = np.zeros(len(mean_keys))
    for q in queries:
        exps = {n: math.exp(scale * float(np.dot(q, mean_keys[n]))) for n in ended}
        for n in ended:
            total[n] += exps[n] / sum(exps.values())
    return list(total)


def _attend(scale, q, keys, values, seen):
    exps = {j: math.exp(scale * float(np.dot(q, keys[j]))) for j in seen}
    total = sum(exps.values())
    return sum((exps[j] / total * values[j] for j in seen), start=np.zeros(len(values[0])))

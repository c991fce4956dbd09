"""Attention with the scorers, modifiers and normalizers of the cases, as loops over single numbers in float64."""

import math

import numpy as np

from tests.naive.entmax import probabilities
from tests.naive.masks import dense
from tests.naive.scaled_dot_product_attention import _in_reach, _mask_and_bias, _per_batch


def attend(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scorer=None, modifiers=(), normalizer=None,
    scale=None, softcap=None, bias=None, window=None, q_offset=0, kv_lengths=None, dropout_mask=None,
):  # fmt: skip
    """The output, float64, of arrays (B, H, T, D)."""
    (B, H, T, D), (S, Dv) = query.shape, value.shape[2:]
    group = H // key.shape[1]
    by_dots = scorer is None or type(scorer).__name__ == "DotProduct"
    scale = (1 / math.sqrt(D) if by_dots else 1.0) if scale is None else scale
    offsets = _per_batch(q_offset, (B,), B)
    if hasattr(attn_mask, "allows"):
        attn_mask = dense(attn_mask, (B, H, T, S), offsets)
    exists, added = _mask_and_bias(attn_mask, bias, (B, H, T, S), (B, H, T, S))
    lengths = _per_batch(S if kv_lengths is None else kv_lengths, (B,), B)
    keep = np.ones((B, H, T, S), bool) if dropout_mask is None else np.broadcast_to(dropout_mask, (B, H, T, S))
    out = np.zeros((B, H, T, Dv))
    for b, h, t in np.ndindex(B, H, T):
        position, scores = t + offsets[b], {}
        for s in range(S):
            if exists[b, h, t, s] and _in_reach(s, position, lengths[b], is_causal, window):
                score = scale * _score(scorer, query[b, h, t], key[b, h // group], h, position, s)
                score = score if softcap is None else softcap * math.tanh(score / softcap)
                score += float(added[b, h, t, s])
                for modifier in modifiers:
                    score = _modified(modifier, score, b, h, position, s)
                scores[s] = score
        for s, weight in zip(scores, _weights(normalizer, list(scores.values()), h, S), strict=True):
            if keep[b, h, t, s]:
                out[b, h, t] += weight / (1 - dropout_p) * value[b, h // group, s]
    return out


def _score(scorer, q, keys, h, position, s):
    k = keys[s]
    dot = float(np.dot(q, k))
    if type(scorer).__name__ == "Cosine":
        return dot / (math.sqrt(np.dot(q, q)) * math.sqrt(np.dot(k, k)) * float(scorer.temperature[h]))
    if type(scorer).__name__ == "CoPE":
        factor = 1 / math.sqrt(len(q)) if scorer.scale is None else scorer.scale
        count = sum(1 / (1 + math.exp(-factor * np.dot(q, keys[n]))) for n in range(s, position + 1) if n < len(keys))
        count = min(count, len(scorer.position_embedding) - 1)
        below = math.floor(count)
        score = factor * dot
        for n, weight in ((below, 1 - count + below), (below + 1, count - below)):
            if weight:
                score += weight * float(np.dot(q, scorer.position_embedding[n]))
        return score
    return dot


def _modified(modifier, score, b, h, q_idx, kv_idx):
    kind = type(modifier).__name__
    if kind == "Buckets":
        return score + float(modifier.bias[h, min(max(q_idx - kv_idx, -2), 2) + 2])
    if kind == "CappedDistance":
        score = 2 * math.tanh(score / 2)
    if kind in ("Distance", "CappedDistance"):
        return score - float(modifier.slope[h]) * abs(q_idx - kv_idx)
    if kind == "KERPLE":
        r1, r2, distance = float(modifier.r1[h]), float(modifier.r2[h]), abs(q_idx - kv_idx)
        return score - r1 * (math.log(1 + r2 * distance) if modifier.kind == "log" else distance**r2)
    if kind == "FIRE":
        c, reach = float(modifier.c), max(float(modifier.threshold), float(q_idx))
        x = math.log(1 + c * abs(q_idx - kv_idx)) / math.log(1 + c * reach)
        hidden = [max(0.0, w * x + b1) for w, b1 in zip(modifier.hidden_weight, modifier.hidden_bias, strict=True)]
        return score + float(modifier.out_bias[h]) + float(np.dot(hidden, modifier.out_weight[h]))
    return float(modifier.strength[b]) * score**2


def _weights(normalizer, scores, h, keys):
    kind = type(normalizer).__name__
    if kind == "Sigmoid":
        shift = -math.log(keys) if normalizer.shift is None else float(normalizer.shift[h])
        return [1 / (1 + math.exp(-(score + shift))) for score in scores]
    if kind == "Entmax":
        return probabilities(scores, normalizer.alpha)
    if kind in ("Argmax", "TopK"):
        chosen = sorted(range(len(scores)), key=lambda n: -scores[n])[: getattr(normalizer, "k", 1)]
        total = sum(math.exp(scores[n]) for n in chosen)
        return [math.exp(score) / total if n in chosen else 0.0 for n, score in enumerate(scores)]
    sink = [] if normalizer is None or normalizer.sinks is None else [float(normalizer.sinks[h])]
    exps = [math.exp(score) for score in scores]
    total = sum(exps) + sum(math.exp(z) for z in sink)
    return [x / total for x in exps]

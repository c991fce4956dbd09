"""Scaled dot-product attention as loops over single numbers in float64, to compare the library with."""

import math

import numpy as np

from tests.naive.masks import dense


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    scale=None, bias=None, window=None, q_offset=0, kv_lengths=None, softcap=None, sinks=None,
    rng=None, dropout_mask=None, enable_gqa=None, layout="BHTD",
):  # fmt: skip
    """The output, float64, in the layout of the query."""
    weights, _ = attention_weights_and_lse(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, bias=bias, window=window, q_offset=q_offset,
        kv_lengths=kv_lengths, softcap=softcap, sinks=sinks, rng=rng, dropout_mask=dropout_mask,
        enable_gqa=enable_gqa, layout=layout,
    )  # fmt: skip
    kept = np.ones(weights.shape, bool) if dropout_mask is None else np.broadcast_to(dropout_mask, weights.shape)
    q, v = _four_axes(query, layout), _four_axes(value, layout)
    weights = weights.reshape(*q.shape[:3], v.shape[2])  # (B, Hq, T, S)
    kept = kept.reshape(weights.shape)
    group = q.shape[1] // v.shape[1]
    out = np.zeros((*q.shape[:3], v.shape[3]))  # (B, Hq, T, Dv)
    for b, h, t, s in np.ndindex(weights.shape):
        if weights[b, h, t, s] != 0 and kept[b, h, t, s] and dropout_p < 1:
            out[b, h, t] += weights[b, h, t, s] / (1 - dropout_p) * v[b, h // group, s]
    return _given_axes(out, query, layout)


def attention_weights_and_lse(
    query, key, value=None, attn_mask=None, dropout_p=0.0, is_causal=False, *,
    scale=None, bias=None, window=None, q_offset=0, kv_lengths=None, softcap=None, sinks=None,
    rng=None, dropout_mask=None, enable_gqa=None, layout="BHTD",
):  # fmt: skip
    """The weights (*batch, Hq, T, S) before dropout, and lse (*batch, Hq, T); no Hq without head axis."""
    if rng is not None or (dropout_p > 0 and dropout_mask is None):
        raise ValueError("The naive implementation draws no random numbers: give dropout_mask instead of rng.")
    q, k = _four_axes(query, layout), _four_axes(key, layout)
    batch = np.shape(query)[:-3] if np.ndim(query) > 3 else np.shape(query)[:-2]
    heads = q.shape[1:2] if np.ndim(query) > 3 else ()
    given = (*batch, *heads, q.shape[2], k.shape[2])  # (*batch, Hq, T, S)
    full = (*q.shape[:3], k.shape[2])  # (B, Hq, T, S)
    offsets = _per_batch(q_offset, batch, q.shape[0])
    if hasattr(attn_mask, "allows"):
        attn_mask = dense(attn_mask, full, offsets).reshape(given)
    exists, added = _mask_and_bias(attn_mask, bias, given, full)
    lengths = _per_batch(k.shape[2] if kv_lengths is None else kv_lengths, batch, q.shape[0])
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    weights, lse = np.zeros(full), np.full(full[:3], -math.inf)
    for b, h, t in np.ndindex(full[:3]):
        logits = {}
        for s in range(full[3]):
            if exists[b, h, t, s] and _in_reach(s, t + offsets[b], lengths[b], is_causal, window):
                score = scale * float(np.dot(q[b, h, t], k[b, h // group, s]))
                score = score if softcap is None else softcap * math.tanh(score / softcap)
                logits[s] = score + float(added[b, h, t, s])
        lse[b, h, t] = _log_sum_exp([*logits.values(), *([] if sinks is None else [float(sinks[h])])])
        for s, logit in logits.items():
            weights[b, h, t, s] = math.exp(logit - lse[b, h, t])
    return weights.reshape(given), lse.reshape(given[:-1])


def _in_reach(key_position, query_position, length, is_causal, window):
    """Whether all constraints on positions let this query attend to this key."""
    left, right = (None, None) if window is None else window
    return (
        key_position < length
        and (not is_causal or key_position <= query_position)
        and (left is None or query_position - left <= key_position)
        and (right is None or key_position <= query_position + right)
    )


def _mask_and_bias(attn_mask, bias, given, full):
    """Which keys attn_mask and bias leave, and what they add to the scores."""
    exists, added = np.ones(given, bool), np.zeros(given)
    for array in (attn_mask, bias):
        if array is not None and np.asarray(array).dtype == bool:
            exists = exists & array
        elif array is not None:
            exists = exists & (np.asarray(array) != -math.inf)
            added = added + np.asarray(array, np.float64)
    return exists.reshape(full), added.reshape(full)


def _log_sum_exp(logits):
    largest = max(logits, default=-math.inf)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(sum(math.exp(logit - largest) for logit in logits))


def _four_axes(array, layout):
    """(T, D), (B, T, D) or (*batch, H, T, D), in either layout, as (B, H, T, D)."""
    array = np.asarray(array, np.float64)
    if array.ndim < 4:
        return array.reshape(math.prod(array.shape[:-2]), 1, *array.shape[-2:])
    if layout == "BTHD":
        array = np.swapaxes(array, -3, -2)
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])


def _given_axes(out, query, layout):
    """`out` (B, Hq, T, Dv) with the axes that `query` has."""
    if np.ndim(query) < 4:
        return out.reshape(*np.shape(query)[:-1], out.shape[-1])
    out = out.reshape(*np.shape(query)[:-3], *out.shape[1:])
    return np.swapaxes(out, -3, -2) if layout == "BTHD" else out


def _per_batch(numbers, batch, count):
    """An integer, or one per batch, as a list with one for each of `count` flattened batches."""
    return np.broadcast_to(numbers, batch or (1,)).reshape(count).tolist()

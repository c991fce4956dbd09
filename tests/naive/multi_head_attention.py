"""Multi-head attention as loops over single numbers in float64: each head cut out of the projections."""

import math

import numpy as np

from tests.naive.linear import linear
from tests.naive.rotary import rotary as rotate
from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention


def multi_head_attention(
    query, key=None, value=None, params=None, attn_mask=None, dropout_p=0.0, is_causal=False, *, num_heads,
    num_kv_heads=None, bias=None, dropout_mask=None, q_offset=0, kv_lengths=None, rotary=None, norm_eps=1e-6,
    **options,
):  # fmt: skip
    """The output (*batch, T, E), float64."""
    key = query if key is None else key
    value = key if value is None else value
    batch, count = query.shape[:-2], math.prod(query.shape[:-2])
    q = prepared(linear(query, **params["query"]), num_heads, params, "query", norm_eps)  # (B, H, T, Dk)
    k = prepared(linear(key, **params["key"]), num_kv_heads or num_heads, params, "key", norm_eps)  # (B, Hkv, S, Dk)
    v = by_head(linear(value, **params["value"]), num_kv_heads or num_heads)  # (B, Hkv, S, Dv)
    scores = (*batch, num_heads, q.shape[2], k.shape[2])
    over_scores = {"attn_mask": attn_mask, "bias": bias, "dropout_mask": dropout_mask}
    for name, array in over_scores.items():
        if array is not None:
            options[name] = np.broadcast_to(array, scores).reshape(count, *scores[-3:])
    if rotary is not None:
        q, k = rotate(q, offset=q_offset, **vars(rotary)), rotate(k, **vars(rotary))
    if "logit_scale" in params:
        options.setdefault("scale", 1.0)
    options["q_offset"] = np.broadcast_to(q_offset, batch).reshape(count)
    options["kv_lengths"] = np.broadcast_to(k.shape[2] if kv_lengths is None else kv_lengths, batch).reshape(count)
    out = scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=is_causal, **options)
    if "gate" in params:
        gates = by_head(linear(query, **params["gate"]), num_heads)  # (B, H, T, 1 or Dv)
        for b, h, t, d in np.ndindex(out.shape):
            out[b, h, t, d] /= 1 + math.exp(-gates[b, h, t, d if gates.shape[3] > 1 else 0])
    side_by_side = np.concatenate([out[:, h] for h in range(num_heads)], axis=-1)  # (B, T, H Dv)
    return linear(side_by_side.reshape(*query.shape[:-1], -1), **params["out"])


def prepared(x, heads, params, name, eps):
    """Queries or keys by head, after the norms and scales that there are."""
    rows = x.reshape(-1, x.shape[-1]).copy()
    D = x.shape[-1] // heads
    weight = params[f"{name}_norm"]["weight"] if f"{name}_norm" in params else None
    for row in rows:
        if weight is not None:
            for part in np.split(row, len(row) // len(weight)):
                part[:] = [
                    w * e / math.sqrt(sum(part * part) / len(part) + eps)
                    for w, e in zip(weight, part.copy(), strict=True)
                ]
        if "logit_scale" in params:
            for h, part in enumerate(np.split(row, heads)):
                length = math.sqrt(sum(part * part))
                scale = min(math.exp(params["logit_scale"]["weight"][h]), 100.0) if name == "query" else 1.0
                part[:] = [scale * e / length if length > 0 else 0.0 for e in part.copy()]
    return by_head(rows.reshape(*x.shape[:-1], heads * D), heads)


def by_head(x, heads):
    """(*batch, T, H D) -> (B, H, T, D)."""
    D = x.shape[-1] // heads
    rows = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    return np.stack([rows[:, :, h * D : (h + 1) * D] for h in range(heads)], axis=1)

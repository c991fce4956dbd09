"""Cross-attention to a memory whose keys and values are projected once, for decoding step by step."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention.dot_product.heads import heads, output, split_heads
from attnarray.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from attnarray.backend import Array, namespace_of
from attnarray.layers.cache import KVCache
from attnarray.layers.initial import Params
from attnarray.layers.multi_head import MultiHeadAttention
from attnarray.masks import Mask
from attnarray.ops.linear import linear


def project_memory(layer: MultiHeadAttention, params: Params, memory: Array) -> KVCache:
    """Project the keys and values of a memory (B, S, E)."""
    if not checks.is_array(memory) or memory.ndim != 3:
        raise ValueError(f"`memory` is {checks.shown(memory)}, expected an array (B, S, E).")
    num_kv_heads = layer.num_kv_heads or layer.num_heads
    xp = namespace_of(memory)
    key, _ = heads(linear(memory, **params["key"]), num_kv_heads, params, "key", layer.norm_eps)
    value = split_heads(linear(memory, **params["value"]), num_kv_heads)
    key, value = (xp.permute_dims(x, (0, 2, 1, 3)) for x in (key, value))  # (B, Hkv, S, D)
    return KVCache(key, value, int(memory.shape[1]))


def attend_to_memory(
    layer: MultiHeadAttention, params: Params, x: Array, memory: KVCache, attn_mask: Array | Mask | None, lengths: Any
) -> Array:
    """Attend from x (B, T, E) to a memory from `project_memory`: (B, T, E)."""
    xp = namespace_of(x)
    q, _ = heads(linear(x, **params["query"]), layer.num_heads, params, "query", layer.norm_eps)
    q = xp.permute_dims(q, (0, 2, 1, 3))  # (B, H, T, D)
    out = scaled_dot_product_attention(
        q, memory.key, memory.value, attn_mask, kv_lengths=lengths, scale=layer.default_scale
    )
    return output(xp.permute_dims(out, (0, 2, 1, 3)), x, params)

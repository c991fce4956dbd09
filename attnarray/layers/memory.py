"""Cross-attention to a memory whose keys and values are projected once, for decoding step by step."""

from __future__ import annotations

from typing import Any

from attnarray import checks
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
    key, value = (_split(linear(memory, **params[name]), num_kv_heads) for name in ("key", "value"))
    return KVCache(key, value, int(memory.shape[1]))


def attend_to_memory(
    layer: MultiHeadAttention, params: Params, x: Array, memory: KVCache, attn_mask: Array | Mask | None, lengths: Any
) -> Array:
    """Attend from x (B, T, E) to a memory from `project_memory`: (B, T, E)."""
    xp = namespace_of(x)
    q = _split(linear(x, **params["query"]), layer.num_heads)  # (B, H, T, D)
    out = scaled_dot_product_attention(q, memory.key, memory.value, attn_mask, kv_lengths=lengths)
    out = xp.permute_dims(out, (0, 2, 1, 3))  # (B, T, H, Dv)
    return linear(xp.reshape(out, (*x.shape[:2], out.shape[2] * out.shape[3])), **params["out"])


def _split(x: Array, num_heads: int) -> Array:
    """(B, T, H D) -> (B, H, T, D)."""
    xp = namespace_of(x)
    return xp.permute_dims(xp.reshape(x, (*x.shape[:2], num_heads, x.shape[2] // num_heads)), (0, 2, 1, 3))

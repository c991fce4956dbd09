"""Attention with heads and projections for the demo: queries of one sequence over the keys and values of another."""

from __future__ import annotations

from typing import NamedTuple

from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.backend import Array, namespace_of
from attnarray.layers.initial import Params
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd


class HeadsContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    value: LinearContext
    attention: SDPAContext
    out: LinearContext


def heads_fwd(params: Params, x: Array, memory: Array, lengths: Array, heads: int) -> tuple[Array, HeadsContext]:
    """Each head attends with its own slice of the projections.

    Parameters
    ----------
    params : {"query", "key", "value", "out"}, each {"weight": (E, E), "bias": (E,)}
    x : (B, T, E)
    memory : (B, S, E)
    lengths : (B,) int
        How many positions of `memory` exist.
    heads : int

    Returns
    -------
    (B, T, E) and the context for `heads_bwd`
    """
    q, q_ctx = linear_fwd(x, **params["query"])
    k, k_ctx = linear_fwd(memory, **params["key"])
    v, v_ctx = linear_fwd(memory, **params["value"])
    q, k, v = (_split(y, heads) for y in (q, k, v))  # (B, T, H, D)
    mixed, attention = scaled_dot_product_attention_fwd(q, k, v, kv_lengths=lengths, layout="BTHD")
    out, out_ctx = linear_fwd(_merge(mixed), **params["out"])
    return out, HeadsContext(q_ctx, k_ctx, v_ctx, attention, out_ctx)


def heads_bwd(dout: Array, ctx: HeadsContext, heads: int) -> tuple[Array, Array, Params]:
    """dx, dmemory and the gradients of the parameters: each step of the forward, in reverse."""
    dmixed, *out = linear_bwd(dout, ctx.out)
    dattention = scaled_dot_product_attention_bwd(_split(dmixed, heads), ctx.attention)
    dx, *query = linear_bwd(_merge(dattention.query), ctx.query)
    dk, *key = linear_bwd(_merge(dattention.key), ctx.key)
    dv, *value = linear_bwd(_merge(dattention.value), ctx.value)
    grads = {"query": query, "key": key, "value": value, "out": out}
    return dx, dk + dv, {name: {"weight": weight, "bias": bias} for name, (weight, bias) in grads.items()}


def _split(x: Array, heads: int) -> Array:
    return namespace_of(x).reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))  # (B, T, H, D)


def _merge(x: Array) -> Array:
    return namespace_of(x).reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))  # (B, T, E)

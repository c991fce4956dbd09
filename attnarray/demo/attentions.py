"""Adapters of layers and functions for the demo's models: cross-attention (Across) and self-attention (Within)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from attnarray.attention.alignment.location import LocationResult
from attnarray.attention.dot_product.scaled_dot_product import (
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.selection.hard import HardResult
from attnarray.backend import Array, namespace_of
from attnarray.demo.model import weight_and_bias
from attnarray.layers.initial import Params, dense
from attnarray.ops.linear import linear_bwd, linear_fwd
from attnarray.ops.rotary import rotary_bwd, rotary_fwd
from attnarray.random import Philox


@dataclass(frozen=True)
class Across:
    """Cross-attention by a layer of the library."""

    layer: Any

    def init(self, rng: Philox) -> Params:
        params: Params = self.layer.init(rng)
        return params

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        out, ctx = self.layer.fwd(params, query, key, kv_lengths=lengths)
        return out, ctx

    def bwd(self, dout: Any, ctx: Any) -> tuple[Array, Array, Params]:
        grads = self.layer.bwd(dout, ctx)
        return grads.query, grads.key, grads.params


class AcrossByLocation(Across):
    """Location-based attention, which also takes the weights of the previous step."""

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        result, ctx = self.layer.fwd(params, query, key, previous=before, kv_lengths=lengths)
        return result.out, ctx

    def bwd(self, dout: Any, ctx: Any) -> tuple[Array, Array, Params]:
        return super().bwd(LocationResult(dout, None), ctx)


class AcrossHard(Across):
    """Hard attention: it samples one character in training, and takes the most likely one otherwise."""

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        layer = self.layer if rng else replace(self.layer, estimator="argmax", temperature=1.0)
        result, ctx = layer.fwd(params, query, key, kv_lengths=lengths, rng=rng)
        return result.out, ctx

    def bwd(self, dout: Any, ctx: Any) -> tuple[Array, Array, Params]:
        return super().bwd(HardResult(dout, None, None), ctx)


@dataclass(frozen=True)
class AcrossFunction:
    """Cross-attention by a function without parameters: one head, with keys as values."""

    function_fwd: Callable[..., tuple[Array, Any]]
    function_bwd: Callable[..., Any]

    def init(self, rng: Philox) -> Params:
        return {}

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        return self.function_fwd(query, key, key, kv_lengths=lengths)

    def bwd(self, dout: Any, ctx: Any) -> tuple[Array, Array, Params]:
        grads = self.function_bwd(dout, ctx)
        return grads.query, grads.key + grads.value, {}


@dataclass(frozen=True)
class Within:
    """Self-attention by a layer that projects its own values."""

    layer: Any

    def init(self, rng: Philox) -> Params:
        params: Params = self.layer.init(rng)
        return params

    def fwd(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, Any]:
        out, ctx = self.layer.fwd(params, x, attn_mask=mask, kv_lengths=lengths)
        return out, ctx

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Params]:
        grads = self.layer.bwd(dout, ctx)
        return grads.x, grads.params


class WithinValuesContext(NamedTuple):
    value: Any
    attention: Any


@dataclass(frozen=True)
class WithinValues:
    """Self-attention by a layer that takes values: here W x, as wide as x."""

    layer: Any
    width: int

    def init(self, rng: Philox) -> Params:
        attention, value = rng.split(2)
        return {"layer": self.layer.init(attention), "value": dense(value, self.width, self.width)}

    def fwd(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, WithinValuesContext]:
        value, value_ctx = linear_fwd(x, **params["value"])
        out, ctx = self.layer.fwd(params["layer"], x, value=value, attn_mask=mask, kv_lengths=lengths)
        return out, WithinValuesContext(value_ctx, ctx)

    def bwd(self, dout: Array, ctx: WithinValuesContext) -> tuple[Array, Params]:
        grads = self.layer.bwd(dout, ctx.attention)
        value = linear_bwd(grads.value, ctx.value)
        return grads.x + value.x, {"layer": grads.params, "value": weight_and_bias(value.weight, value.bias)}


class WithinRotaryContext(NamedTuple):
    projected: Any
    query: Any
    key: Any
    attention: Any
    out: Any


@dataclass(frozen=True)
class WithinRotary:
    """Multi-head self-attention with rotary position embeddings."""

    width: int
    num_heads: int

    def init(self, rng: Philox) -> Params:
        projected, out = rng.split(2)
        return {"projected": dense(projected, 3 * self.width, self.width), "out": dense(out, self.width, self.width)}

    def fwd(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, WithinRotaryContext]:
        xp = namespace_of(x)
        B, T, E = x.shape
        projected, projected_ctx = linear_fwd(x, **params["projected"])  # (B, T, 3 E)
        split = xp.permute_dims(xp.reshape(projected, (B, T, 3, self.num_heads, E // self.num_heads)), (2, 0, 3, 1, 4))
        query, query_ctx = rotary_fwd(split[0, ...])  # (B, H, T, D)
        key, key_ctx = rotary_fwd(split[1, ...])
        found, attention = scaled_dot_product_attention_fwd(query, key, split[2, ...], mask, kv_lengths=lengths)
        joined = xp.reshape(xp.permute_dims(found, (0, 2, 1, 3)), (B, T, E))
        out, out_ctx = linear_fwd(joined, **params["out"])
        return out, WithinRotaryContext(projected_ctx, query_ctx, key_ctx, attention, out_ctx)

    def bwd(self, dout: Array, ctx: WithinRotaryContext) -> tuple[Array, Params]:
        xp = namespace_of(dout)
        B, T, E = dout.shape
        djoined, *out = linear_bwd(dout, ctx.out)
        dfound = xp.permute_dims(xp.reshape(djoined, (B, T, self.num_heads, E // self.num_heads)), (0, 2, 1, 3))
        grads = scaled_dot_product_attention_bwd(dfound, ctx.attention)
        dquery, dkey = rotary_bwd(grads.query, ctx.query).x, rotary_bwd(grads.key, ctx.key).x
        dsplit = xp.stack([dquery, dkey, grads.value])  # (3, B, H, T, D)
        dprojected = xp.reshape(xp.permute_dims(dsplit, (1, 3, 0, 2, 4)), (B, T, 3 * E))
        dx, *projected = linear_bwd(dprojected, ctx.projected)
        return dx, {"projected": weight_and_bias(*projected), "out": weight_and_bias(*out)}

"""Linear attention in the demo's blocks: characters, then output slots, then padding, from the first to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.attention.layout import CANONICAL, Layout
from attnarray.attention.linear.linear_attention import linear_attention
from attnarray.backend import Array, device_of, namespace_of
from attnarray.demo.model import OUTPUTS
from attnarray.layers.initial import Params
from attnarray.layers.linear_attention import LinearAttention, LinearLayerContext
from attnarray.random import Philox


class LinearContext(NamedTuple):
    """The context of the layer, and where each position of the block stands in its sequence, (B, T)."""

    layer: LinearAttention
    found: LinearLayerContext
    place: Array

    @property
    def q(self) -> Array:
        """(B, H, T, Dk)"""
        return self.found.attention.q

    @property
    def layout(self) -> Layout:
        """That of the weights."""
        return CANONICAL

    def weights_of_rows(self, rows: slice) -> Array:
        """The share of each character in the outputs of some positions: the output of values that are unit vectors.

        The delta rules may also take away; this is by size.
        """
        q, k, given = self.found.attention.q, self.found.attention.k, self.found.attention.given
        xp, T = namespace_of(q), q.shape[2]
        unit = xp.broadcast_to(xp.eye(T, dtype=q.dtype, device=device_of(q)), (*k.shape[:3], T))
        gates: Any = {
            name: None if x is None else x[..., 0] for name, x in (("decay", given.decay), ("beta", given.beta))
        }
        weights: Any = linear_attention(
            q, k, unit, **gates, rule=self.layer.rule, normalize=self.layer.normalize,
            feature_map=self.layer.feature_map,
        ).out  # fmt: skip
        weights = xp.take_along_axis(weights, xp.broadcast_to(self.place[:, None, :, None], weights.shape), axis=2)
        weights = xp.take_along_axis(weights, xp.broadcast_to(self.place[:, None, None, :], weights.shape), axis=3)
        is_slot = xp.arange(T, device=device_of(q)) < OUTPUTS
        size = xp.where(is_slot, 0.0, xp.abs(weights[:, :, rows, :]))
        return size / xp.sum(size, axis=-1, keepdims=True)


@dataclass(frozen=True)
class WithinLinear:
    """Self-attention by a layer of linear attention."""

    layer: LinearAttention

    def init(self, rng: Philox) -> Params:
        params: Params = self.layer.init(rng)
        return params

    def fwd(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, LinearContext]:
        xp = namespace_of(x)
        position = xp.arange(x.shape[1], device=device_of(x))[None, :]  # of the slots, then the characters
        last = lengths[:, None]
        after = position - OUTPUTS
        place = xp.where(position < OUTPUTS, position + last - OUTPUTS, xp.where(position < last, after, position))
        ordered = _taken(x, xp.argsort(place, axis=1))
        out, found = self.layer.fwd(params, ordered, lengths=lengths)
        return _taken(out, place), LinearContext(self.layer, found, place)

    def bwd(self, dout: Array, ctx: LinearContext) -> tuple[Array, Params]:
        order = namespace_of(dout).argsort(ctx.place, axis=1)
        grads = self.layer.bwd(_taken(dout, order), ctx.found)
        return _taken(grads.x, ctx.place), grads.params


def _taken(x: Array, order: Array) -> Any:
    """The rows of x (B, T, E) in an order (B, T)."""
    xp = namespace_of(x)
    return xp.take_along_axis(x, xp.broadcast_to(order[:, :, None], x.shape), axis=1)

"""The block of Transformer-XL: attention with relative positions over a memory and a segment, and feed-forward."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.feed_forward import Activation, FeedForward
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads
from attnarray.layers.norm import LayerNorm
from attnarray.layers.relative import RelativeAttention
from attnarray.layers.residual import Residual, ResidualContext
from attnarray.random import Philox


class RelativeBlockContext(NamedTuple):
    attention: ResidualContext
    feed_forward: ResidualContext


@dataclass(frozen=True)
class RelativeBlock(Layer):
    """One block; `TransformerXL` documents the fields."""

    dim: int
    num_heads: int
    head_dim: int | None
    hidden_dim: int | None
    pre_norm: bool
    activation: Activation
    dropout: float
    attention_dropout: float
    hidden_dropout: float
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        hidden, norm = self.hidden_dim or 4 * self.dim, LayerNorm(self.dim, self.eps)
        return {
            "attention": RelativeAttention(self.dim, self.num_heads, self.head_dim),
            "attention_norm": norm,
            "feed_forward": FeedForward(self.dim, hidden, self.activation, dropout=self.hidden_dropout),
            "feed_forward_norm": norm,
        }

    def fwd(
        self, params: Params, x: Array, memory: Array | None, rng: Philox | None
    ) -> tuple[Any, Any, RelativeBlockContext]:
        """Return y (B, T, E), the input of the attention, which is the next memory, and the context."""
        parts, rngs = self._parts, rng.split(4) if rng else (None,) * 4
        around_attention, around_feed_forward = self._residuals
        given = []

        def attend(x: Array) -> tuple[Array, Any]:
            given.append(x)
            p = self.attention_dropout if rng else 0.0
            y, ctx = parts["attention"].fwd(params["attention"], x, memory, None, p, True, rng=rngs[0])
            return y, ctx

        def feed(x: Array) -> tuple[Array, Any]:
            y, ctx = parts["feed_forward"].fwd(params["feed_forward"], x, rng=rngs[2])
            return y, ctx

        x, attention_ctx = around_attention.fwd(params, x, attend, rngs[1])
        x, feed_forward_ctx = around_feed_forward.fwd(params, x, feed, rngs[3])
        return x, given[0], RelativeBlockContext(attention_ctx, feed_forward_ctx)

    def bwd(self, dout: Array, ctx: RelativeBlockContext) -> LayerGrads:
        """Return the gradients of x and the parameters; the memory has none."""
        checks.context("ctx", ctx, RelativeBlockContext)
        parts, (around_attention, around_feed_forward) = self._parts, self._residuals

        def attend(dy: Array, ctx: Any) -> tuple[Array, Params]:
            grads = parts["attention"].bwd(dy, ctx)
            return grads.x, grads.params

        def feed(dy: Array, ctx: Any) -> tuple[Array, Params]:
            grads = parts["feed_forward"].bwd(dy, ctx)
            return grads.x, grads.params

        dx, norms, feed_forward = around_feed_forward.bwd(dout, ctx.feed_forward, feed)
        dx, attention_norms, attention = around_attention.bwd(dx, ctx.attention, attend)
        params = {"attention": attention, **attention_norms, "feed_forward": feed_forward, **norms}
        return LayerGrads(dx, {name: params[name] for name in parts})

    @functools.cached_property
    def _residuals(self) -> tuple[Residual, Residual]:
        norm = LayerNorm(self.dim, self.eps)
        attention, feed_forward = (
            Residual(name, norm, self.pre_norm, self.dropout) for name in ("attention", "feed_forward")
        )
        return attention, feed_forward

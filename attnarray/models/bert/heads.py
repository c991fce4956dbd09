"""The heads of BERT: the pooler, and the head for masked tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.feed_forward import ACTIVATIONS, Activation
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.norm import LayerNorm
from attnarray.ops.activations import TanhContext, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.ops.norm import LayerNormContext
from attnarray.random import Philox


class PoolerContext(NamedTuple):
    dense: LinearContext
    active: TanhContext


@dataclass(frozen=True)
class Pooler(Linear):
    r"""tanh(W x + b) of the state of the first token."""

    def pool(self, params: Params, first: Array) -> tuple[Any, PoolerContext]:
        """Return (B, dim) of (B, dim), and the context for `pool_bwd`."""
        dense, dense_ctx = self.fwd(params, first)
        pooled, active_ctx = tanh_fwd(dense)
        return pooled, PoolerContext(dense_ctx, active_ctx)

    def pool_bwd(self, dout: Array, ctx: PoolerContext) -> LayerGrads:
        """The gradients of x and the parameters."""
        return self.bwd(tanh_bwd(dout, ctx.active).x, ctx.dense)


class MaskHeadContext(NamedTuple):
    dense: LinearContext
    active: Any
    norm: LayerNormContext
    decoder: LinearContext


class MaskHeadGrads(NamedTuple):
    states: Any
    params: Params


def check_head(head: Any, has_head: bool) -> None:
    """Check the gradients of the head, from the backward of its logits."""
    if not has_head or not isinstance(head, dict) or head.keys() != {"token", "mask_head"}:
        entries = ", ".join(map(str, head)) or "nothing" if isinstance(head, dict) else None
        given = f"a dict with {entries}" if entries else checks.shown(head)
        raise TypeError(f"`head` is {given}, expected the `params` that mask_logits_bwd of this model returns.")


@dataclass(frozen=True)
class MaskHead(Layer):
    r"""The logits of masked tokens, with the token embedding E as the output weight.

    .. math:: \mathrm{logits} = E\, \mathrm{norm}(\phi(W x + b)) + c

    Its own parameters are dense, norm and bias (V,); `fwd` takes the parameters of the model, with E as token.weight.
    """

    vocab_size: int
    dim: int
    activation: Activation
    eps: float
    init_std: float

    def parts(self) -> dict[str, Any]:
        return {"dense": Linear(self.dim, self.dim, init_std=self.init_std), "norm": LayerNorm(self.dim, self.eps)}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        return {**super().init(rng, dtype), "bias": zeros(self.vocab_size, dtype=dtype)}

    def shapes(self) -> Shapes:
        return {**super().shapes(), "bias": (self.vocab_size,)}

    def fwd(self, params: Params, states: Array) -> tuple[Any, MaskHeadContext]:
        """Return logits (..., V) of states (..., dim), and the context for `bwd`."""
        parts, (_, activate, _), own = self._parts, ACTIVATIONS[self.activation], params["mask_head"]
        x, dense_ctx = parts["dense"].fwd(own["dense"], states)
        x, active_ctx = activate(x)
        x, norm_ctx = parts["norm"].fwd(own["norm"], x)
        logits, decoder_ctx = linear_fwd(x, params["token"]["weight"], own["bias"])
        return logits, MaskHeadContext(dense_ctx, active_ctx, norm_ctx, decoder_ctx)

    def bwd(self, dout: Array, ctx: MaskHeadContext) -> MaskHeadGrads:
        """Return the gradients of the states, of the head's parameters and of E."""
        parts, (_, _, activation_bwd) = self._parts, ACTIVATIONS[self.activation]
        decoder = linear_bwd(dout, ctx.decoder)
        norm = parts["norm"].bwd(decoder.x, ctx.norm)
        dense = parts["dense"].bwd(activation_bwd(norm.x, ctx.active).x, ctx.dense)
        own = {"dense": dense.params, "norm": norm.params, "bias": decoder.bias}
        return MaskHeadGrads(dense.x, {"token": {"weight": decoder.weight}, "mask_head": own})

"""The heads of BERT: the pooler, the head for masked tokens, and that for classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.block import NORMS, Norm
from attnarray.layers.feed_forward import ACTIVATIONS, Activation
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.ops.activations import tanh, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.ops.norm import LayerNormContext
from attnarray.random import Philox

PoolerActivation = Literal["tanh", "relu", "gelu"]
Classified = Literal["sequences", "tokens", "spans"]
POOLER_ACTIVATIONS: dict[str, Any] = {
    "tanh": (tanh, tanh_fwd, tanh_bwd), "relu": ACTIVATIONS["relu"], "gelu": ACTIVATIONS["gelu"]
}  # fmt: skip


class PoolerContext(NamedTuple):
    dense: LinearContext
    active: Any


@dataclass(frozen=True)
class Pooler(Linear):
    r"""phi(W x + b) of the state of the first token."""

    activation: PoolerActivation = "tanh"

    def pool(self, params: Params, first: Array) -> tuple[Any, PoolerContext]:
        """Return (B, dim) of (B, dim), and the context for `pool_bwd`."""
        dense, dense_ctx = self.fwd(params, first)
        pooled, active_ctx = POOLER_ACTIVATIONS[self.activation][1](dense)
        return pooled, PoolerContext(dense_ctx, active_ctx)

    def pool_bwd(self, dout: Array, ctx: PoolerContext) -> LayerGrads:
        """The gradients of x and the parameters."""
        return self.bwd(POOLER_ACTIVATIONS[self.activation][2](dout, ctx.active).x, ctx.dense)


class MaskHeadContext(NamedTuple):
    dense: LinearContext
    active: Any
    norm: LayerNormContext
    decoder: LinearContext


class MaskHeadGrads(NamedTuple):
    states: Any
    params: Params


class ClassHeadContext(NamedTuple):
    linear: LinearContext


class ClassHeadGrads(NamedTuple):
    """The gradients of states and pooled vectors, one of them None, and of the head: give them to `bwd`."""

    states: Any
    pooled: Any
    params: Params


@dataclass(frozen=True)
class ClassHead(Linear):
    r"""The logits of classes: W x + b, of pooled vectors or of the states of all tokens."""

    classified: Classified = "sequences"

    def class_logits(self, params: Params, result: Any) -> tuple[Any, ClassHeadContext]:
        """Return logits (B, C) of pooled vectors (B, dim), or (B, T, C) of states (B, T, dim)."""
        logits, ctx = self.fwd(params, result.pooled if self.classified == "sequences" else result.states)
        return logits, ClassHeadContext(ctx)

    def class_logits_bwd(self, dlogits: Array, ctx: ClassHeadContext) -> ClassHeadGrads:
        """Return the gradients of what was classified, and of the head."""
        grads = self.bwd(dlogits, ctx.linear)
        params: Params = {"classifier": grads.params}
        if self.classified == "sequences":
            return ClassHeadGrads(None, grads.x, params)
        return ClassHeadGrads(grads.x, None, params)


def check_head(head: Any, names: set[str]) -> None:
    """Check the gradients of heads, from the backwards of their logits; `names` are the heads of the model."""
    given = set(head) if isinstance(head, dict) else set()
    if not given or ("token" in given) != ("mask_head" in given) or not given <= names | {"token"}:
        entries = ", ".join(map(str, head)) or "nothing" if isinstance(head, dict) else None
        shown = f"a dict with {entries}" if entries else checks.shown(head)
        raise TypeError(
            f"`head` is {shown}, expected the `params` that mask_logits_bwd or class_logits_bwd of this model returns."
        )


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
    embedding_dim: int | None = None
    bias: bool = True
    kind: Norm = "layer"  # of the norm

    def parts(self) -> dict[str, Any]:
        width = self.embedding_dim or self.dim
        dense = Linear(self.dim, width, self.bias, self.init_std)
        return {"dense": dense, "norm": NORMS[self.kind](width, self.eps)}

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

"""The base of encoder and decoder of a Transformer: a stack of blocks, and an optional final norm."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from attnarray import checks, tree
from attnarray.backend import Array
from attnarray.layers.block import NORMS, BlockGrads, Norm, TransformerBlock
from attnarray.layers.checking import check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox


class StackContext(NamedTuple):
    blocks: tuple[Any, ...]
    norm: Any | None


@dataclass(frozen=True)
class Blocks:
    """Equal blocks, whose parameters are a list."""

    block: Layer
    num_layers: int

    def init(self, rng: Philox, dtype: str = "float32") -> list[Params]:
        """Initial parameters, each block's from its own generator."""
        return [self.block.init(own, dtype) for own in rng.split(self.num_layers)]

    def shapes(self) -> list[Shapes]:
        """The shapes of all parameters, as a tree like them."""
        return [self.block.shapes()] * self.num_layers


@dataclass(frozen=True)
class Stack(Layer):
    """`num_layers` equal blocks, followed by a norm with `final_norm`; `Encoder` documents the fields."""

    cross: ClassVar[bool] = False
    widths: ClassVar = {"x": ("dim",), "memory": ("dim",)}

    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int | None = None
    pre_norm: bool = True
    final_norm: bool | None = None
    activation: Activation = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    eps: float = 1e-5
    norm: Norm = "layer"
    gated: bool = False
    bias: bool = True
    num_kv_heads: int | None = None
    rotary: Rotary | None = None
    recompute: bool = False
    init_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # validates the fields of the parts

    @functools.cached_property
    def block(self) -> TransformerBlock:
        """The configuration of each block."""
        return TransformerBlock(
            self.dim, self.num_heads, self.hidden_dim, self.cross, self.pre_norm, self.norm, self.eps, self.activation,
            self.gated, self.bias, self.dropout, self.attention_dropout, self.hidden_dropout, self.num_kv_heads,
            self.rotary, self.recompute, self.init_std,
        )  # fmt: skip

    def parts(self) -> dict[str, Any]:
        blocks: dict[str, Any] = {"blocks": Blocks(self.block, self.num_layers)}
        final = self.pre_norm if self.final_norm is None else self.final_norm
        return {**blocks, "norm": NORMS[self.norm](self.dim, self.eps)} if final else blocks

    def _states(
        self, params: Params, x: Array, memory: Array | None, rng: Philox | None, options: Any
    ) -> Iterator[Array]:
        """The output of each block; the last one with the final norm, if there is one."""
        block, rngs = self.block, _rngs(rng, self.num_layers)
        for n in range(self.num_layers):
            x = block(params["blocks"][n], x, memory, rng=rngs[n], **options)
            if n == self.num_layers - 1 and "norm" in params:
                x = self._parts["norm"](params["norm"], x)
            yield x

    def _fwd(
        self, params: Params, x: Array, memory: Array | None, rng: Philox | None, options: Any
    ) -> tuple[Array, StackContext]:
        block, rngs, contexts, norm_ctx = self.block, _rngs(rng, self.num_layers), [], None
        for n in range(self.num_layers):
            x, ctx = block.fwd(params["blocks"][n], x, memory, rng=rngs[n], **options)
            contexts.append(ctx)
        if "norm" in params:
            x, norm_ctx = self._parts["norm"].fwd(params["norm"], x)
        return x, StackContext(tuple(contexts), norm_ctx)

    def _bwd(self, dout: Array, ctx: StackContext) -> BlockGrads:
        """The gradients of x and the parameters, and of the inputs that all blocks share: the memory and the biases."""
        checks.context("ctx", ctx, StackContext)
        check_same(self, "number of layers", len(ctx.blocks), self.num_layers)
        check_same(self, "final norm", ctx.norm is not None, "norm" in self._parts)
        norm_grads: Params = {}
        if ctx.norm is not None:
            norm = self._parts["norm"].bwd(dout, ctx.norm)
            dout, norm_grads = norm.x, {"norm": norm.params}
        block, blocks, shared = self.block, [], None
        for n in reversed(range(self.num_layers)):
            grads = block.bwd(dout, ctx.blocks[n])
            dout = grads.x
            blocks.append(grads.params)
            own = (grads.memory, grads.bias, grads.memory_bias)
            shared = own if shared is None else tree.add(shared, own)
        dmemory, dbias, dmemory_bias = shared or (None, None, None)
        return BlockGrads(dout, dmemory, {"blocks": blocks[::-1], **norm_grads}, dbias, dmemory_bias)


def _rngs(rng: Philox | None, count: int) -> tuple[Philox | None, ...]:
    return rng.split(count) if rng else (None,) * count

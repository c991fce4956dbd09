"""The base of encoder and decoder of a Transformer: a stack of blocks, and an optional final norm."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.hooks import block_output
from attnarray.layers.block import NORMS, BlockGrads, Mixer, Norm, TransformerBlock, check_mixer
from attnarray.layers.checking import check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.layers.linear_attention import LinearAttention
from attnarray.models.padding import attention_mask, check_starts
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox


class StackContext(NamedTuple):
    blocks: tuple[Any, ...]
    norm: Any | None


@dataclass(frozen=True)
class Blocks:
    """Blocks, whose parameters are a list."""

    blocks: tuple[Layer, ...]

    def init(self, rng: Philox, dtype: str = "float32") -> list[Params]:
        """Initial parameters, each block's from its own generator."""
        rngs = rng.split(len(self.blocks))
        return [block.init(own, dtype) for block, own in zip(self.blocks, rngs, strict=True)]

    def shapes(self) -> list[Shapes]:
        """The shapes of all parameters, as a tree like them."""
        return [block._shapes for block in self.blocks]


@dataclass(frozen=True)
class Stack(Layer):
    """`num_layers` blocks, followed by a norm with `final_norm`; `Encoder` documents the fields."""

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
    mixers: tuple[Mixer | LinearAttention, ...] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixers(self, self.num_layers)
        self.parts()  # validates the fields of the parts

    @property
    def block(self) -> TransformerBlock:
        """The configuration of the first block."""
        return self.blocks[0]

    @functools.cached_property
    def blocks(self) -> tuple[TransformerBlock, ...]:
        """The configuration of each block."""
        kinds = {
            mixer: TransformerBlock(
                self.dim, self.num_heads, self.hidden_dim, self.cross, self.pre_norm, self.norm, self.eps,
                self.activation, self.gated, self.bias, self.dropout, self.attention_dropout, self.hidden_dropout,
                self.num_kv_heads, self.rotary, self.recompute, self.init_std, mixer,
            )
            for mixer in dict.fromkeys(self.mixers)
        }  # fmt: skip
        return tuple(kinds[self.mixers[n % len(self.mixers)]] for n in range(self.num_layers))

    def parts(self) -> dict[str, Any]:
        blocks: dict[str, Any] = {"blocks": Blocks(self.blocks)}
        final = self.pre_norm if self.final_norm is None else self.final_norm
        return {**blocks, "norm": NORMS[self.norm](self.dim, self.eps)} if final else blocks

    def _states(
        self, params: Params, x: Array, memory: Array | None, rng: Philox | None, options: Any
    ) -> Iterator[Array]:
        """The output of each block; the last one with the final norm, if there is one."""
        rngs, each = _rngs(rng, self.num_layers), self.block_options(options, x)
        for n, block in enumerate(self.blocks):
            x = block_output(self, n, block(params["blocks"][n], x, memory, rng=rngs[n], **each[n]))
            if n == self.num_layers - 1 and "norm" in params:
                x = self._parts["norm"](params["norm"], x)
            yield x

    def _fwd(
        self, params: Params, x: Array, memory: Array | None, rng: Philox | None, options: Any
    ) -> tuple[Array, StackContext]:
        rngs, each, contexts, norm_ctx = _rngs(rng, self.num_layers), self.block_options(options, x), [], None
        for n, block in enumerate(self.blocks):
            x, ctx = block.fwd(params["blocks"][n], x, memory, rng=rngs[n], **each[n])
            x = block_output(self, n, x)
            contexts.append(ctx)
        if "norm" in params:
            x, norm_ctx = self._parts["norm"].fwd(params["norm"], x)
        return x, StackContext(tuple(contexts), norm_ctx)

    def _bwd(self, dout: Array, ctx: StackContext, drouter_logits: Sequence[Array] | None = None) -> BlockGrads:
        """The gradients of x and the parameters, and of the inputs that all blocks share: the memory and the biases."""
        checks.context("ctx", ctx, StackContext)
        check_same(self, "number of layers", len(ctx.blocks), self.num_layers)
        check_same(self, "final norm", ctx.norm is not None, "norm" in self._parts)
        norm_grads: Params = {}
        if ctx.norm is not None:
            norm = self._parts["norm"].bwd(dout, ctx.norm)
            dout, norm_grads = norm.x, {"norm": norm.params}
        blocks: list[Params] = []
        shared: Any = (None, None, None)
        for n in reversed(range(self.num_layers)):
            grads = self.blocks[n].bwd(dout, ctx.blocks[n], None if drouter_logits is None else drouter_logits[n])
            dout = grads.x
            blocks.append(grads.params)
            own = (grads.memory, grads.bias, grads.memory_bias)
            shared = [a if b is None else b if a is None else a + b for a, b in zip(shared, own, strict=True)]
        dmemory, dbias, dmemory_bias = shared
        return BlockGrads(dout, dmemory, {"blocks": blocks[::-1], **norm_grads}, dbias, dmemory_bias)

    def block_options(self, options: Any, x: Array, first: int | None = None) -> list[Any]:
        """The options of each block for x (*batch, T, E), after the `first` positions of a cache if there is one.

        Left padding is a mask of scores, and steps that do not change a state. A bias is of scores.
        """
        starts = options.get("starts")
        if starts is None and self.mixers == ("attention",):
            return [options] * self.num_layers
        scored = {name: option for name, option in options.items() if name != "starts"}
        linear = {name: option for name, option in options.items() if name != "bias" or "attention" not in self.mixers}
        if starts is not None:
            if x.ndim != 3:
                raise ValueError(f"`starts` is given, but `x` has shape {tuple(x.shape)}, expected (B, T, E).")
            if first is None:  # else they are those of the cache
                starts = check_starts(starts, x.shape[0], x.shape[1], x)
            linear["starts"] = starts
            scored["attn_mask"] = attention_mask(options.get("attn_mask"), starts, (first or 0) + x.shape[1])
        return [scored if block.mixer == "attention" else linear for block in self.blocks]


def check_mixers(model: Any, num_layers: int) -> None:
    """Check the field `mixers` of a configuration; the shortest such tuple takes its place."""
    if isinstance(model.mixers, list):
        object.__setattr__(model, "mixers", tuple(model.mixers))
    if not isinstance(model.mixers, tuple) or not 0 < len(model.mixers) <= num_layers:
        raise ValueError(
            f"`mixers` is {checks.shown(model.mixers)}, expected a tuple of 1 to {num_layers} names, repeated over the "
            f"{num_layers} layers, such as ('gated_delta_net', 'attention')."
        )
    for mixer in model.mixers:
        check_mixer("mixers", mixer, model.dim)
    object.__setattr__(model, "mixers", shortest(model.mixers, num_layers))


def shortest(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The shortest tuple that, repeated over `count` layers, is `values` repeated over them."""
    each = [values[n % len(values)] for n in range(count)]
    return next(values[:p] for p in range(1, count + 1) if all(each[n] == each[n % p] for n in range(count)))


def _rngs(rng: Philox | None, count: int) -> tuple[Philox | None, ...]:
    return rng.split(count) if rng else (None,) * count

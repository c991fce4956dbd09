"""One side of an encoder-decoder: the embedding of its tokens and positions, and its blocks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_name, library_name, namespace_of, use_backend
from attnarray.layers.block import TransformerBlock
from attnarray.layers.checking import check_same
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.norm import LayerNorm
from attnarray.magnitude import sum_wide
from attnarray.models.gpt.body import Body
from attnarray.models.padding import check_tokens
from attnarray.models.relative_bias import RelativeBias, RelativeBiasContext
from attnarray.models.transformer.decoder import Decoder
from attnarray.models.transformer.stack import Stack
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext, embedding_bwd, embedding_fwd
from attnarray.ops.norm import LayerNormContext
from attnarray.ops.positions import sinusoidal
from attnarray.random import Philox

Positions = Literal["learned", "sinusoidal", "relative"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


@dataclass(frozen=True)
class DecoderOfBlocks(Decoder):
    """A `Decoder` of given blocks."""

    each_block: tuple[TransformerBlock, ...] = ()

    @functools.cached_property
    def blocks(self) -> tuple[TransformerBlock, ...]:
        """The configuration of each block."""
        return self.each_block


def stack(block: TransformerBlock, num_layers: int, final_norm: bool) -> Stack:
    """Return `num_layers` such blocks, an encoder's or a decoder's."""
    kind = DecoderOfBlocks if block.cross else Body
    return kind(
        block.dim, num_layers, block.num_heads, pre_norm=block.pre_norm, final_norm=final_norm, norm=block.norm,
        eps=block.eps, dropout=block.dropout, attention_dropout=block.attention_dropout,
        hidden_dropout=block.hidden_dropout, each_block=(block,) * num_layers,
    )  # fmt: skip


class SideContext(NamedTuple):
    token: EmbeddingContext
    position: EmbeddingContext | None
    norm: LayerNormContext | None
    dropout: DropoutContext
    relative: RelativeBiasContext | None
    body: Any


class SideGrads(NamedTuple):
    """`token` is the gradient of the embedding, which both sides may share."""

    token: Any
    memory: Any
    params: Params


@dataclass(frozen=True)
class Side(Layer):
    r"""The encoder or the decoder, from tokens.

    .. math:: x_t = \mathrm{drop}(\mathrm{norm}(s\, E_{i_t} + P_t))

    followed by its blocks. The fields are those of `EncoderDecoder`; the token embedding E is given to each call.
    """

    body: Stack
    max_seq_len: int
    positions: Positions
    position_offset: int
    scaled: bool
    embedding_norm: bool
    buckets: int
    max_distance: int
    dropout: float
    init_std: float

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self.positions == "learned":
            parts["position"] = Embedding(self.max_seq_len + self.position_offset, self.body.dim, self.init_std)
        if self.embedding_norm:
            parts["embedding_norm"] = LayerNorm(self.body.dim, self.body.eps)
        if self.positions == "relative":
            parts["relative"] = RelativeBias(
                self.body.num_heads, self.buckets, self.max_distance, not self.body.cross, self.init_std
            )
        return {**parts, **self.body.parts()}

    def fwd(
        self, params: Params, tokens: Array, weight: Array, memory: Array | None, rng: Philox | None, **options: Any
    ) -> tuple[Any, SideContext]:
        """Return the states (B, T, dim) of tokens (B, T), and the context for `bwd`."""
        rngs = rng.split(2) if rng else (None, None)
        x, ctx = self._embed(params, tokens, weight, 0, rngs[0])
        options["bias"], relative_ctx = self._bias(params, tokens.shape[1], 0)
        given = (x,) if memory is None else (x, memory)
        body: Any = self.body
        y, body_ctx = body.fwd(self._body_params(params), *given, rng=rngs[1], **options)
        return y, ctx._replace(relative=relative_ctx, body=body_ctx)

    def bwd(self, dout: Array, ctx: SideContext) -> SideGrads:
        r"""Return the gradients of the token embedding, the memory and the parameters.

        .. math:: dE_v = s \sum_{t:\, i_t = v} dz_t, \qquad dP_t = \sum_b dz_{bt}

        with dz the gradient of the sum before the norm.
        """
        given = {"position": ctx.position, "relative": ctx.relative, "embedding_norm": ctx.norm}
        for name, own in given.items():
            check_same(self, name, own is not None, name in self._parts)
        body: Any = self.body
        parts, grads = self._parts, body.bwd(dout, ctx.body)
        params: Params = dict(grads.params)
        if ctx.relative is not None:
            params["relative"] = parts["relative"].bwd(grads.bias, ctx.relative).params
        dx = dropout_bwd(grads.x, ctx.dropout).x
        if ctx.norm is not None:
            dx, params["embedding_norm"] = parts["embedding_norm"].bwd(dx, ctx.norm)
        if ctx.position is not None:
            params["position"] = parts["position"].bwd(sum_wide(dx, 0), ctx.position).params
        dtoken = embedding_bwd(dx * self.scale if self.scaled else dx, ctx.token).weight
        return SideGrads(dtoken, getattr(grads, "memory", None), {name: params[name] for name in parts})

    def step(self, params: Params, tokens: Array, weight: Array, cache: Any, memory_lengths: Any) -> tuple[Any, Any]:
        """Return the states of the next tokens (B, T) of a decoder, and the cache with them."""
        first, body = cache[0].own.length, self.body
        assert isinstance(body, Decoder), "only a decoder has steps"
        x, _ = self._embed(params, tokens, weight, first, None)
        bias, _ = self._bias(params, tokens.shape[1], first)
        return body.step(self._body_params(params), x, cache, memory_lengths=memory_lengths, bias=bias)

    @property
    def scale(self) -> float:
        """The factor s of the embedding."""
        return math.sqrt(self.body.dim) if self.scaled else 1.0

    def _embed(
        self, params: Params, tokens: Array, weight: Array, first: int, rng: Philox | None
    ) -> tuple[Array, SideContext]:
        name = "target" if self.body.cross else "source"
        tokens = check_tokens(tokens, weight.shape[0], name)
        xp, parts, T = namespace_of(tokens), self._parts, tokens.shape[1]
        if self.positions != "relative" and first + T > self.max_seq_len:
            raise ValueError(
                f"`{name}` needs {first + T} positions, but the model has `max_seq_len` {self.max_seq_len}. Give "
                "shorter sequences, or generate fewer tokens."
            )
        x, token_ctx = embedding_fwd(tokens, weight)  # (B, T, E)
        x, position_ctx, norm_ctx = x * self.scale if self.scaled else x, None, None
        if self.positions == "learned":
            places = xp.arange(first, first + T, device=device_of(tokens)) + self.position_offset
            rows, position_ctx = parts["position"].fwd(params["position"], places)
            x = x + rows
        elif self.positions == "sinusoidal":
            with use_backend(library_name(x)):
                rows = sinusoidal(first + T, x.shape[2], interleaved=False, dtype=dtype_name(x.dtype))[first:, :]
            x = x + namespace_of(x).asarray(rows, device=device_of(x))
        if self.embedding_norm:
            x, norm_ctx = parts["embedding_norm"].fwd(params["embedding_norm"], x)
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, SideContext(token_ctx, position_ctx, norm_ctx, dropout_ctx, None, None)

    def _bias(self, params: Params, count: int, first: int) -> tuple[Array | None, RelativeBiasContext | None]:
        """The bias of the scores of positions from `first` on (H, T, first + T)."""
        if self.positions != "relative":
            return None, None
        bias: tuple[Array, RelativeBiasContext] = self._parts["relative"].fwd(
            params["relative"], count, first + count, q_offset=first
        )
        return bias

    def _body_params(self, params: Params) -> Params:
        return type(params)({name: params[name] for name in self.body._parts})


def check_positions(positions: Any) -> None:
    """Check the field `positions`."""
    checks.choice("positions", positions, POSITIONS)

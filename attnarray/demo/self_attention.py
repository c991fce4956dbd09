"""A translator of nothing but self-attention: ten learned output slots and the characters of the date are one sequence.

    x = [slots; embedding[tokens] + positions]           10 + S vectors
    x = norm(x + attention(x))                            one block, and then the same once more
    x = norm(x + feed-forward(x))
    logits = classifier(first ten of x)

All positions attend to the characters and none to the slots, so that the slots get their content from the date alone.
In the first block the characters attend to each other, in the second the slots to them, both with the same mechanism. A
mechanism that encodes positions itself is used without positional embeddings: relative positions are then all it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from attnarray.attention.weights import attention_weights
from attnarray.backend import Array, asarray, device_of, namespace_of
from attnarray.demo.model import CLASSES, OUTPUTS, most_likely, weight_and_bias
from attnarray.layers.initial import Params, dense, zeros
from attnarray.ops.activations import silu_bwd, silu_fwd
from attnarray.ops.embedding import embedding_bwd, embedding_fwd
from attnarray.ops.linear import linear_bwd, linear_fwd
from attnarray.ops.norm import layer_norm_bwd, layer_norm_fwd
from attnarray.ops.positions import sinusoidal
from attnarray.random import Philox

BLOCKS = ("first", "second")
LONGEST_WAVE = 200.0  # of the positions, over 2 pi


class Attention(Protocol):
    """Self-attention in one form for all mechanisms."""

    def init(self, rng: Philox) -> Params: ...

    def fwd(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, Any]:
        """The outputs for x (B, T, E), attending to keys that `mask` (1, T) allows and that are within `lengths`
        (B,).
        """

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Params]:
        """The gradients of x and parameters."""


class Context(NamedTuple):
    embedded: Any
    blocks: list[Block]
    classifier: Any


class Block(NamedTuple):
    attention: Any
    found: Any
    feed_in: Any
    silu: Any
    feed_out: Any
    fed: Any


@dataclass(frozen=True)
class SelfAttention:
    """The translator of two blocks of E = `width` features; `positions` adds positional embeddings to the
    characters.
    """

    attention: Attention
    width: int = 64
    hidden: int = 128
    positions: bool = True

    def init(self, rng: Philox, vocab_size: int, max_seq_len: int) -> Params:
        """Initial parameters on the current backend; the positional embeddings start as sinusoids."""
        embedding, slots, classifier, *blocks = rng.split(3 + len(BLOCKS))
        table = {"positions": 0.5 * sinusoidal(max_seq_len, self.width, base=LONGEST_WAVE)} if self.positions else {}
        return {
            "embedding": embedding.normal((vocab_size, self.width), std=0.5),
            **table,
            "slots": slots.normal((OUTPUTS, self.width)),
            "blocks": {name: self._block(own) for name, own in zip(BLOCKS, blocks, strict=True)},
            "classifier": dense(classifier, CLASSES, self.width),
        }

    def _block(self, rng: Philox) -> Params:
        attention, feed_in, feed_out = rng.split(3)
        return {
            "attention": self.attention.init(attention),
            "found_norm": {"weight": asarray(np.ones(self.width), "float32"), "bias": zeros(self.width)},
            "feed_in": dense(feed_in, self.hidden, self.width),
            "feed_out": dense(feed_out, self.width, self.hidden),
            "fed_norm": {"weight": asarray(np.ones(self.width), "float32"), "bias": zeros(self.width)},
        }

    def forward(
        self, params: Params, tokens: Array, lengths: Array, targets: Array | None = None, rng: Philox | None = None
    ) -> tuple[Array, Context]:
        """Logits (B, 10, 11) and the context. All ten outputs are computed in parallel, without `targets`."""
        xp = namespace_of(tokens)
        characters, embedded = embedding_fwd(tokens, params["embedding"])  # (B, S, E)
        if self.positions:
            characters = characters + params["positions"][: tokens.shape[1], :]
        slots = xp.broadcast_to(params["slots"], (tokens.shape[0], OUTPUTS, self.width))
        x = xp.concat([slots, characters], axis=1)  # (B, 10 + S, E)
        is_character = xp.arange(x.shape[1], device=device_of(tokens)) >= OUTPUTS  # (10 + S,)
        blocks = []
        for name in BLOCKS:
            x, ctx = self._forward(params["blocks"][name], x, is_character[None, :], lengths + OUTPUTS)
            blocks.append(ctx)
        logits, classifier = linear_fwd(x[:, :OUTPUTS, :], **params["classifier"])
        return logits, Context(embedded, blocks, classifier)

    def _forward(self, params: Params, x: Array, mask: Array, lengths: Array) -> tuple[Array, Block]:
        found, attention = self.attention.fwd(params["attention"], x, mask, lengths)
        y, found_ctx = layer_norm_fwd(x + found, **params["found_norm"])
        hidden, in_ctx = linear_fwd(y, **params["feed_in"])
        active, silu = silu_fwd(hidden)
        fed, out_ctx = linear_fwd(active, **params["feed_out"])
        y, fed_ctx = layer_norm_fwd(y + fed, **params["fed_norm"])
        return y, Block(attention, found_ctx, in_ctx, silu, out_ctx, fed_ctx)

    def backward(self, dlogits: Array, ctx: Context, params: Params) -> Params:
        """The gradients, in a tree like the parameters."""
        xp = namespace_of(dlogits)
        dslots, *classifier = linear_bwd(dlogits, ctx.classifier)  # (B, 10, E)
        batch, S = ctx.embedded.indices.shape
        unread = xp.zeros((batch, S, self.width), dtype=dslots.dtype, device=device_of(dslots))
        dx = xp.concat([dslots, unread], axis=1)  # (B, 10 + S, E)
        blocks = {}
        for name, block in reversed(list(zip(BLOCKS, ctx.blocks, strict=True))):
            dx, blocks[name] = self._backward(dx, block)
        dcharacters = dx[:, OUTPUTS:, :]  # (B, S, E)
        table = {}
        if self.positions:
            unused = xp.zeros_like(params["positions"][S:, :])
            table = {"positions": xp.concat([xp.sum(dcharacters, axis=0), unused])}
        return {
            "embedding": embedding_bwd(dcharacters, ctx.embedded).weight,
            **table,
            "slots": xp.sum(dx[:, :OUTPUTS, :], axis=0),
            "blocks": blocks,
            "classifier": weight_and_bias(*classifier),
        }

    def _backward(self, dy: Array, ctx: Block) -> tuple[Array, Params]:
        dy, *fed_norm = layer_norm_bwd(dy, ctx.fed)
        dactive, *feed_out = linear_bwd(dy, ctx.feed_out)
        (dhidden,) = silu_bwd(dactive, ctx.silu)
        dbranch, *feed_in = linear_bwd(dhidden, ctx.feed_in)
        dy, *found_norm = layer_norm_bwd(dy + dbranch, ctx.found)
        dx, attention = self.attention.bwd(dy, ctx.attention)
        pairs = {"found_norm": found_norm, "feed_in": feed_in, "feed_out": feed_out, "fed_norm": fed_norm}
        grads = {name: weight_and_bias(*pair) for name, pair in pairs.items()}
        return dy + dx, {"attention": attention, **grads}

    def predict(self, params: Params, tokens: Array, lengths: Array) -> np.ndarray:
        """The translation, (B, 10)."""
        return most_likely(self.forward(params, tokens, lengths)[0])

    def alignments(self, ctx: Context) -> Array:
        """How much each slot attends to each character in the last block, (B, 10, S): the mean of all heads."""
        weights = attention_weights(ctx.blocks[-1].attention, slice(0, OUTPUTS))[..., OUTPUTS:]
        return weights if weights.ndim == 3 else namespace_of(weights).mean(weights, axis=1)

"""A translator with multi-head attention: from the characters of a date to the ten characters of ISO 8601.

    h = embedding[tokens] + positions            one vector per input character
    m = norm(h + self-attention(h))              self-attention over the characters
    y = norm(queries + attention(queries, m))    ten learned queries, one per output character
    y = norm(y + feed-forward(y))
    logits = classifier(y)

`forward` keeps a context, `backward` follows the same lines in reverse. Parameters are a nested dict of arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.attention.weights import attention_weights
from attnarray.backend import Array, asarray, namespace_of
from attnarray.demo.heads import HeadsContext, heads_bwd, heads_fwd
from attnarray.demo.model import CLASSES, OUTPUTS, most_likely
from attnarray.layers.initial import Params
from attnarray.ops.activations import relu_bwd, relu_fwd
from attnarray.ops.embedding import embedding_bwd, embedding_fwd
from attnarray.ops.linear import linear_bwd, linear_fwd
from attnarray.ops.norm import layer_norm_bwd, layer_norm_fwd
from attnarray.ops.positions import sinusoidal
from attnarray.random import Philox

WIDTH, HEADS, HIDDEN = 64, 4, 128


class Context(NamedTuple):
    embedded: Any
    encoder: HeadsContext
    memory: Any
    decoder: HeadsContext
    found: Any
    feed_in: Any
    relu: Any
    feed_out: Any
    fed: Any
    classifier: Any


def init(rng: Philox, vocab_size: int, max_seq_len: int) -> Params:
    """Initial parameters on the current backend: Xavier's uniform weights, sinusoidal positional embeddings."""
    keys = iter(rng.split(16))

    def dense(inputs: int, outputs: int) -> Params:
        bound = (6.0 / (inputs + outputs)) ** 0.5
        weight = next(keys).uniform((outputs, inputs), -bound, bound)
        return {"weight": weight, "bias": asarray(np.zeros(outputs), dtype="float32")}

    def norm() -> Params:
        return {"weight": asarray(np.ones(WIDTH), "float32"), "bias": asarray(np.zeros(WIDTH), "float32")}

    def heads() -> Params:
        return {name: dense(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}

    return {
        "embedding": next(keys).normal((vocab_size, WIDTH), std=0.5),
        "positions": 0.5 * sinusoidal(max_seq_len, WIDTH, base=200.0),
        "encoder": heads(),
        "memory_norm": norm(),
        "queries": next(keys).normal((OUTPUTS, WIDTH)),
        "decoder": heads(),
        "found_norm": norm(),
        "feed_in": dense(WIDTH, HIDDEN),
        "feed_out": dense(HIDDEN, WIDTH),
        "fed_norm": norm(),
        "classifier": dense(WIDTH, CLASSES),
    }


def forward(
    params: Params, tokens: Array, lengths: Array, targets: Array | None = None, rng: Philox | None = None
) -> tuple[Array, Context]:
    """Logits (B, 10, 11) for tokens (B, S) of which the first `lengths` (B,) exist, and the context.

    All ten outputs are computed in parallel, without `targets`.
    """
    xp = namespace_of(tokens)
    embedded, embedded_ctx = embedding_fwd(tokens, params["embedding"])  # (B, S, E)
    h = embedded + params["positions"][: tokens.shape[1], :]
    mixed, encoder_ctx = heads_fwd(params["encoder"], h, h, lengths, HEADS)
    memory, memory_ctx = layer_norm_fwd(h + mixed, **params["memory_norm"])
    queries = xp.broadcast_to(params["queries"], (tokens.shape[0], OUTPUTS, WIDTH))
    found, decoder_ctx = heads_fwd(params["decoder"], queries, memory, lengths, HEADS)  # (B, 10, E)
    y, found_ctx = layer_norm_fwd(queries + found, **params["found_norm"])
    hidden, in_ctx = linear_fwd(y, **params["feed_in"])
    active, relu_ctx = relu_fwd(hidden)
    fed, out_ctx = linear_fwd(active, **params["feed_out"])
    y, fed_ctx = layer_norm_fwd(y + fed, **params["fed_norm"])
    logits, classifier_ctx = linear_fwd(y, **params["classifier"])
    ctx = Context(
        embedded_ctx,
        encoder_ctx,
        memory_ctx,
        decoder_ctx,
        found_ctx,
        in_ctx,
        relu_ctx,
        out_ctx,
        fed_ctx,
        classifier_ctx,
    )
    return logits, ctx


def backward(dlogits: Array, ctx: Context, params: Params) -> Params:
    """The gradients, in a tree like the parameters. Gradients of values that are used twice are added."""
    xp = namespace_of(dlogits)
    dy, *classifier = linear_bwd(dlogits, ctx.classifier)
    dy, *fed_norm = layer_norm_bwd(dy, ctx.fed)
    dactive, *feed_out = linear_bwd(dy, ctx.feed_out)
    (dhidden,) = relu_bwd(dactive, ctx.relu)
    dbranch, *feed_in = linear_bwd(dhidden, ctx.feed_in)
    dy, *found_norm = layer_norm_bwd(dy + dbranch, ctx.found)
    dqueries, dmemory, decoder = heads_bwd(dy, ctx.decoder, HEADS)
    dh, *memory_norm = layer_norm_bwd(dmemory, ctx.memory)
    dx, dkeys, encoder = heads_bwd(dh, ctx.encoder, HEADS)
    dh = dh + dx + dkeys  # h is residual, query and key of the self-attention
    dpositions = xp.sum(dh, axis=0)  # (S, E)
    unused = xp.zeros_like(params["positions"][dpositions.shape[0] :, :])
    pairs = {"memory_norm": memory_norm, "found_norm": found_norm, "fed_norm": fed_norm, "feed_in": feed_in,
             "feed_out": feed_out, "classifier": classifier}  # fmt: skip
    return {
        "embedding": embedding_bwd(dh, ctx.embedded).weight,
        "positions": xp.concat([dpositions, unused]),
        "queries": xp.sum(dqueries + dy, axis=0),
        "encoder": encoder,
        "decoder": decoder,
        **{name: {"weight": weight, "bias": bias} for name, (weight, bias) in pairs.items()},
    }


def predict(params: Params, tokens: Array, lengths: Array) -> np.ndarray:
    """The translation, (B, 10)."""
    return most_likely(forward(params, tokens, lengths)[0])


def alignments(ctx: Context) -> Array:
    """How much each query attends to each character, on average over the heads: (B, 10, S)."""
    weights = attention_weights(ctx.decoder.attention)  # (B, H, 10, S)
    return namespace_of(weights).mean(weights, axis=1)

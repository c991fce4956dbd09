"""The demo's model: from the characters of a date in any language to the ten characters of ISO 8601.

    h = embedding[tokens] + positions          one vector per input character
    h = h + self-attention(norm(h))            characters look at each other
    m = norm(h)
    y = queries + attention(queries over m)    ten learned queries, one per output character, look at the input
    y = y + feed-forward(norm(y))
    logits = classifier(norm(y))

`forward` keeps a context, `backward` walks the same lines in reverse. Parameters are a nested dict of arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.backend import Array, asarray, namespace_of, to_numpy
from attnarray.demo.heads import HeadsContext, Params, heads_bwd, heads_fwd
from attnarray.ops.activations import relu_bwd, relu_fwd
from attnarray.ops.embedding import embedding_bwd, embedding_fwd
from attnarray.ops.linear import linear_bwd, linear_fwd
from attnarray.ops.norm import layer_norm_bwd, layer_norm_fwd
from attnarray.random import Philox

WIDTH, HEADS, HIDDEN = 64, 4, 128
OUTPUTS, CLASSES = 10, 11  # characters of an ISO 8601 date; digits and the hyphen


class Context(NamedTuple):
    embedded: Any
    norm: Any
    encoder: HeadsContext
    memory: Any
    decoder: HeadsContext
    feed_norm: Any
    feed_in: Any
    relu: Any
    feed_out: Any
    out_norm: Any
    classifier: Any


def init(rng: Philox, vocabulary: int, longest: int) -> Params:
    """Fresh parameters on the current backend: Xavier's uniform weights, sinusoidal positions that are then learned."""
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
        "embedding": next(keys).normal((vocabulary, WIDTH), std=0.5),
        "positions": asarray(0.5 * _sinusoids(longest), dtype="float32"),
        "norm": norm(),
        "encoder": heads(),
        "memory_norm": norm(),
        "queries": next(keys).normal((OUTPUTS, WIDTH)),
        "decoder": heads(),
        "feed_norm": norm(),
        "feed_in": dense(WIDTH, HIDDEN),
        "feed_out": dense(HIDDEN, WIDTH),
        "out_norm": norm(),
        "classifier": dense(WIDTH, CLASSES),
    }


def forward(params: Params, tokens: Array, lengths: Array) -> tuple[Array, Context]:
    """Logits (B, 10, 11) for tokens (B, S) of which the first `lengths` (B,) exist, and the context."""
    xp = namespace_of(tokens)
    embedded, embedded_ctx = embedding_fwd(tokens, params["embedding"])  # (B, S, E)
    h = embedded + params["positions"][: tokens.shape[1], :]
    normed, norm_ctx = layer_norm_fwd(h, **params["norm"])
    mixed, encoder_ctx = heads_fwd(params["encoder"], normed, normed, lengths, HEADS)
    memory, memory_ctx = layer_norm_fwd(h + mixed, **params["memory_norm"])
    queries = xp.broadcast_to(params["queries"], (tokens.shape[0], OUTPUTS, WIDTH))
    found, decoder_ctx = heads_fwd(params["decoder"], queries, memory, lengths, HEADS)  # (B, 10, E)
    y = queries + found
    normed, feed_norm_ctx = layer_norm_fwd(y, **params["feed_norm"])
    hidden, in_ctx = linear_fwd(normed, **params["feed_in"])
    active, relu_ctx = relu_fwd(hidden)
    fed, feed_ctx = linear_fwd(active, **params["feed_out"])
    normed, out_norm_ctx = layer_norm_fwd(y + fed, **params["out_norm"])
    logits, classifier_ctx = linear_fwd(normed, **params["classifier"])
    ctx = Context(
        embedded_ctx, norm_ctx, encoder_ctx, memory_ctx, decoder_ctx, feed_norm_ctx, in_ctx, relu_ctx, feed_ctx,
        out_norm_ctx, classifier_ctx,
    )  # fmt: skip
    return logits, ctx


def backward(dlogits: Array, ctx: Context, params: Params) -> Params:
    """The gradients, in a tree like the parameters. Where a value was used twice, its two gradients are added."""
    xp = namespace_of(dlogits)
    dnormed, *classifier = linear_bwd(dlogits, ctx.classifier)
    dy, *out_norm = layer_norm_bwd(dnormed, ctx.out_norm)
    dactive, *feed_out = linear_bwd(dy, ctx.feed_out)
    (dhidden,) = relu_bwd(dactive, ctx.relu)
    dnormed, *feed_in = linear_bwd(dhidden, ctx.feed_in)
    dbranch, *feed_norm = layer_norm_bwd(dnormed, ctx.feed_norm)
    dy = dy + dbranch
    dqueries, dmemory, decoder = heads_bwd(dy, ctx.decoder, HEADS)
    dh, *memory_norm = layer_norm_bwd(dmemory, ctx.memory)
    dx, dmemory, encoder = heads_bwd(dh, ctx.encoder, HEADS)
    dbranch, *norm = layer_norm_bwd(dx + dmemory, ctx.norm)
    dh = dh + dbranch
    dpositions = xp.sum(dh, axis=0)  # (S, E)
    unused = xp.zeros_like(params["positions"][dpositions.shape[0] :, :])
    pairs = {"norm": norm, "memory_norm": memory_norm, "feed_norm": feed_norm, "out_norm": out_norm,
             "feed_in": feed_in, "feed_out": feed_out, "classifier": classifier}  # fmt: skip
    return {
        "embedding": embedding_bwd(dh, ctx.embedded).weight,
        "positions": xp.concat([dpositions, unused]),
        "queries": xp.sum(dqueries + dy, axis=0),
        "encoder": encoder,
        "decoder": decoder,
        **{name: {"weight": weight, "bias": bias} for name, (weight, bias) in pairs.items()},
    }


def predict(logits: Array) -> np.ndarray:
    """The most likely character at each of the ten places: (B, 10)."""
    return to_numpy(namespace_of(logits).argmax(logits, axis=-1))


def _sinusoids(count: int) -> np.ndarray:
    """Sines and cosines of each position with wavelengths from 2 pi to 400 pi: (count, E)."""
    frequencies = 200.0 ** -(np.arange(0, WIDTH, 2) / WIDTH)
    angles = np.arange(count)[:, None] * frequencies  # (S, E / 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(count, WIDTH)

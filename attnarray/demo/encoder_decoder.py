"""A recurrent translator: a bidirectional encoder, a decoder of ten steps, and attention between the two.

    h = [GRU(embedding[tokens]); GRU backwards]  one state per input character
    s_i = GRU(s_(i-1), before[y_(i-1)])          one state per output character, from the one before it
    c_i = attention(s_i, h)                      any mechanism
    logits_i = classifier(tanh(W c_i + U s_i))

The initial state of the decoder is 0, so that attention is its only input from the encoder. A mechanism that predicts a
position before it attends (`informed`) gets the last states of the encoder as initial state, as in its paper. Training
uses teacher forcing, so that all ten queries attend at once; translation feeds back its own characters, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from attnarray.attention.composed.attentional_hidden_state import (
    attentional_hidden_state,
    attentional_hidden_state_bwd,
    attentional_hidden_state_fwd,
)
from attnarray.attention.weights import attention_weights
from attnarray.backend import Array, asarray, device_of, namespace_of
from attnarray.demo.model import CLASSES, OUTPUTS, most_likely, weight_and_bias
from attnarray.layers.initial import Params, dense, glorot, zeros
from attnarray.ops.embedding import embedding, embedding_bwd, embedding_fwd
from attnarray.ops.gru import GRUResult, gru, gru_bwd, gru_fwd
from attnarray.ops.linear import linear, linear_bwd, linear_fwd
from attnarray.random import Philox

START = CLASSES  # the input of the first step


class Attention(Protocol):
    """Attention of decoder states over encoder states, in one form for all mechanisms."""

    def init(self, rng: Philox) -> Params: ...

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """Contexts (B, T, E) of queries (B, T, E) over keys (B, S, E), of which `lengths` (B,) exist.

        `before` (B, S) are the weights of the previous step, for location-aware mechanisms. `rng` is given in training,
        for mechanisms that sample.
        """

    def bwd(self, dout: Array, ctx: Any) -> tuple[Array, Array, Params]:
        """The gradients of query, key and parameters."""


class Encoded(NamedTuple):
    embedded: Any
    forwards: Any
    backwards: Any


class Context(NamedTuple):
    encoder: Encoded
    before: Any
    decoder: Any
    attention: Any
    combine: Any
    classifier: Any


@dataclass(frozen=True)
class EncoderDecoder:
    """The recurrent translator with any attention; `width` E is that of all states.

    `informed` says whether the decoder starts from the encoder's last states.
    """

    attention: Attention
    width: int = 64
    informed: bool = False

    def init(self, rng: Philox, vocab_size: int, max_seq_len: int) -> Params:
        """Initial parameters on the current backend."""
        E = self.width
        keys = iter(rng.split(9))
        return {
            "embedding": next(keys).normal((vocab_size, E), std=0.5),
            "forwards": _gru(next(keys), E, E // 2),
            "backwards": _gru(next(keys), E, E // 2),
            "before": next(keys).normal((CLASSES + 1, E), std=0.5),
            "decoder": _gru(next(keys), E, E),
            "attention": self.attention.init(next(keys)),
            "combine": {"context_weight": glorot(next(keys), (E, E)), "hidden_weight": glorot(next(keys), (E, E))},
            "classifier": dense(next(keys), CLASSES, E),
        }

    def forward(
        self, params: Params, tokens: Array, lengths: Array, targets: Array, rng: Philox | None = None
    ) -> tuple[Array, Context]:
        """Logits (B, 10, 11) for tokens (B, S) of which the first `lengths` (B,) exist, and the context."""
        memory, last, encoder = _encode(params, tokens, lengths)
        before, before_ctx = embedding_fwd(_shifted(targets), params["before"])  # (B, 10, E)
        states, decoder = gru_fwd(before, **params["decoder"], h0=last if self.informed else None)
        found, attention = self.attention.fwd(params["attention"], states.out, memory, lengths, rng=rng)
        y, combined = attentional_hidden_state_fwd(found, states.out, **params["combine"], activation="tanh")
        logits, classifier = linear_fwd(y, **params["classifier"])
        return logits, Context(encoder, before_ctx, decoder, attention, combined, classifier)

    def backward(self, dlogits: Array, ctx: Context, params: Params) -> Params:
        """The gradients, in a tree like the parameters."""
        dy, *classifier = linear_bwd(dlogits, ctx.classifier)
        combined = attentional_hidden_state_bwd(dy, ctx.combine)
        dquery, dmemory, attention = self.attention.bwd(combined.context, ctx.attention)
        decoder = gru_bwd(GRUResult(combined.hidden + dquery, None), ctx.decoder)
        return {
            **_encode_backward(dmemory, decoder.h0, ctx.encoder),
            "before": embedding_bwd(decoder.x, ctx.before).weight,
            "decoder": _weights(decoder),
            "attention": attention,
            "combine": {"context_weight": combined.context_weight, "hidden_weight": combined.hidden_weight},
            "classifier": weight_and_bias(*classifier),
        }

    def predict(self, params: Params, tokens: Array, lengths: Array) -> np.ndarray:
        """The translation (B, 10): greedy decoding."""
        xp = namespace_of(tokens)
        memory, last, _ = _encode(params, tokens, lengths)
        previous = xp.full_like(lengths, START)[:, None]  # (B, 1)
        state, weights = last if self.informed else None, None
        answer = []
        for _ in range(OUTPUTS):
            before = embedding(previous, params["before"])  # (B, 1, E)
            step = gru(before, **params["decoder"], h0=state)
            found, ctx = self.attention.fwd(params["attention"], step.out, memory, lengths, weights)
            y = attentional_hidden_state(found, step.out, **params["combine"], activation="tanh")
            answer.append(most_likely(linear(y, **params["classifier"])))
            previous, state, weights = asarray(answer[-1]), step.h, attention_weights(ctx)[:, 0, :]
        return np.concatenate(answer, axis=1)  # (B, 10)

    def alignments(self, ctx: Context) -> Array:
        """The attention weights of each output character, (B, 10, S)."""
        return attention_weights(ctx.attention)


def _gru(rng: Philox, inputs: int, states: int) -> Params:
    input_rng, state_rng = rng.split(2)
    given = dense(input_rng, 3 * states, inputs)
    return {
        "weight_ih": given["weight"],
        "weight_hh": glorot(state_rng, (3 * states, states)),
        "bias_ih": given["bias"],
        "bias_hh": zeros(3 * states),
    }


def _encode(params: Params, tokens: Array, lengths: Array) -> tuple[Array, Array, Encoded]:
    """The states of both directions, (B, S, E), and the last state of each direction, (B, E)."""
    xp = namespace_of(tokens)
    exists = xp.arange(tokens.shape[1], device=device_of(tokens))[None, :] < lengths[:, None]  # (B, S)
    x, embedded = embedding_fwd(tokens, params["embedding"])  # (B, S, E)
    forwards, forwards_ctx = gru_fwd(x, **params["forwards"], mask=exists)
    backwards, backwards_ctx = gru_fwd(x, **params["backwards"], mask=exists, reverse=True)
    memory = xp.concat([forwards.out, backwards.out], axis=-1)  # (B, S, E)
    last = xp.concat([forwards.h, backwards.h], axis=-1)  # (B, E)
    return memory, last, Encoded(embedded, forwards_ctx, backwards_ctx)


def _encode_backward(dmemory: Array, dlast: Array | None, ctx: Encoded) -> Params:
    half = dmemory.shape[-1] // 2
    dlasts = (None, None) if dlast is None else (dlast[:, :half], dlast[:, half:])
    forwards = gru_bwd(GRUResult(dmemory[:, :, :half], dlasts[0]), ctx.forwards)
    backwards = gru_bwd(GRUResult(dmemory[:, :, half:], dlasts[1]), ctx.backwards)
    return {
        "embedding": embedding_bwd(forwards.x + backwards.x, ctx.embedded).weight,
        "forwards": _weights(forwards),
        "backwards": _weights(backwards),
    }


def _weights(grads: Any) -> Params:
    return {name: getattr(grads, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


def _shifted(targets: Array) -> Array:
    """The inputs of the decoder, (B, 10): the targets shifted right by one, with START in front."""
    xp = namespace_of(targets)
    return xp.concat([xp.full_like(targets[:, :1], START), targets[:, :-1]], axis=1)

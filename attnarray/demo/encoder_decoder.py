"""A recurrent translator: an encoder reads the characters both ways, a decoder writes ten, attention joins the two.

    h = [GRU(embedding[tokens]); GRU backwards]  one state per input character
    s_i = GRU(s_(i-1), before[y_(i-1)])          one state per output character, from what was written before it
    c_i = attention(s_i, h)                      any mechanism: it alone says where the answer is
    logits_i = classifier(tanh(W c_i + U s_i))

The decoder starts from 0 and hears of the input through the attention alone; unless the mechanism has to know where to
look before it has looked: then it starts from where the encoder ended, as the paper has it. In training it is told the
right characters before, so that all ten queries attend at once; a translation goes step by step and is told its own.
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

START = CLASSES  # what stands before the first character


class Attention(Protocol):
    """Attention of decoder states over encoder states, in one form for all mechanisms."""

    def init(self, rng: Philox) -> Params: ...

    def fwd(
        self, params: Params, query: Array, key: Array, lengths: Array, before: Array | None = None,
        rng: Philox | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """Contexts (B, T, E) of queries (B, T, E) over keys (B, S, E), of which `lengths` (B,) exist.

        `before` (B, S) are the weights of the step before, for a mechanism that looks at them; in training there is an
        `rng`, for one that draws.
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
        """Fresh parameters on the current backend."""
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
        """The translation (B, 10): at each step the most likely character, which the next step is told."""
        xp = namespace_of(tokens)
        memory, last, _ = _encode(params, tokens, lengths)
        told, state, looked = xp.full_like(lengths, START)[:, None], last if self.informed else None, None  # (B, 1)
        answer = []
        for _ in range(OUTPUTS):
            before = embedding(told, params["before"])  # (B, 1, E)
            step = gru(before, **params["decoder"], h0=state)
            found, ctx = self.attention.fwd(params["attention"], step.out, memory, lengths, looked)
            y = attentional_hidden_state(found, step.out, **params["combine"], activation="tanh")
            answer.append(most_likely(linear(y, **params["classifier"])))
            told, state, looked = asarray(answer[-1]), step.h, attention_weights(ctx)[:, 0, :]
        return np.concatenate(answer, axis=1)  # (B, 10)

    def alignments(self, ctx: Context) -> Array:
        """Where each output character looked, (B, 10, S)."""
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
    """One state per character, (B, S, E): half of it has read the text up to there, half from there on.

    And the last one of each half, (B, E).
    """
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
    """What each step is told: START, then the characters before it, (B, 10)."""
    xp = namespace_of(targets)
    return xp.concat([xp.full_like(targets[:, :1], START), targets[:, :-1]], axis=1)

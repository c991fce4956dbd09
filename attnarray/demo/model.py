"""The interface of the demo's models, and their shared code."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from attnarray.backend import Array, namespace_of, to_numpy
from attnarray.layers.initial import Params
from attnarray.random import Philox

OUTPUTS, CLASSES = 10, 11  # characters of an ISO 8601 date; digits and the hyphen


class Model(Protocol):
    """Translates the characters of a date to those of ISO 8601; the module `translator` is one."""

    def init(self, rng: Philox, vocab_size: int, max_seq_len: int) -> Params:
        """Initial float32 parameters on the current backend, for texts of up to `max_seq_len` characters."""

    def forward(
        self, params: Params, tokens: Array, lengths: Array, targets: Array, rng: Philox | None = None
    ) -> tuple[Array, Any]:
        """Logits (B, 10, 11) for tokens (B, S) of which the first `lengths` (B,) exist, and the context.

        Each output may depend on the characters of `targets` (B, 10) before its own (teacher forcing). `rng` is given
        in training, for models that sample; without it the result is deterministic.
        """

    def backward(self, dlogits: Array, ctx: Any, params: Params) -> Params:
        """The gradients, in a tree like the parameters."""

    def predict(self, params: Params, tokens: Array, lengths: Array) -> np.ndarray:
        """The translation, (B, 10), computed without targets."""

    def alignments(self, ctx: Any) -> Array:
        """How much each character of the answer attends to each of the input, (B, 10, S)."""


def most_likely(logits: Array) -> np.ndarray:
    """The most likely character at each position: (B, T) of (B, T, 11)."""
    return to_numpy(namespace_of(logits).argmax(logits, axis=-1))


def weight_and_bias(weight: Array, bias: Array | None) -> Params:
    """The gradients of a linear layer as a tree."""
    return {"weight": weight, "bias": bias}

"""The demo's training: a plain loop over pure functions, and the evaluation on unseen dates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from attnarray import optim
from attnarray.backend import Array, asarray, namespace_of, to_numpy
from attnarray.demo.dates import (
    Pair,
    Vocabulary,
    batches_of_similar_length,
    decode_targets,
    encode_targets,
)
from attnarray.demo.model import Model, most_likely
from attnarray.layers.initial import Params
from attnarray.ops.loss import cross_entropy_bwd, cross_entropy_fwd
from attnarray.random import Philox

BATCH, PEAK_RATE, WARMUP, BETAS, LARGEST_NORM = 64, 8e-3, 0.1, (0.9, 0.98), 1.0


class Data(NamedTuple):
    """Encoded pairs: tokens (N, S), lengths (N,), targets (N, 10)."""

    tokens: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[Array, Array, Array]:
        """Some rows on the current backend, cut to the length of the longest."""
        longest = int(self.lengths[rows].max())
        return asarray(self.tokens[rows, :longest]), asarray(self.lengths[rows]), asarray(self.targets[rows])


class Trained(NamedTuple):
    """The state of training: parameters, the state of AdamW, and the loss of the last batch."""

    params: Params
    state: optim.AdamWState
    loss: float = float("nan")
    accuracy: float = float("nan")


def encode(pairs: list[Pair], vocabulary: Vocabulary) -> Data:
    """Encode pairs."""
    tokens, lengths = vocabulary.encode([pair.source for pair in pairs])
    return Data(tokens, lengths, encode_targets([pair.target for pair in pairs]))


def step_count(dates: int, epochs: int) -> int:
    """The number of batches of `train`."""
    return epochs * -(-dates // BATCH)


def train(
    model: Model, data: Data, params: Params, epochs: int, seed: int, step_done: Callable[[float, float], None]
) -> Iterator[Params]:
    """Train with AdamW; yields the parameters after each epoch.

    `step_done(loss, accuracy)` is called after every step with the mean loss and accuracy of that batch.
    """
    total = step_count(len(data.lengths), epochs)
    rng = np.random.default_rng(seed)
    trained = Trained(params, optim.adamw_init(params))
    step = 0
    for _ in range(epochs):
        for rows in batches_of_similar_length(data.lengths, BATCH, rng):
            step += 1
            rate = optim.warmup_cosine(step, peak=PEAK_RATE, warmup=int(WARMUP * total), total=total)
            trained = train_step(model, trained, data.batch(rows), rate, Philox(seed).fold_in(step))
            step_done(trained.loss, trained.accuracy)
        yield trained.params


def train_step(model: Model, trained: Trained, batch: tuple[Array, Array, Array], rate: float, rng: Philox) -> Trained:
    """One step of AdamW on one batch."""
    tokens, lengths, targets = batch
    logits, ctx = model.forward(trained.params, tokens, lengths, targets, rng)
    loss, loss_ctx = cross_entropy_fwd(logits, targets)
    dlogits = cross_entropy_bwd(namespace_of(loss).ones_like(loss), loss_ctx).logits
    grads, _ = optim.clip_by_global_norm(model.backward(dlogits, ctx, trained.params), LARGEST_NORM)
    params, state = optim.adamw(trained.params, grads, trained.state, lr=rate, betas=BETAS)
    right = np.mean(most_likely(logits) == to_numpy(targets))
    return Trained(params, state, float(to_numpy(loss)), float(right))


def translate(model: Model, data: Data, params: Params, size: int = 256) -> list[str]:
    """The model's translations of all rows, in order."""
    found = np.zeros_like(data.targets)
    order = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens, lengths, _ = data.batch(rows)
        found[rows] = model.predict(params, tokens, lengths)
    return decode_targets(found)


def fresh(model: Model, vocabulary: Vocabulary, longest: int, seed: int) -> Params:
    """Initial parameters on the current backend."""
    return model.init(Philox(seed), len(vocabulary), longest)


def alignments(model: Model, data: Data, params: Params, rows: np.ndarray) -> list[np.ndarray]:
    """The attention weights of the ten output characters: an array (10, length) per row."""
    tokens, lengths, _ = data.batch(rows)
    found = asarray(model.predict(params, tokens, lengths))
    weights = to_numpy(model.alignments(model.forward(params, tokens, lengths, found)[1]))  # (B, 10, S)
    return [weight[:, : data.lengths[row]] for weight, row in zip(weights, rows, strict=True)]

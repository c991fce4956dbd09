"""One training run of the demo: its data, its training with the time taken, and its accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from attnarray.console import Progress
from attnarray.demo import training
from attnarray.demo.dates import Pair, Vocabulary
from attnarray.demo.model import Model
from attnarray.layers.initial import Params

EPOCHS = 3


class DemoError(Exception):
    """The demo cannot run as asked; the message says why and what to do."""


class Lesson(NamedTuple):
    """The training pairs as tokens, and the test pairs as tokens and as text."""

    vocabulary: Vocabulary
    learned: training.Data
    unseen: training.Data
    test: list[Pair]

    def fresh(self, model: Model, seed: int) -> Params:
        """Initial parameters of `model`, large enough for all texts."""
        longest = max(self.learned.tokens.shape[1], self.unseen.tokens.shape[1])
        return training.fresh(model, self.vocabulary, longest, seed)


def prepare(train: list[Pair], test: list[Pair]) -> Lesson:
    """A lesson; its vocabulary is that of the training pairs."""
    vocabulary = Vocabulary(pair.source for pair in train)
    return Lesson(vocabulary, training.encode(train, vocabulary), training.encode(test, vocabulary), test)


def learn(
    model: Model, lesson: Lesson, params: Params, epochs: int, seed: int, step_done: Callable[[float, float], None]
) -> Iterator[tuple[Params, float]]:
    """Train; yield after each epoch the parameters and the seconds of training so far, without the time between."""
    seconds, start = 0.0, time.perf_counter()
    for trained in training.train(model, lesson.learned, params, epochs, seed, step_done):
        seconds += time.perf_counter() - start
        yield trained, seconds
        start = time.perf_counter()


def examine(model: Model, lesson: Lesson, params: Params) -> tuple[list[str], float]:
    """The translations of the dates never seen, and the share of them that is exactly right."""
    found = training.translate(model, lesson.unseen, params)
    return found, float(np.mean([text == pair.target for text, pair in zip(found, lesson.test, strict=True)]))


def on_bar(bar: Progress, before: str = "") -> Callable[[float, float], None]:
    """A callback for each step that updates the bar, and stops a training that diverged."""

    def step_done(loss: float, accuracy: float) -> None:
        if not np.isfinite(loss):
            raise DemoError(f"the loss is {loss}: the training diverged. Try another --seed.")
        bar.advance(f"{before}loss {loss:.3f}, characters right {accuracy:.1%}")

    return step_done

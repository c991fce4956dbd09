"""`attnarray demo`: train the date translator, show what it learned, draw what it looks at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from attnarray.backend import use_backend
from attnarray.console import progress
from attnarray.demo import dates, picture, training, translator
from attnarray.demo.heads import Params
from attnarray.dispatch import KernelUnavailableError, explain, use_kernels

TRAINING_DATES, TEST_DATES, EPOCHS = 30_000, 2_000, 3
SAMPLES = ("en", "fr", "el", "ru", "tr", "he", "ja", "zh", "ko", "th", "hi", "fi")
DRAWN = 6


class DemoError(Exception):
    """The demo cannot run as asked; the message says why and what to do."""


def main(options: argparse.Namespace) -> int:
    """Run the demo with the arguments of the command line; returns the exit code."""
    path = Path(options.picture)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise DemoError(f"--picture {options.picture}: expected a file in a folder that exists")
    count = options.dates or TRAINING_DATES
    try:
        train, test = dates.make_pairs(count, TEST_DATES, options.seed)
    except (ValueError, ModuleNotFoundError) as error:
        raise DemoError(str(error)) from error
    vocabulary = dates.Vocabulary(pair.source for pair in train)
    print(
        f"{len(train)} dates in {len(dates.LANGUAGES)} languages to learn from, {len(test)} others to test on; "
        f"{len(vocabulary)} different characters."
    )
    try:
        with use_backend(options.backend), use_kernels(options.kernels):
            _train_and_show(options, path, train, test, vocabulary)
    except KernelUnavailableError as error:
        raise DemoError(str(error)) from error
    return 0


def _train_and_show(
    options: argparse.Namespace,
    path: Path,
    train: list[dates.Pair],
    test: list[dates.Pair],
    vocabulary: dates.Vocabulary,
) -> None:
    data, unseen = training.encode(train, vocabulary), training.encode(test, vocabulary)
    longest = max(data.tokens.shape[1], unseen.tokens.shape[1])
    params = training.fresh(vocabulary, longest, options.seed)
    _say_what_runs(options.backend, params, data)
    epochs = options.epochs or EPOCHS
    start = time.perf_counter()
    found: list[str] = []
    with progress("training", training.steps_of(data, epochs)) as bar:

        def step_done(loss: float, accuracy: float) -> None:
            if not np.isfinite(loss):
                raise DemoError(f"the loss is {loss}: the training diverged. Try another --seed.")
            bar.advance(f"loss {loss:.3f}, characters right {accuracy:.1%}")

        for epoch, trained in enumerate(training.train(data, params, epochs, options.seed, step_done), start=1):
            params, seconds = trained, time.perf_counter() - start
            found = training.translate(unseen, params)
            right = np.mean([text == pair.target for text, pair in zip(found, test, strict=True)])
            reached = f"{right:.1%} of {len(test)} unseen dates exactly right"
            bar.say(f"epoch {epoch} of {epochs}: {reached} after {seconds:.1f} s")
    _show_samples(test, found)
    _draw(path, unseen, test, found, params)
    print(f"Alignments drawn in {path}. Whole demo: {time.perf_counter() - start:.1f} s.")


def _say_what_runs(backend: str, params: Params, data: training.Data) -> None:
    tokens, lengths, _ = data.batch(np.arange(training.BATCH) % len(data.lengths))
    choices = explain(translator.forward, params, tokens, lengths).choices
    kernels = sorted({choice.kernel for choice in choices})
    print(f"Computing on {backend}; kernels: {', '.join(kernels).replace('reference', 'array code')}.")


def _show_samples(test: list[dates.Pair], found: list[str]) -> None:
    for language in SAMPLES:
        n = next((n for n, pair in enumerate(test) if pair.language == language), None)
        if n is not None:
            verdict = "" if found[n] == test[n].target else f"   WRONG, should be {test[n].target}"
            print(f"  {dates.language_name(language):<10} {found[n]}  <-  {test[n].source}{verdict}")


def _draw(path: Path, unseen: training.Data, test: list[dates.Pair], found: list[str], params: Params) -> None:
    rows = np.array(picture.pick_samples(test, DRAWN))
    picture.draw_alignments(
        path,
        [test[n].source for n in rows],
        [test[n].target for n in rows],
        training.alignments(unseen, params, rows),
        [found[n] for n in rows],
        "Where each digit of the ISO date looks",
        languages=[test[n].language for n in rows],
    )

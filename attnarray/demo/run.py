"""`attnarray demo`: train a date translator, print its answers, and draw its attention weights."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from attnarray.backend import use_backend
from attnarray.console import print_line, progress, require_writable
from attnarray.demo import ATTENTIONS, dates, picture, training
from attnarray.demo.comparison import compare
from attnarray.demo.lesson import EPOCHS, DemoError, Lesson, examine, learn, on_bar, prepare
from attnarray.demo.mechanisms import MECHANISMS
from attnarray.demo.model import Model
from attnarray.dispatch import KernelUnavailableError, explain, use_kernels
from attnarray.layers.initial import Params

TEST_DATES = 2_000
SAMPLES = ("en", "fr", "el", "ru", "tr", "he", "ja", "zh", "ko", "th", "hi", "fi")
DRAWN = 6
PICTURE, PICTURE_OF_ALL = "alignments.png", "mechanisms.png"


def main(options: argparse.Namespace) -> int:
    """Run the demo with the arguments of the command line; returns the exit code."""
    name = (PICTURE_OF_ALL if options.all else PICTURE) if options.picture is None else options.picture
    require_writable("demo", "--picture", name, (".png",))
    path = Path(name)
    chosen = options.attention or ATTENTIONS[0]
    count = options.dates or max(MECHANISMS[name].dates for name in (ATTENTIONS if options.all else (chosen,)))
    try:
        with progress("making dates"):
            train, test = dates.make_pairs(count, TEST_DATES, options.seed)
    except (ValueError, ModuleNotFoundError) as error:
        raise DemoError(str(error)) from error
    try:
        with use_backend(options.backend), use_kernels(options.kernels):
            if options.all:
                compare(options, path, train, test)
            else:
                _train_and_show(options, path, MECHANISMS[chosen].model, prepare(train, test))
    except KernelUnavailableError as error:
        raise DemoError(str(error)) from error
    return 0


def _train_and_show(options: argparse.Namespace, path: Path, model: Model, lesson: Lesson) -> None:
    test = lesson.test
    print_line(
        f"{len(lesson.learned.lengths)} dates in {len(dates.LANGUAGES)} languages to learn from, {len(test)} others to "
        f"test on; {len(lesson.vocabulary)} different characters."
    )
    params = lesson.fresh(model, options.seed)
    epochs = options.epochs or EPOCHS
    start = time.perf_counter()
    found: list[str] = []
    with progress("training", training.step_count(len(lesson.learned.lengths), epochs)) as bar:
        bar.note("first step")
        bar.say(_what_runs(options.backend, model, params, lesson.learned))
        lessons = learn(model, lesson, params, epochs, options.seed, on_bar(bar))
        for epoch, (trained, seconds) in enumerate(lessons, start=1):
            params = trained
            bar.note(f"epoch {epoch} of {epochs}: translating dates never seen")
            found, right = examine(model, lesson, params)
            reached = f"{right:.1%} of {len(test)} unseen dates exactly right"
            bar.say(f"epoch {epoch} of {epochs}: {reached} after {seconds:.1f} s")
        bar.note("drawing")
        _draw(path, model, lesson, found, params)
    _show_samples(test, found)
    print_line(f"Alignments drawn in {path}. Whole demo: {time.perf_counter() - start:.1f} s.")


def _what_runs(backend: str, model: Model, params: Params, data: training.Data) -> str:
    batch = data.batch(np.arange(training.BATCH) % len(data.lengths))
    choices = explain(model.forward, params, *batch).choices
    kernels = sorted({choice.kernel for choice in choices})
    return f"Computing on {backend}; kernels: {', '.join(kernels).replace('reference', 'array code')}."


def _show_samples(test: list[dates.Pair], found: list[str]) -> None:
    for language in SAMPLES:
        n = next((n for n, pair in enumerate(test) if pair.language == language), None)
        if n is not None:
            verdict = "" if found[n] == test[n].target else f"   WRONG, should be {test[n].target}"
            print_line(f"  {dates.language_name(language):<10} {found[n]}  <-  {test[n].source}{verdict}")


def _draw(path: Path, model: Model, lesson: Lesson, found: list[str], params: Params) -> None:
    rows = np.array(picture.pick_samples(lesson.test, DRAWN))
    pairs = [lesson.test[n] for n in rows]
    picture.draw_alignments(
        path,
        [pair.source for pair in pairs],
        [pair.target for pair in pairs],
        training.alignments(model, lesson.unseen, params, rows),
        [found[n] for n in rows],
        "Where each digit of the ISO date looks",
        names=[dates.language_name(pair.language) for pair in pairs],
    )

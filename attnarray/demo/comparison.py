"""`attnarray demo --all`: train all mechanisms on the same task, and compare them in a table and a picture."""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attnarray import optim, tree
from attnarray.console import GOOD, Progress, print_line, print_table, progress
from attnarray.demo import dates, picture, training
from attnarray.demo.lesson import EPOCHS, Lesson, examine, learn, on_bar, prepare
from attnarray.demo.mechanisms import MECHANISMS
from attnarray.demo.model import Model
from attnarray.layers.initial import Params
from attnarray.random import Philox
from attnarray.tables import Cell, paragraphs

COLUMNS = ["mechanism", "parameters", "dates", "exact", "seconds", "peak memory"]
HOST_LIBRARIES = ("numpy", "array_api_strict")  # tracemalloc sees the arrays of these alone
PANELS_ACROSS = 3
NOTE_WIDTH = 68  # of the lines below the table: about as wide as it is


class Outcome(NamedTuple):
    """The accuracy of one mechanism, and its attention weights for the date in the picture."""

    parameters: int
    dates: int
    accuracy: float
    seconds: float
    peak_bytes: int | None
    translation: str
    weights: np.ndarray


def compare(options: argparse.Namespace, path: Path, train: list[dates.Pair], test: list[dates.Pair]) -> None:
    """Train every mechanism in turn, print the table and draw the alignments of all for one date."""
    start = time.perf_counter()
    epochs = options.epochs or EPOCHS
    counts = {name: min(mechanism.dates, len(train)) for name, mechanism in MECHANISMS.items()}
    shown = picture.pick_samples(test, 1)[0]
    print_line(
        f"{len(MECHANISMS)} mechanisms learn from up to {len(train)} dates in {len(dates.LANGUAGES)} languages; "
        f"{len(test)} others to test on. Computing on {options.backend}."
    )
    outcomes = {}
    with progress("training", sum(training.step_count(count, epochs) for count in counts.values())) as bar:
        for name, mechanism in MECHANISMS.items():
            lesson = prepare(train[: counts[name]], test)
            done = outcomes[name] = _teach(name, mechanism.model, lesson, epochs, options, shown, bar)
            reached = f"{done.accuracy:.1%} of {len(test)} unseen dates exactly right"
            bar.say(f"{name}: {reached} after {done.seconds:.1f} s")
        bar.note("drawing")
        _draw(path, test[shown], outcomes)
    _show(outcomes, epochs, len(test))
    print_line(f"Alignments drawn in {path}. Whole demo: {time.perf_counter() - start:.0f} s.")


def step_peak_bytes(model: Model, params: Params, data: training.Data) -> int:
    """The peak memory in bytes that one training step allocates, with a batch of the longest dates.

    Measured by tracemalloc: all arrays on the host, without the scratch memory of compiled kernels.
    """
    batch = data.batch(np.argsort(data.lengths, kind="stable")[-training.BATCH :])
    trained = training.Trained(params, optim.adamw_init(params))
    training.train_step(model, trained, batch, 0.0, Philox(0))  # compiles what is not yet compiled
    tracemalloc.start()
    try:
        training.train_step(model, trained, batch, 0.0, Philox(0))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _teach(
    name: str, model: Model, lesson: Lesson, epochs: int, options: argparse.Namespace, shown: int, bar: Progress
) -> Outcome:
    bar.note(f"{name}: first step")
    params = lesson.fresh(model, options.seed)
    parameters = sum(int(np.prod(leaf.shape)) for _, leaf in tree.flatten(params))
    peak = step_peak_bytes(model, params, lesson.learned) if options.backend in HOST_LIBRARIES else None
    seconds = 0.0
    for trained in learn(model, lesson, params, epochs, options.seed, on_bar(bar, f"{name}: ")):
        params, seconds = trained
    bar.note(f"{name}: translating dates never seen")
    found, accuracy = examine(model, lesson, params)
    (weights,) = training.alignments(model, lesson.unseen, params, np.array([shown]))
    return Outcome(parameters, len(lesson.learned.lengths), accuracy, seconds, peak, found[shown], weights)


def _show(outcomes: dict[str, Outcome], epochs: int, tested: int) -> None:
    rows: list[list[str | Cell]] = [
        [
            name,
            f"{one.parameters:,}",
            f"{one.dates:,}",
            Cell(f"{one.accuracy:.1%}", GOOD if one.accuracy >= 0.9 else ""),
            f"{one.seconds:.1f}",
            "not measured" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.1f} MB",
        ]
        for name, one in outcomes.items()
    ]
    notes = [
        f"exact: of {tested} dates never seen. seconds: of training, {epochs} times over the dates. peak memory: the "
        f"most that a step with {training.BATCH} of the longest dates takes at a time, as tracemalloc counts it, "
        "without what compiled kernels keep inside.",
        *(f"{kind}: {', '.join(names)}." for kind, names in _by_kind().items()),
    ]
    caption = "\n".join(line for note in notes for line in paragraphs(note, NOTE_WIDTH))
    print_table("Every mechanism on the same task", COLUMNS, rows, right=range(1, len(COLUMNS)), caption=caption)


def _by_kind() -> dict[str, list[str]]:
    """The mechanisms of each kind of model."""
    kinds: dict[str, list[str]] = {}
    for name, mechanism in MECHANISMS.items():
        kinds.setdefault(mechanism.kind, []).append(name)
    return kinds


def _draw(path: Path, pair: dates.Pair, outcomes: dict[str, Outcome]) -> None:
    count = len(outcomes)
    picture.draw_alignments(
        path,
        [pair.source] * count,
        [pair.target] * count,
        [one.weights for one in outcomes.values()],
        [one.translation for one in outcomes.values()],
        f"Where {count} mechanisms look for the same date",
        names=list(outcomes),
        columns=PANELS_ACROSS,
    )

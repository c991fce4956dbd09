"""Output of commands: tables, lines and progress; in color on a terminal with rich, else in plain text."""

from __future__ import annotations

import argparse
import codecs
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from attnarray.dispatch import compilations
from attnarray.tables import Cell, layout, paragraphs

GOOD, BAD, FAINT = "green", "bold red", "dim"
UNLIMITED = 10_000  # the width where the output is no terminal and COLUMNS is not set
NARROWEST = 24  # smaller widths reported by a terminal are ignored
EVERY = 5.0  # seconds between two lines of progress
BEAT = 1.0  # seconds between two checks of the clock
COMPILING = "Compiling kernels for this machine, once ..."
NOT_KEPT = "Compiling kernels in this process, as no folder for their cache can be written (see attnarray info) ..."


# Replacements for terminals with ASCII only; anything else is "?".
ALIKE = {"█": "#", "·": ".", "–": "-", "—": "-", "≈": "~", "±": "~", "µ": "u", "×": "x", "…": ".", "²": "2"}
ALIKE |= dict.fromkeys("▏▎▍", "-") | dict.fromkeys("▌▋▊▉", "#")
ASCII = "attnarray-ascii"


def _alike(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(ALIKE.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error(ASCII, _alike)


class UsageError(Exception):
    """A wrong argument: one line for the user."""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description; indented lines, and the one before them, are kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.split("\n\n")
        filled = [
            block if "\n  " in block else "\n".join(paragraphs(block.replace("\n", " "), width)) for block in blocks
        ]
        return "\n\n".join(filled)


def has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def width() -> int:
    """The characters of a line: COLUMNS, else those of the terminal; no limit where the output is a file or pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns[:9]) > 0:
        return max(int(columns[:9]), NARROWEST)
    return max(shutil.get_terminal_size().columns, NARROWEST) if sys.stdout.isatty() else UNLIMITED


def require_writable(command: str, option: str, path: str, suffixes: tuple[str, ...] = ()) -> None:
    """Check that a file can be written, before a long computation."""
    target = Path(os.path.realpath(path))
    problem = ""
    if target.is_dir():
        problem = "it is a folder"
    elif target.exists() and not target.is_file():
        problem = "it is a device or a pipe"
    elif not target.parent.is_dir():
        problem = "its folder does not exist"
    elif suffixes and target.suffix.lower() not in suffixes:
        problem = f"expected a name that ends with {' or '.join(suffixes)}"
    else:
        try:
            if target.exists():
                with target.open("a"):
                    pass
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            problem = str(error.strerror)
    if problem:
        raise UsageError(f"attnarray {command}: {option} {path or repr(path)} cannot be written: {problem}")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    right: Sequence[int] = (),
    spare: Sequence[int] = (),
    caption: str = "",
) -> None:
    """Print a table that fits the terminal.

    Columns in `right` hold figures, which are never cut; those in `spare` are dropped where the terminal is too narrow.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    print_line("")
    for line in paragraphs(title, width()):
        print_line([Cell(line, "bold")])
    for row in layout(columns, cells, width(), right=right, spare=spare):
        print_line(row)
    for line in paragraphs(caption, width()):
        print_line(line)


def print_line(line: str | Sequence[Cell]) -> None:
    """Print a line; cells in their styles where the output is a terminal and rich is installed. Texts are wrapped."""
    if isinstance(line, str):
        print("\n".join(paragraphs(line, width())) if len(line) > width() else line, flush=True)
        return
    if not sys.stdout.isatty() or not has_rich():
        print("".join(cell.text for cell in line), flush=True)
        return
    from rich.console import Console

    Console().print(_styled(line), highlight=False, soft_wrap=True)


def _styled(line: str | Sequence[Cell]) -> Any:
    from rich.text import Text

    return Text(line) if isinstance(line, str) else Text.assemble(*line)


class Progress(Protocol):
    """Progress of a running command: on standard error, except permanent lines."""

    def advance(self, words: str) -> None:
        """Count a step, with a short description."""

    def note(self, words: str) -> None:
        """Show what happens within the step."""

    def say(self, line: str | Sequence[Cell]) -> None:
        """Print a permanent line of output."""

    def remark(self, line: str) -> None:
        """Print a permanent line on standard error."""

    def tick(self) -> None:
        """Check the clock."""


@contextmanager
def progress(label: str, total: int | None = None, *, still: bool = False) -> Iterator[Progress]:
    """Show the progress of `total` steps (None: it is not known): a bar on a terminal, else a line every few seconds.

    Kernels compiled meanwhile are named. A `still` bar, or its line, is written only within calls of its own methods,
    so that it does not disturb measurements.
    """
    with _bar(label, total, still) as bar, compilations(_Compilations(bar)):
        yield bar


@contextmanager
def _bar(label: str, total: int | None, still: bool) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        lines = Lines(label, total)
        with _beating(lines, still):
            yield lines
    elif has_rich():
        with _rich_bar(label, total, still) as bar:
            yield bar
    else:
        yield _PlainBar(label, total)
        sys.stderr.write("\r\033[K")


class _Compilations:
    """A listener that names each compiled kernel, with an explanation before the first one."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._said = bar, False

    def __call__(self, kernel: str, kept: bool) -> None:
        if not self._said:
            self._said = True
            self._bar.remark(COMPILING if kept else NOT_KEPT)
        self._bar.note(f"compiling {kernel}")


def _reached(label: str, done: int, total: int | None) -> str:
    return f"{label} {done}/{total}" if total else label


class Lines:
    """Progress without a terminal: a line at most every EVERY seconds."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done, self._words = label, total, 0, ""
        self._start = self._last = monotonic()
        self._lock = threading.RLock()

    def advance(self, words: str) -> None:
        with self._lock:
            self._done += 1
            self.note(words)

    def note(self, words: str) -> None:
        with self._lock:
            self._words = words
            self.tick()

    def say(self, line: str | Sequence[Cell]) -> None:
        with self._lock:
            print_line(line)
            self._last = monotonic()

    def remark(self, line: str) -> None:
        with self._lock:
            print(line, file=sys.stderr, flush=True)
            self._last = monotonic()

    def tick(self) -> None:
        with self._lock:
            now = monotonic()
            if now - self._last < EVERY:
                return
            reached = _reached(self._label, self._done, self._total)
            self.remark(", ".join(filter(None, [reached, self._words, f"{now - self._start:.0f} s"])))


@contextmanager
def _beating(lines: Lines, still: bool) -> Iterator[None]:
    """Within the block, a thread prints lines on time, also during long steps."""
    if still:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            lines.tick()

    thread = threading.Thread(target=beat, name="attnarray progress", daemon=True)
    with suppress(RuntimeError):  # no thread can be started: lines come between the steps only
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


class _PlainBar:
    """A line that is overwritten, on a terminal without rich."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0

    def advance(self, words: str) -> None:
        self._done += 1
        self.note(words)

    def note(self, words: str) -> None:
        line = f"{_reached(self._label, self._done, self._total)} {words}"[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line}\033[K")
        sys.stderr.flush()

    def say(self, line: str | Sequence[Cell]) -> None:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
        print_line(line)

    def remark(self, line: str) -> None:
        sys.stderr.write(f"\r{line}\033[K\n")

    def tick(self) -> None:
        pass


class _RichBar:
    """A bar of rich on standard error."""

    def __init__(self, bar: Any, task: Any, still: bool) -> None:
        self._bar, self._task, self._still = bar, task, still

    def advance(self, words: str) -> None:
        self._bar.update(self._task, advance=1, words=words, refresh=self._still)

    def note(self, words: str) -> None:
        self._bar.update(self._task, words=words, refresh=self._still)

    def say(self, line: str | Sequence[Cell]) -> None:
        self._bar.console.print(_styled(line), highlight=False, soft_wrap=True)

    def remark(self, line: str) -> None:
        self.say(line)

    def tick(self) -> None:
        pass


@contextmanager
def _rich_bar(label: str, total: int | None, still: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    counted = [BarColumn(), MofNCompleteColumn()] if total else []
    columns = (TextColumn("{task.description}"), *counted, TimeElapsedColumn(), TextColumn("{task.fields[words]}"))
    with RichProgress(*columns, console=Console(stderr=True), transient=True, auto_refresh=not still) as bar:
        yield _RichBar(bar, bar.add_task(label, total=total, words=""), still)

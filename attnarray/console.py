"""What commands show on a terminal: tables and progress bars; with rich where it is installed, else in plain text."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

GOOD, BAD, FAINT = "green", "bold red", "dim"
WIDTH_OF_FILES = 160  # where the output is no terminal, tables are not cut to the 80 columns of one


class UsageError(Exception):
    """A wrong argument: one line for the user."""


class Cell(NamedTuple):
    """A text in a table or a line, with its style."""

    text: str
    style: str = ""


def has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    right: Sequence[int] = (),
    caption: str = "",
) -> None:
    """A table on standard output; the columns numbered in `right` are aligned to the right."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if has_rich():
        _print_rich(title, columns, cells, right, caption)
        return
    widths = [
        max(len(text) for text in texts)
        for texts in zip(columns, *([c.text for c in row] for row in cells), strict=True)
    ]
    aligned = [str.rjust if n in right else str.ljust for n in range(len(columns))]
    print(f"\n{title}")
    for texts in [list(columns), ["-" * width for width in widths], *([c.text for c in row] for row in cells)]:
        print("  ".join(align(text, width) for align, text, width in zip(aligned, texts, widths, strict=True)).rstrip())
    if caption:
        print(caption)


def _print_rich(
    title: str, columns: Sequence[str], cells: list[list[Cell]], right: Sequence[int], caption: str
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption=caption or None)
    table.caption_justify = "left"
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n in right else "left", no_wrap=n == 0)
    for row in cells:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    console.print(table)


def print_line(line: str | Sequence[Cell]) -> None:
    """A line on standard output; cells in their styles, cut at the edge of a terminal, where rich is installed."""
    if isinstance(line, str) or not sys.stdout.isatty() or not has_rich():
        _print(line)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble(*line), highlight=False, no_wrap=True, overflow="ellipsis")


class Progress(NamedTuple):
    """A running bar: `advance` it with a few words on what was reached, or `say` a line that stays."""

    advance: Callable[[str], None]
    say: Callable[[str | Sequence[Cell]], None]


@contextmanager
def progress(label: str, total: int, *, still: bool = False) -> Iterator[Progress]:
    """A progress bar on standard error for `total` steps; only the lines that stay where that is not a terminal.

    A `still` bar is drawn when it advances and at no other time, so that it does not disturb what is measured.
    """
    if not sys.stderr.isatty():
        yield Progress(lambda _words: None, _print)
    elif has_rich():
        with _rich_progress(label, total, still) as bar:
            yield bar
    else:
        yield _plain_progress(label, total)
        sys.stderr.write("\r\033[K")


def _plain_progress(label: str, total: int) -> Progress:
    done = itertools.count(1)

    def advance(words: str) -> None:
        sys.stderr.write(f"\r{label} {next(done)}/{total} {words}\033[K")

    def say(line: str | Sequence[Cell]) -> None:
        sys.stderr.write("\r\033[K")
        _print(line)

    return Progress(advance, say)


def _print(line: str | Sequence[Cell]) -> None:
    print(line if isinstance(line, str) else "".join(cell.text for cell in line), flush=True)


@contextmanager
def _rich_progress(label: str, total: int, still: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True, auto_refresh=not still) as bar:
        task = bar.add_task(label, total=total, words="")

        def say(line: str | Sequence[Cell]) -> None:
            if isinstance(line, str):
                bar.console.print(line, highlight=False, markup=False)
            else:
                bar.console.print(Text.assemble(*line), highlight=False, no_wrap=True, overflow="ellipsis")

        yield Progress(lambda words: bar.update(task, advance=1, words=words, refresh=still), say)

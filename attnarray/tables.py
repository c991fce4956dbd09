"""Tables that fit a width: names are wrapped, then each row becomes a few lines; figures are never cut."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

GAP = "  "
NARROW = 12  # a column of names is folded to no fewer characters
FOLDS = re.compile(r"(?<=[ _/])|(?<=[A-Za-z][.:])|(?<=[A-Za-z]{2}-)")  # between words, and never within a number


class Cell(NamedTuple):
    """A text in a table or a line, with its style."""

    text: str
    style: str = ""


Line = list[Cell]


def layout(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    width: int,
    *,
    right: Sequence[int] = (),
    spare: Sequence[int] = (),
) -> list[Line]:
    """The lines of a table of at most `width` characters.

    Columns in `right` hold figures: they are aligned to the right and stay whole. Where the table is too wide, first
    titles are folded, then the columns in `spare` are left out, then the other columns are folded, and at last each
    row is written as a few lines, its figures with their titles.
    """
    shown = list(range(len(columns)))
    widths = [max(len(columns[n]), *(len(row[n].text) for row in rows), 0) for n in shown]
    if _total(widths) > width:
        titles = [max(map(len, title.split()), default=0) for title in columns]
        widths = [max(titles[n], *(len(row[n].text) for row in rows), 0) for n in shown]
        for n in reversed(spare):
            if _total([widths[m] for m in shown]) > width:
                shown.remove(n)
    fitted = _folded([widths[n] for n in shown], [n in right for n in shown], width)
    if fitted is None:
        kept = [n for n in range(len(columns)) if n not in spare]
        return list(_stacked([columns[n] for n in kept], [[row[n] for n in kept] for row in rows], width, right))
    aligned = [n in right for n in shown]
    head = [[Cell(columns[n], "bold") for n in shown], [Cell("-" * size, "dim") for size in fitted]]
    body = [[row[n] for n in shown] for row in rows]
    lines = [*(head if any(columns) else []), *body]
    return [line for cells in lines for line in _lines(cells, fitted, aligned)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _folded(widths: list[int], figures: Sequence[bool], width: int) -> list[int] | None:
    """The widths with the widest names folded until all fit; None where that is not enough."""
    fitted = list(widths)
    while _total(fitted) > width:
        names = [n for n, size in enumerate(fitted) if not figures[n] and size > NARROW]
        if not names:
            return None
        fitted[max(names, key=lambda n: fitted[n])] -= 1
    return fitted


def _lines(cells: Sequence[Cell], widths: Sequence[int], figures: Sequence[bool]) -> Iterator[Line]:
    """A row as one line, or as many as its most folded cell has."""
    folded = [fold(cell.text, size) for cell, size in zip(cells, widths, strict=True)]
    for texts in itertools.zip_longest(*folded, fillvalue=""):
        line: Line = []
        for n, (text, size) in enumerate(zip(texts, widths, strict=True)):
            last = n == len(cells) - 1
            padded = text.rjust(size) if figures[n] else text if last else text.ljust(size)
            line.append(Cell(padded + ("" if last else GAP), cells[n].style))
        while line and not line[-1].text.strip():
            line.pop()
        yield [*line[:-1], line[-1]._replace(text=line[-1].text.rstrip())] if line else []


def _stacked(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, right: Sequence[int]
) -> Iterator[Line]:
    """The first cell of each row on lines of its own, the others below it, figures with their titles."""
    for row in rows:
        for text in fold(row[0].text, width) if row[0].text else []:
            yield [Cell(text, row[0].style or "bold")]
        entries = [
            [Cell(f"{columns[n]} ", "dim"), cell] if n in right and columns[n] else [cell]
            for n, cell in enumerate(row)
            if n and cell.text
        ]
        yield from flow(entries, width, indent="  ")


def flow(entries: Sequence[Line], width: int, *, indent: str = "") -> Iterator[Line]:
    """Entries one after the other, on as many lines as it takes; one that is longer than a line is wrapped."""
    line: Line = []
    used = 0
    for entry in entries:
        size = sum(len(cell.text) for cell in entry)
        if line and used + len(GAP) + size > width:
            yield line
            line = []
        if not line and len(indent) + size > width:
            texts = fold("".join(cell.text for cell in entry), max(width - len(indent), 1))
            yield from ([Cell(indent + text, entry[-1].style)] for text in texts)
            continue
        before = Cell(GAP if line else indent)
        used = (used if line else 0) + len(before.text) + size
        line = [*line, before, *entry]
    if line:
        yield line


def fold(text: str, width: int) -> list[str]:
    """The text on lines of at most `width` characters, broken between words if possible."""
    lines = [""]
    for piece in FOLDS.split(text):
        if len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1:] = [piece[:width], ""]
            piece = piece[width:]
        lines[-1] += piece
    return [line.rstrip() for line in lines if line.strip()] or [""]


def paragraphs(text: str, width: int) -> list[str]:
    """Each line of the text, wrapped between words: a path that is longer than a line stays whole, to be copied."""
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return [line for each in text.splitlines() for line in wrapper.wrap(each) or [""]]

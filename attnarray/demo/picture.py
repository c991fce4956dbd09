"""Heat maps of attention weights, for a few dates or a few mechanisms."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnarray.demo.dates import TARGET_LENGTH, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"  # part of matplotlib, so the picture is the same everywhere
SHOWN_FIRST = ("en", "el", "ru", "hu", "ka", "vi", "hy", "tr", "pl", "fi", "de", "fr")  # scripts and orders differ
SHORTEST, LONGEST = 18, 30  # characters of a date that fill a panel and fit into it
CELL = 0.21  # inches
MARGIN, GAP, HEAD, FOOT = 0.6, 0.9, 1.75, 0.85  # inches, around and between the panels
INK, FAINT = "#222222", "#9a9a9a"
FIELDS = {  # rows of the answer YYYY-MM-DD, and their color where the attention is 1
    "year": (slice(0, 4), "#1f5fbf"),
    "month": (slice(5, 7), "#d1480f"),
    "day": (slice(8, 10), "#12824c"),
}
READ = 0.18  # attention from which a character is colored
CONTRAST = 0.65  # a little more ink for small weights; the scale under the title shows the same curve


def draw_alignments(
    path: str | os.PathLike[str],
    sources: Sequence[str],
    targets: Sequence[str],
    weights: Sequence[np.ndarray],
    predictions: Sequence[str],
    title: str,
    *,
    names: Sequence[str] | None = None,
    columns: int = 2,
) -> None:
    """Write a PNG with one heat map per answer: the characters of the date along the top, those of the answer
    down the side.

    Rows for the year, the month and the day have a color each. A character of the date has the color of the field
    that attends to it most. The rows of the two hyphens stay empty: they are the same in every answer. Wrong answers
    are marked, with the right one next to them.

    Parameters
    ----------
    path : path
        Of the PNG.
    sources, targets, predictions : sequence of str
        The dates as written, in ISO 8601, and as the model answered. Characters that the font lacks show as a dot.
    weights : sequence of (10, S) array
        The attention of each character of the answer over the S characters of the source, averaged over the heads.
    title : str
        The headline.
    names : sequence of str, optional
        What stands over each heat map, before the answer.
    columns : int
        Heat maps side by side.

    Raises
    ------
    ValueError
        If the sequences have different lengths or none, or the weights are not of shape (10, S).
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    _check(sources, targets, weights, predictions, names)
    figure_class = _matplotlib().figure.Figure
    columns = min(columns, len(sources))
    rows = -(-len(sources) // columns)
    width_of_panel = max(*map(len, sources), 46 // min(columns, 2)) * CELL  # wide enough for headline and answer
    height_of_panel = TARGET_LENGTH * CELL
    width = 2 * MARGIN + columns * width_of_panel + (columns - 1) * GAP
    height = HEAD + rows * height_of_panel + (rows - 1) * GAP + FOOT
    figure = figure_class(figsize=(width, height), dpi=150, facecolor="white")
    for n, source in enumerate(sources):
        left = MARGIN + n % columns * (width_of_panel + GAP)
        bottom = height - HEAD - height_of_panel - n // columns * (height_of_panel + GAP)
        box = (left / width, bottom / height, len(source) * CELL / width, height_of_panel / height)
        axes = figure.add_axes(box)
        name = names[n] if names else ""
        _panel(axes, drawable(source), targets[n], np.asarray(weights[n]), predictions[n], name)
    _headline(figure, width, height, title)
    figure.savefig(path, format="png")


def pick_samples(pairs: Sequence[Pair], count: int = 6) -> list[int]:
    """Indices in `pairs` of up to `count` dates of different languages, with all characters in the font.

    It takes the first date of each language that fits, whatever the predictions are.
    """
    first: dict[str, int] = {}
    for n, pair in enumerate(pairs):
        if SHORTEST <= len(pair.source) <= LONGEST and drawable(pair.source) == pair.source:
            first.setdefault(pair.language, n)
    order = [*(language for language in SHOWN_FIRST if language in first), *sorted(set(first) - set(SHOWN_FIRST))]
    return [first[language] for language in order[:count]]


def drawable(text: str) -> str:
    """`text` with a middle dot in place of each character that the font lacks."""
    return "".join(c if ord(c) in _charmap() or c.isspace() else "\N{MIDDLE DOT}" for c in text)


def _check(
    sources: Sequence[str],
    targets: Sequence[str],
    weights: Sequence[np.ndarray],
    predictions: Sequence[str],
    names: Sequence[str] | None,
) -> None:
    counts = [len(sources), len(targets), len(weights), len(predictions), *([len(names)] if names else [])]
    if len(set(counts)) != 1 or not sources:
        raise ValueError(
            f"There are {', '.join(map(str, counts))} sources, targets, ...: expected equally many, at least 1."
        )
    for source, weight in zip(sources, weights, strict=True):
        if np.shape(weight) != (TARGET_LENGTH, len(source)):
            raise ValueError(
                f"The weights for {source!r} have shape {np.shape(weight)}, expected {(TARGET_LENGTH, len(source))}: "
                "one row per character of the answer, one column per character of the source, without the padding."
            )


def _panel(axes: Axes, source: str, target: str, weight: np.ndarray, prediction: str, name: str) -> None:
    from matplotlib.colors import to_rgb

    image = np.ones((TARGET_LENGTH, len(source), 3))
    for rows, color in FIELDS.values():
        image[rows] = _shade(weight[rows], to_rgb(color))
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.set_xticks(np.arange(len(source) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(TARGET_LENGTH + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#ececec", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    for column, character in enumerate(source):
        _text(axes, column, -1.02, character, size=12, color=_field_color(weight[:, column]), weight="bold")
    for row, character in enumerate(prediction):
        _text(axes, -1.1, row, character, size=11, color=_row_color(row), weight="bold")
    right = prediction == target
    answer = prediction if right else f"{prediction}, but it is {target}"
    mark, color = ("\N{CHECK MARK}", "#12824c") if right else ("\N{BALLOT X}", "#c00000")
    shown = _text(axes, -0.5, -2.4, name, size=11, color=INK, ha="left", weight="bold")
    for text, ink in ((f"  \N{RIGHTWARDS ARROW}  {answer}  ", INK), (mark, color)):
        shown = axes.annotate(text, (1, 0), xycoords=shown, va="bottom", family=FONT, size=11, color=ink)


def _headline(figure: Figure, width: float, height: float, title: str) -> None:
    """Title, color scales and the caption, at fixed distances from the edges."""
    from matplotlib.colors import to_rgb

    left = MARGIN / width
    figure.text(left, 1 - 0.42 / height, title, family=FONT, size=15, weight="bold", color=INK, va="center")
    scale = np.linspace(0, 1, 128)[None, :]
    for n, (field, (_, color)) in enumerate(FIELDS.items()):
        start = MARGIN + n * 2.25
        figure.text(
            start / width, 1 - 0.82 / height, field, family=FONT, size=11, weight="bold", color=color, va="center"
        )
        axes = figure.add_axes(((start + 0.72) / width, 1 - 0.88 / height, 0.95 / width, 0.12 / height))
        axes.imshow(_shade(scale, to_rgb(color)), aspect="auto", extent=(0, 1, 0, 1))
        axes.set_xticks([0, 0.5, 1], ["0", "\N{VULGAR FRACTION ONE HALF}", "1"], family=FONT, size=7, color=FAINT)
        axes.set_yticks([])
        axes.tick_params(length=0, pad=2)
        axes.spines[:].set_color("#dddddd")
    sentence = (
        "Each row is one digit of the answer: the stronger the color, the more attention it pays to the character "
        "above; characters take the color of the field that reads them."
    )
    figure.text(
        left,
        0.38 / height,
        textwrap.fill(sentence, int(12 * width)),
        family=FONT,
        size=10,
        color="#555555",
        va="center",
    )


def _shade(weight: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """White at 0, `color` at 1: (...) -> (..., 3)."""
    ink = np.clip(weight, 0, 1)[..., None] ** CONTRAST
    return np.asarray(1 - ink * (1 - np.asarray(color)))


def _field_color(column: np.ndarray) -> str:
    """The color of the field that attends most to one character, faded by its weight."""
    looks = {color: float(np.max(column[rows])) for rows, color in FIELDS.values()}
    color = max(looks, key=lambda one: looks[one])
    return color if looks[color] >= READ else FAINT


def _row_color(row: int) -> str:
    return next((color for rows, color in FIELDS.values() if rows.start <= row < rows.stop), FAINT)


def _text(axes: Axes, x: float, y: float, text: str, *, ha: str = "center", **style: Any) -> Any:
    return axes.text(x, y, text, family=FONT, ha=ha, va="center_baseline", clip_on=False, parse_math=False, **style)


@functools.cache
def _charmap() -> frozenset[int]:
    manager = _matplotlib().font_manager
    bold = manager.FontProperties(family=FONT, weight="bold")
    fonts = [manager.get_font(manager.findfont(font)) for font in (manager.FontProperties(family=FONT), bold)]
    return frozenset(fonts[0].get_charmap()) & frozenset(fonts[1].get_charmap())


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.font_manager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The picture of the alignments needs the package matplotlib. Install it: pip install 'attnarray[demo]'.",
            name=error.name,
        ) from error
    return matplotlib

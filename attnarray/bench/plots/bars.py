"""Bars of speed: a panel for each case, a bar for each peer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnarray.bench import units
from attnarray.bench.plots.style import FAINT, FONT, INK, WARNING, headline, new_figure, peer_color, save
from attnarray.bench.report import is_alarming, lacks_interval
from attnarray.bench.results import Results, Row

COLUMNS = 3
HATCH = "////"  # of a bar whose ratio has no interval
LEFT, PANEL_WIDTH, BAR_HEIGHT = 0.25, 4.4, 0.21  # inches
HEAD, FOOT, PANEL_HEAD, GAP = 1.25, 0.1, 0.45, 0.3  # inches
NAMES_WIDTH, FIGURES_WIDTH, MARGIN = 0.95, 1.25, 0.4  # inches: peers at the left of the bars, figures at their right
BARS_WIDTH = PANEL_WIDTH - NAMES_WIDTH - FIGURES_WIDTH - MARGIN


def draw_bars(results: Results, path: Path) -> None:
    """One panel for each case, one bar for each peer: its speed relative to the baseline's, longer is faster."""
    panels = [[row for row in rows if row.time is not None or is_alarming(row)] for rows in results.cases().values()]
    panels = [rows for rows in panels if rows]
    columns = max(1, min(COLUMNS, len(panels)))
    lines = [panels[n : n + columns] for n in range(0, len(panels), columns)]
    heights = [PANEL_HEAD + BAR_HEIGHT * max(len(rows) for rows in line) + GAP for line in lines]
    width, height = max(2, columns) * PANEL_WIDTH + LEFT, HEAD + sum(heights) + FOOT
    figure = new_figure(width, height)
    about = "the thin line is the interval; what a peer does not offer is left out"
    if any(lacks_interval(row, results.baseline) for row in results.rows):
        about = f"{about}; hatched: no interval, as there were few rounds"
    headline(figure, results, f"Speed relative to {results.baseline}: longer is faster", about)
    top = height - HEAD
    for line, line_height in zip(lines, heights, strict=True):
        for n, rows in enumerate(line):
            left, tall = LEFT + n * PANEL_WIDTH + NAMES_WIDTH, BAR_HEIGHT * len(rows)
            box = (left / width, (top - PANEL_HEAD - tall) / height, BARS_WIDTH / width, tall / height)
            _draw_panel(figure.add_axes(box), rows, results.baseline)
        top -= line_height
    save(figure, path)


def _draw_panel(axes: Any, rows: Sequence[Row], baseline: str) -> None:
    first = rows[0]
    speeds = _speeds(rows, baseline)
    axes.set_xlim(0, 1.02 * max([1.0, *speeds.values()]))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_axis_off()
    axes.axvline(1.0, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for n, row in enumerate(rows):
        weight = "bold" if row.peer == "attnarray" else "normal"
        _write(axes, -0.08, n, row.peer, ha="right", fontweight=weight)
        if row.time is None:
            blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            _write(axes, 0.03, n, shortened(row.problem), fontsize=6.5, color=WARNING, bbox=blank)
            continue
        hatch = {"hatch": HATCH, "edgecolor": "white", "linewidth": 0} if lacks_interval(row, baseline) else {}
        axes.barh(n, speeds[row.peer], height=0.74, color=peer_color(row.peer), zorder=2, **hatch)
        if row.peer != baseline and row.ratio is not None and row.ratio.low is not None and row.ratio.high is not None:
            axes.plot((1 / row.ratio.high, 1 / row.ratio.low), (n, n), color=INK, linewidth=0.9, zorder=3)
        if row.ratio is not None:
            _write(axes, BARS_WIDTH + 0.5, n, f"{units.ratio(1 / row.ratio.value)}×", ha="right", fontweight=weight)
        _write(axes, BARS_WIDTH + FIGURES_WIDTH, n, units.seconds(row.time.median), ha="right")
    _write(axes, -NAMES_WIDTH, -1.55, first.case, fontsize=9.5, fontweight="bold")
    about = f"{first.direction}, {first.dtype}, {first.text}"
    _write(axes, -NAMES_WIDTH, -0.85, about, fontsize=7, color=FAINT)


def _speeds(rows: Sequence[Row], baseline: str) -> dict[str, float]:
    """The speed of each peer relative to the baseline's; relative to the fastest's where the baseline is missing."""
    timed = {row.peer: row for row in rows if row.time is not None}
    if baseline in timed:
        return {peer: 1 / row.ratio.value for peer, row in timed.items() if row.ratio is not None}
    medians = {peer: row.time.median for peer, row in timed.items() if row.time is not None}
    return {peer: min(medians.values()) / median for peer, median in medians.items()}


def shortened(text: str, most: int = 62) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _write(axes: Any, inches: float, line: float, text: str, **style: Any) -> None:
    """A text so far from the left end of the bars, on a line of them."""
    given = {"ha": "left", "va": "center", "fontsize": 7.5, "color": INK, "fontfamily": FONT, **style}
    axes.text(inches / BARS_WIDTH, line, text, transform=axes.get_yaxis_transform(), **given)

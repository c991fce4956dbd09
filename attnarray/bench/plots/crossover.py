"""The crossover: time over size for each peer, and the fastest at each size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnarray.bench.crossover import Winner, winners
from attnarray.bench.plots.style import (
    FAINT,
    FONT,
    INK,
    headline,
    legend,
    new_figure,
    peer_color,
    peer_marker,
    quiet,
    save,
)
from attnarray.bench.results import Results, Row

WIDTH, HEIGHT = 9.5, 6.2  # inches


def draw_crossover(results: Results, path: Path) -> None:
    """Log-log lines of median time with their quartiles, and below them a strip in the colors of the fastest."""
    figure = new_figure(WIDTH, HEIGHT)
    first = results.rows[0]
    about = f"{first.direction}, {first.dtype}; bands are quartiles"
    headline(figure, results, f"{results.crossover} over sizes", about)
    axes = figure.add_axes((0.09, 0.24, 0.74, 0.56))
    strip = figure.add_axes((0.09, 0.115, 0.74, 0.055), sharex=axes)
    quiet(axes, grid="both")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylabel("time per call", fontsize=9, color=INK, fontfamily=FONT)
    axes.yaxis.set_major_formatter(_time_label)
    for peer in results.peers():
        _draw_line(axes, [row for row in results.rows if row.peer == peer])
    _draw_strip(strip, winners(results))
    sizes = sorted({row.size for row in results.rows})
    for each in (axes, strip):
        each.set_xticks(sizes, [str(size) for size in sizes])
    axes.tick_params(labelbottom=False)
    strip.set_xlabel("size: keys, or rows for functions without keys", fontsize=9, color=INK, fontfamily=FONT)
    legend(axes)
    save(figure, path)


def _draw_line(axes: Any, rows: list[Row]) -> None:
    timed = [(row.size, row.time) for row in rows if row.time is not None]
    if not timed:
        return
    peer = rows[0].peer
    sizes = [size for size, _ in timed]
    ours = peer == "attnarray"
    axes.fill_between(sizes, [t.low for _, t in timed], [t.high for _, t in timed], color=peer_color(peer), alpha=0.15,
                      linewidth=0)  # fmt: skip
    axes.plot(
        sizes, [t.median for _, t in timed], color=peer_color(peer), marker=peer_marker(peer),
            markersize=5 if ours else 4,
        linewidth=2.2 if ours else 1.4, markeredgecolor="white", markeredgewidth=0.6, zorder=4 if ours else 3,
        label=peer,
    )  # fmt: skip


def _draw_strip(strip: Any, found: list[Winner]) -> None:
    half = 2**0.5
    for winner in found:
        share = 1 / len(winner.rows)
        for n, row in enumerate(winner.rows):
            strip.bar(
                winner.size / half, share, width=winner.size * (half - 1 / half), bottom=1 - (n + 1) * share,
                align="edge", color=peer_color(row.peer), edgecolor="white", linewidth=1.0,
            )  # fmt: skip
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    for side in ("top", "left", "right", "bottom"):
        strip.spines[side].set_visible(False)
    strip.tick_params(colors=FAINT, labelsize=8, length=0, which="both")
    strip.annotate("fastest", (0, 0.5), xycoords="axes fraction", xytext=(-6, 0), textcoords="offset points",
                   ha="right", va="center", fontsize=8, color=INK, fontfamily=FONT)  # fmt: skip


def _time_label(value: float, _: int) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.999 * scale:
            return f"{value / scale:g} {unit}"
    return f"{value * 1e9:g} ns"

"""The roofline: the rate of each peer, and the limit of the machine, over the arithmetic intensity of the case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from attnarray.bench import units
from attnarray.bench.plots.style import (
    FAINT,
    FONT,
    INK,
    RULE,
    headline,
    legend,
    new_figure,
    peer_color,
    peer_marker,
    quiet,
    save,
)
from attnarray.bench.results import Results, Row

WIDTH, HEIGHT = 11.0, 7.4  # inches
GIGA = 1e9
NAME_GAP = 0.0145  # of the width of the axis, between the names of two cases
NAME: dict[str, Any] = {
    "textcoords": "offset points", "rotation": 90, "ha": "center", "va": "top", "fontsize": 7, "color": FAINT,
    "fontfamily": FONT,
}  # fmt: skip


def draw_roofline(results: Results, path: Path) -> None:
    """Log-log: floating-point operations per byte horizontally, operations per second vertically."""
    rows = [row for row in results.rows if row.time is not None and row.flops > 0]
    figure = new_figure(WIDTH, HEIGHT)
    title = "Roofline: how close each call comes to what this machine can do"
    headline(figure, results, title, "a column of marks is a case; higher is faster")
    axes = figure.add_axes((0.075, 0.24, 0.745, 0.535))
    quiet(axes)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("floating-point operations per byte moved", fontsize=9, color=INK, fontfamily=FONT)
    axes.set_ylabel("GFLOP/s", fontsize=9, color=INK, fontfamily=FONT)
    axes.xaxis.labelpad = 8
    if rows:
        _draw_ceilings(axes, results, rows)
        _draw_cases(axes, rows)
        _draw_legend(axes, results)
    else:
        axes.text(0.5, 0.5, "no case of this run counts floating-point operations", transform=axes.transAxes,
                  ha="center", color=FAINT, fontfamily=FONT)  # fmt: skip
    save(figure, path)


def _draw_ceilings(axes: Any, results: Results, rows: list[Row]) -> None:
    intensities = [row.flops / row.bytes for row in rows]
    left, right = min(intensities) / 2, max(intensities) * 2.5
    gemm = results.ceilings["gemm"]
    top = max(gemm.values())
    slowest = min(row.flops / row.time.median for row in rows if row.time)
    axes.set_xlim(left, right)
    axes.set_ylim(slowest / GIGA / 3.5, top / GIGA * 2)
    x = np.geomspace(left, right, 200)
    used = {row.dtype for row in rows}
    for n, (dtype, rate) in enumerate(sorted(gemm.items(), key=lambda item: -item[1])):
        if n and dtype not in used:
            continue
        roof = np.minimum(rate, x * results.ceilings["copy"]) / GIGA
        axes.plot(x, roof, color=INK if n == 0 else FAINT, linewidth=1.6 if n == 0 else 1.0, zorder=1)
        axes.annotate(
            f"{dtype} product, {units.rate(rate, 'FLOP/s')}", (right, rate / GIGA), xytext=(5, 0),
            textcoords="offset points", ha="left", va="center", fontsize=7.5, color=INK if n == 0 else FAINT,
            fontfamily=FONT,
        )  # fmt: skip
    axes.fill_between(x, np.minimum(top, x * results.ceilings["copy"]) / GIGA, 1e9, color="#f5f5f7", zorder=0)
    _name_the_slope(axes, results.ceilings["copy"], left, top)


def _name_the_slope(axes: Any, copy: float, left: float, top: float) -> None:
    """The bandwidth's name along its line, where the line is visible."""
    low = max(left, axes.get_ylim()[0] * GIGA / copy)
    x = float(np.sqrt(low * min(top / copy, axes.get_xlim()[1])))
    ends = axes.transData.transform([(x, x * copy / GIGA), (2 * x, 2 * x * copy / GIGA)])
    angle = float(np.degrees(np.arctan2(*(ends[1] - ends[0])[::-1])))
    axes.annotate(
        f"copy, {units.rate(copy, 'B/s')}", (x, x * copy / GIGA), xytext=(-4, 5), textcoords="offset points",
        rotation=angle, rotation_mode="anchor", ha="center", va="bottom", fontsize=8, color=INK, fontfamily=FONT,
    )  # fmt: skip


def _draw_cases(axes: Any, rows: list[Row]) -> None:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    ordered = sorted(cases.items(), key=lambda case: case[1][0].flops / case[1][0].bytes)
    positions = _apart([peers[0].flops / peers[0].bytes for _, peers in ordered], axes)
    floor = axes.get_ylim()[0]
    for (case, peers), position in zip(ordered, positions, strict=True):
        rates = [row.flops / row.time.median / GIGA for row in peers if row.time]
        x = peers[0].flops / peers[0].bytes
        axes.plot((x, x), (min(rates), max(rates)), color=RULE, linewidth=1.2, zorder=1)
        axes.plot((x, position), (min(rates), floor), color=RULE, linewidth=0.5, zorder=1)
        axes.annotate(case, (position, floor), xytext=(0, -6), **NAME)
        for row, rate in zip(peers, rates, strict=True):
            axes.scatter(
                x, rate, s=34 if row.peer == "attnarray" else 20, color=peer_color(row.peer),
                marker=peer_marker(row.peer),
                edgecolors="white", linewidths=0.6, zorder=4 if row.peer == "attnarray" else 3,
            )  # fmt: skip


def _apart(values: list[float], axes: Any) -> list[float]:
    """Ascending values on the logarithmic axis, moved apart as little as needed for names not to overlap."""
    left, right = np.log(axes.get_xlim())
    gaps = NAME_GAP * (right - left) * np.arange(len(values))
    # Isotonic regression: less their gaps, positions must ascend; neighbors that do not are replaced by their mean.
    pools: list[tuple[float, int]] = []
    for position in np.log(values) - gaps:
        pools.append((float(position), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((m * a + n * b) / (m + n), m + n)]
    ascending = np.concatenate([np.full(count, position) for position, count in pools])
    return list(np.exp(np.clip(ascending, left, right - gaps[-1]) + gaps))


def _draw_legend(axes: Any, results: Results) -> None:
    for peer in results.peers():
        if any(row.peer == peer and row.time is not None for row in results.rows):
            axes.scatter([], [], s=34, color=peer_color(peer), marker=peer_marker(peer), label=peer)
    legend(axes, top=0.72)

"""The style of pictures: one color for each peer, few axes, and a font that is part of matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attnarray.bench.machine import warnings
from attnarray.bench.results import Results

INK, FAINT, RULE = "#1d1d1f", "#8a8a8e", "#dcdce0"
WARNING = "#b3261e"
FONT = "DejaVu Sans"
DPI = 150

# Distinct for color-blind readers, too: ours are blue, PyTorch's warm, the others in between.
COLORS = {
    "attnarray": "#0b5fa5",
    "reference": "#7fb6e0",
    "naive": "#9a9a9e",
    "torch": "#d1480f",
    "torch-eager": "#f0a35e",
    "jax": "#7a3fa0",
    "keras": "#c06fb0",
    "onnxruntime": "#1f8a5b",
}
MARKERS = {
    "attnarray": "o", "reference": "o", "naive": "s", "torch": "D", "torch-eager": "D", "jax": "^", "keras": "v",
    "onnxruntime": "P",
}  # fmt: skip


def peer_color(peer: str) -> str:
    return COLORS.get(peer, INK)


def peer_marker(peer: str) -> str:
    return MARKERS.get(peer, "o")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that many inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "attnarray"  # so that equal pictures are equal files
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def quiet(axes: Any, *, grid: str = "") -> None:
    """Only the axes that carry a scale, thin and gray."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8, length=3, which="both")
    axes.tick_params(which="minor", length=0)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)


def headline(figure: Any, results: Results, title: str, about: str) -> None:
    """A title, lines about machine and picture, and warnings: at the top left, in inches on any figure."""
    height = figure.get_figheight()
    left = 0.25 / figure.get_figwidth()
    font = {"fontfamily": FONT, "ha": "left", "va": "top", "linespacing": 1.3}
    figure.text(left, 1 - 0.22 / height, title, fontsize=14, color=INK, fontweight="bold", **font)
    figure.text(left, 1 - 0.56 / height, f"{machine_line(results)}\n{about}", fontsize=8.5, color=FAINT, **font)
    doubts = "\n".join(warnings(results.environment, results.ceilings))
    figure.text(left, 1 - 0.88 / height, doubts, fontsize=8.5, color=WARNING, **font)


def legend(axes: Any, top: float = 1.0) -> None:
    """A legend in a column next to the axes; `top` is a share of their height."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, top), frameon=False, labelcolor=INK, borderaxespad=0.0,
        labelspacing=0.7, prop={"family": FONT, "size": 9},
    )  # fmt: skip


def machine_line(results: Results) -> str:
    """The machine in a line."""
    here = results.environment
    threads = f"{here['threads']} thread{'s' if here['threads'] != 1 else ''}"
    return f"{here['device'] or here['cpu']}, {threads}, attnarray {here['attnarray']}, {here['date'][:10]}"


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a PNG or SVG without the date, so that the same figures make the same file."""
    metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else {"Software": None}
    figure.savefig(path, facecolor="white", metadata=metadata)

"""Pictures of a run: bars of speed for each case, the roofline, and the crossover over sizes."""

from __future__ import annotations

from pathlib import Path

from attnarray.bench.plots.bars import draw_bars
from attnarray.bench.plots.crossover import draw_crossover
from attnarray.bench.plots.roofline import draw_roofline
from attnarray.bench.results import Results


def draw(results: Results, path: Path) -> list[Path]:
    """Draw a run to `path`; returns the files written: two for cases, one for a crossover."""
    if results.crossover:
        draw_crossover(results, path)
        return [path]
    roofline = path.with_name(f"{path.stem}-roofline{path.suffix}")
    draw_bars(results, path)
    draw_roofline(results, roofline)
    return [path, roofline]

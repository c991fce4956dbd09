"""The picture and the table of speeds of the README, from a run of `attnarray bench --full --peers attnarray torch`.

    python -m benchmarks.readme RUN.json [--picture docs/images/speed.png]

Each figure is PyTorch's time over ours in the same run, above 1 is faster; that of a group is the geometric mean of its
cases.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from attnarray.bench.catalog import GROUPS

OURS, OTHERS = "#1f5fbf", "#d1480f"
TABLE = ["| group | what | cases | mean | lowest | highest |", "|---|---|---:|---:|---:|---:|"]


def ratios(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Group -> case -> PyTorch's time over ours, of the cases that both ran."""
    times = {(row["case"], row["peer"]): row["time"][0] for row in run["rows"] if not row["problem"]}
    found: dict[str, dict[str, float]] = {group: {} for group in GROUPS}
    for row in run["rows"]:
        ours, torch = (times.get((row["case"], peer)) for peer in ("attnarray", "torch"))
        if ours and torch:
            found[row["group"]][row["case"]] = torch / ours
    return {group: cases for group, cases in found.items() if cases}


def mean(cases: dict[str, float]) -> float:
    return math.exp(sum(map(math.log, cases.values())) / len(cases))


def table(run: dict[str, Any]) -> str:
    """One row for each group."""
    rows = []
    for group, cases in ratios(run).items():
        low, *_, high = sorted(cases.values())
        rows.append(f"| {group} | {GROUPS[group]} | {len(cases)} | {mean(cases):.2f} | {low:.2f} | {high:.1f} |")
    return "\n".join([*TABLE, *rows]) + "\n"


def draw(run: dict[str, Any], path: Path) -> None:
    """A point for each case on a logarithmic axis, and a bar at the mean of each group."""
    import matplotlib.pyplot as plt

    groups = list(ratios(run).items())[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(groups) + 1.1), layout="constrained")
    axes.axvline(1, color="0.35", linewidth=1)
    for n, (_, cases) in enumerate(groups):
        values = sorted(cases.values())
        heights = [n + 0.22 * math.sin(2.4 * k) for k in range(len(values))]  # so that equal ones are seen
        axes.scatter(
            values, heights, s=16, color=[OURS if v >= 1 else OTHERS for v in values], alpha=0.55, linewidths=0
        )
        axes.plot([mean(cases)] * 2, [n - 0.34, n + 0.34], color="0.1", linewidth=2)
        axes.annotate(f"{mean(cases):.2f}", (1.01, n), xycoords=("axes fraction", "data"), va="center")
    axes.set_xscale("log")
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(groups)), [group for group, _ in groups])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("times as fast as PyTorch on the same CPUs: each case, and the mean of its group")
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="The speeds of the README.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args()
    run = json.loads(options.run.read_text(encoding="utf-8"))
    print(table(run), end="")
    if options.picture:
        draw(run, options.picture)


if __name__ == "__main__":
    main()

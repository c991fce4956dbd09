"""A run as a Markdown page, for docs."""

from __future__ import annotations

from attnarray.bench.catalog import GROUPS
from attnarray.bench.machine import warnings
from attnarray.bench.report import NO_INTERVAL, figures, lacks_interval, rates
from attnarray.bench.results import Results, Row
from attnarray.bench.units import NONE

ABOUT = {
    "cpu": "CPU", "device": "GPU", "threads": "threads", "python": "Python", "numpy": "NumPy", "blas": "BLAS",
    "attnarray": "attnarray", "numba": "Numba", "torch": "PyTorch", "jax": "JAX", "keras": "Keras",
    "onnxruntime": "ONNX Runtime", "date": "date", "command": "command",
}  # fmt: skip


def markdown(results: Results) -> str:
    """Environment, ceilings, and one table per group: a row for each case, a column for each peer."""
    here = results.environment
    about = [f"- {label}: {here[name]}" for name, label in ABOUT.items() if here.get(name)]
    lines = [*about, f"- ceilings: {', '.join(rates(results))}", ""]
    for warning in warnings(here, results.ceilings):
        lines += [f"**{warning}**", ""]
    if not results.complete:
        lines += ["This run was interrupted; it holds what was measured until then.", ""]
    lines += [
        f"Each cell: median time; time over that of {results.baseline} (below 1 is faster) with its interval; "
        "fraction of the roofline.",
        "",
    ]
    if any(lacks_interval(row, results.baseline) for row in results.rows):
        lines += [NO_INTERVAL.replace("*", "\\*"), ""]
    groups = list(dict.fromkeys(row.group for row in results.rows))
    for group in groups:
        lines += [f"### {group}: {GROUPS.get(group, '')}".removesuffix(": "), "", *_table(results, group), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(results: Results, group: str) -> list[str]:
    cases = {case: rows for case, rows in results.cases().items() if rows[0].group == group}
    peers = [
        peer for peer in results.peers() if any(r.peer == peer and r.time for rows in cases.values() for r in rows)
    ]
    lines = [f"| case | {' | '.join(peers)} |", f"|---|{'---|' * len(peers)}"]
    for case, rows in cases.items():
        by_peer = {row.peer: row for row in rows}
        cells = [_cell(by_peer.get(peer), results.baseline) for peer in peers]
        lines.append(f"| {case}<br>{rows[0].direction}, {rows[0].dtype}<br>{rows[0].text} | {' | '.join(cells)} |")
    return lines


def _cell(row: Row | None, baseline: str) -> str:
    if row is None:
        return ""
    if row.time is None:
        return row.problem.replace("|", "\\|")
    texts = figures(row, baseline)
    ratio = texts["ratio"].replace("*", "\\*")
    compared = ratio if texts["interval"] in ("", NONE) else f"{ratio} ({texts['interval']})"
    return "<br>".join([f"**{texts['median']}**", compared, texts["roofline"]])

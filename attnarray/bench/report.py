"""The output of a run on the terminal: lines while it measures, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnarray.bench import machine, units
from attnarray.bench.results import Results, Row
from attnarray.bench.statistics import FEWEST_ROUNDS, Ratio, geometric_mean, unpaired_ratio
from attnarray.console import BAD, FAINT, GOOD, print_line, print_table, width
from attnarray.tables import Cell, fold, paragraphs

Line = str | Sequence[Cell]
Say = Callable[[Line], None]

PEER_WIDTH = 12
INDENT = "    "  # of the rest of a line that is too long
WARNING = "yellow"
NO_INTERVAL = f"*: fewer than {FEWEST_ROUNDS} rounds, so the ratio has no interval."
BAR = 12  # characters of the fastest peer's bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
WIDTHS = {"median": 9, "spread": 8, "ratio": 6, "interval": 11, "roofline": 8, "first": 9, "memory": 9}


def heading(results: Results) -> list[Line]:
    """The machine, and the meaning of the columns."""
    here = results.environment
    device = f"{here['device']}, " if here["device"] else ""
    titles = {**{name: name for name in WIDTHS}, "ratio": f"vs {results.baseline}", "first": "1st call"}
    titles["memory"] = "memory +"
    columns = [Cell(f"{title:>{_width(name, results.baseline)}} ", "bold") for name, title in titles.items()]
    texts = [
        f"{device}{here['cpu']}, {here['threads']} of {here['cpus']} CPUs; {here['backend']} arrays",
        f"Ceilings: {', '.join(rates(results))}",
    ]
    alarms = [line for text in machine.warnings(here, results.ceilings) for line in paragraphs(text, width())]
    return [
        *(line for text in texts for line in paragraphs(text, width())),
        *([Cell(line, WARNING)] for line in alarms),
        "",
        *_wrapped(Cell(f"  {'peer':<{PEER_WIDTH}} ", "bold"), [*columns, Cell(f" {'speed':<{BAR}}", "bold")]),
    ]


def rates(results: Results) -> list[str]:
    """The ceilings in words."""
    ceilings = results.ceilings
    products = [f"{dtype} product {units.rate(rate, 'FLOP/s')}" for dtype, rate in ceilings["gemm"].items()]
    exps = [f"{dtype} exp {units.rate(rate, '/s')}" for dtype, rate in ceilings["exp"].items()]
    return [*products, f"copy {units.rate(ceilings['copy'], 'B/s')}", *exps]


def _width(column: str, baseline: str) -> int:
    return max(WIDTHS[column], len(f"vs {baseline}")) if column == "ratio" else WIDTHS[column]


def case_lines(rows: Sequence[Row], baseline: str) -> list[Line]:
    """A line about the case, and one for each peer."""
    first = rows[0]
    fastest = min((row.time.median for row in rows if row.time), default=0.0)
    about = f"{first.direction}, {first.dtype}, {first.text}"
    if len(f"{first.case}  {about}") <= width():
        title = [[Cell(first.case, "bold"), Cell(f"  {about}", FAINT)]]
    else:
        title = [[Cell(first.case, "bold")], *([Cell(text, FAINT)] for text in fold(about, width()))]
    return [*title, *(line for row in rows for line in _lines(row, baseline, fastest))]


def _lines(row: Row, baseline: str, fastest: float) -> list[Line]:
    name = Cell(f"  {row.peer:<{PEER_WIDTH}} ", "bold" if row.peer == "attnarray" else "")
    if row.time is None:
        texts = fold(row.problem, width() - len(name.text))
        names = [name, *[Cell(" " * len(name.text))] * (len(texts) - 1)]
        style = BAD if is_alarming(row) else FAINT
        return [[before, Cell(text, style)] for before, text in zip(names, texts, strict=True)]
    figured = figures(row, baseline)
    cells = [Cell(f"{figured[column]:>{_width(column, baseline)}} ", _style(column, row)) for column in WIDTHS]
    bar = Cell(f" {_bar(fastest / row.time.median)}", "cyan")
    return _wrapped(name, [*cells, bar, Cell(f" {row.kernels}", FAINT)])


def _wrapped(name: Cell, cells: Sequence[Cell]) -> list[Line]:
    """Name and cells on as many lines as needed; cells of the same widths have the same lines."""
    lines = [[name]]
    for cell in cells:
        used = sum(len(other.text) for other in lines[-1])
        if len(lines[-1]) > 1 and used + len(cell.text.rstrip()) > width():
            lines.append([Cell(INDENT)])
        lines[-1].append(cell)
    return [[*line[:-1], line[-1]._replace(text=line[-1].text.rstrip())] for line in lines]


def lacks_interval(row: Row, baseline: str) -> bool:
    """Whether a row has a ratio that was taken in too few rounds for an interval."""
    return row.ratio is not None and row.ratio.low is None and row.peer != baseline


def marked(row: Row, baseline: str) -> str:
    """The ratio of a row, with a star where it has no interval."""
    if row.ratio is None:
        return units.NONE
    return units.ratio(row.ratio.value) + "*" * lacks_interval(row, baseline)


def figures(row: Row, baseline: str) -> dict[str, str]:
    """The figures of a measured row as texts, by column."""
    if row.time is None:
        return {}
    compared = row.ratio is not None and row.peer != baseline
    return {
        "median": units.seconds(row.time.median),
        "spread": units.variation(row.time),
        "ratio": marked(row, baseline),
        "interval": units.interval(row.ratio) if compared else "",
        "roofline": units.percent(None if row.roofline is None else row.roofline / row.time.median),
        "first": units.seconds(row.first_call),
        "memory": units.bytes_(row.peak_bytes) if row.peak_bytes is not None else "not meas.",
    }


def is_alarming(row: Row) -> bool:
    """Whether the problem is more than a missing feature of a peer."""
    return row.problem.startswith("wrong:") or "Error" in row.problem


def _style(column: str, row: Row) -> str:
    if column != "ratio" or row.ratio is None:
        return FAINT if column in ("spread", "interval", "first", "memory") else ""
    low, high = row.ratio.low, row.ratio.high
    return GOOD if high is not None and high < 1 else "yellow" if low is not None and low > 1 else ""


def _bar(share: float) -> str:
    """A bar in eighths of a character; never empty."""
    eighths = max(1, round(8 * BAR * share))
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(BAR)


def show_summary(results: Results) -> None:
    """One row for each group, one column for each peer: the geometric mean of the ratios to the baseline."""
    peers = [peer for peer in results.peers() if peer != results.baseline]
    groups = list(dict.fromkeys(row.group for row in results.rows))
    rows: list[list[str | Cell]] = []
    for group in [*groups, ""]:
        cells: list[str | Cell] = [group or "all"]
        for peer in peers:
            peer_rows = [r for r in results.rows if r.peer == peer and (not group or r.group == group)]
            found = [row.ratio.value for row in peer_rows if row.ratio is not None]
            unsure = any(lacks_interval(row, results.baseline) for row in peer_rows)
            cells.append(_mean_cell(found, len(peer_rows), unsure))
        rows.append(cells)
    print_table(
        f"Time over that of {results.baseline}: geometric mean, below 1 is faster",
        ["group", *peers],
        rows,
        right=range(1, len(peers) + 1),
        caption="(n/m): n of m cases",
    )


def _mean_cell(ratios: Sequence[float], cases: int, unsure: bool) -> Cell:
    if not ratios:
        return Cell(units.NONE, FAINT)
    mean = geometric_mean(ratios)
    count = f" ({len(ratios)}/{cases})" if len(ratios) < cases else ""
    return Cell(units.ratio(mean) + "*" * unsure + count, GOOD if mean < 1 else "")


def show_comparison(first: Results, second: Results, names: tuple[str, str]) -> None:
    """A row for each case and peer that both runs have: both medians, their ratio, and whether it is significant."""
    old = {(row.case, row.peer): row for row in first.rows if row.time}
    rows: list[list[str | Cell]] = []
    last = ""
    for row in second.rows:
        before = old.get((row.case, row.peer))
        if row.time is None or before is None or before.time is None:
            continue
        found = unpaired_ratio(row.samples, before.samples)
        rows.append([
            row.case if row.case != last else "", row.peer, units.seconds(before.time.median),
            units.seconds(row.time.median), units.ratio(found.value), units.interval(found), _verdict(found),
        ])  # fmt: skip
        last = row.case
    print_table(
        f"{names[1]} over {names[0]}: below 1 is faster",
        ["case", "peer", "before", "after", "ratio", "interval", ""],
        rows,
        right=range(2, 6),
        caption="" if rows else "The two runs have no case and peer in common.",
    )
    differences = _differences(first, second)
    if differences:
        print_line("The runs differ in more than time: " + "; ".join(differences) + ".")


def _verdict(found: Ratio) -> Cell:
    if found.low is None or found.high is None:
        return Cell("too few rounds", FAINT)
    if found.high < 1:
        return Cell("faster", GOOD)
    return Cell("slower", "yellow") if found.low > 1 else Cell("the same", FAINT)


def _differences(first: Results, second: Results) -> list[str]:
    ignored = {"date", "command", "load", "attnarray", "warm-up", "product at the end"}
    a, b = first.environment, second.environment
    return [f"{name} {a.get(name)} and {b.get(name)}" for name in b if name not in ignored and a.get(name) != b[name]]

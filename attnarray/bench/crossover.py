"""One case over sizes: at which size which peer wins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from attnarray.bench import units
from attnarray.bench.cases import BenchCase
from attnarray.bench.peers import Peer
from attnarray.bench.results import Results, Row
from attnarray.bench.runner import Setting, measure
from attnarray.bench.statistics import paired_ratio
from attnarray.console import FAINT, GOOD, print_line, print_table
from attnarray.tables import Cell

QUICK_SIZES = tuple(2**n for n in range(4, 11))  # 16 to 1024
FULL_SIZES = tuple(2**n for n in range(3, 14))  # 8 to 8192
# Seconds; a peer whose fastest call takes longer is left out at larger sizes.
SLOWEST_CALL = {False: 0.1, True: 1.0}


def sizes(full: bool) -> tuple[int, ...]:
    """Keys (or rows, for functions without keys) that are measured."""
    return FULL_SIZES if full else QUICK_SIZES


class Winner(NamedTuple):
    """The fastest peers of a size: more than one if measurements do not distinguish them."""

    size: int
    rows: tuple[Row, ...]

    @property
    def names(self) -> str:
        return " ≈ ".join(row.peer for row in self.rows)


def measure_sizes(
    case: BenchCase, peers: Sequence[Peer], setting: Setting, full: bool, advance: Callable[[str], None]
) -> Iterator[list[Row]]:
    """The rows of one size after the other; `advance` is called after each."""
    present = list(peers)
    for size in sizes(full):
        if case.resized is None or not present:
            return
        resized = case.resized(size)
        advance(resized.name)
        rows = measure(resized, present, setting)
        yield rows
        slow = {row.peer for row in rows if row.samples and min(row.samples) > SLOWEST_CALL[full]}
        present = [peer for peer in present if peer.name not in slow]


def winners(results: Results) -> list[Winner]:
    """The fastest peers of each size."""
    found = []
    for rows in results.cases().values():
        timed = sorted((row for row in rows if row.time is not None), key=_median)
        if timed:
            first = timed[0]
            equals = [row for row in timed[1:] if not _is_slower(row, first)]
            found.append(Winner(first.size, (first, *equals)))
    return found


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def _is_slower(row: Row, first: Row) -> bool:
    low = paired_ratio(row.samples, first.samples).low
    return min(row.samples) > max(first.samples) if low is None else low > 1  # too few rounds: if none overlap


def show(results: Results) -> None:
    """A row for each size with the medians of all peers and the fastest, then where the fastest changes."""
    found = {winner.size: winner for winner in winners(results)}
    peers = results.peers()
    table: list[list[str | Cell]] = []
    for rows in results.cases().values():
        by_peer = {row.peer: row for row in rows}
        winner = found.get(rows[0].size)
        best = {row.peer for row in winner.rows} if winner else set()
        cells: list[str | Cell] = [str(rows[0].size)]
        cells += [_cell(by_peer.get(peer), peer in best) for peer in peers]
        table.append([*cells, winner.names if winner else units.NONE])
    print_table(
        f"{results.crossover}: median time over sizes",
        ["size", *peers, "fastest"],
        table,
        right=range(len(peers) + 1),
        caption="≈ where the interval of the ratio does not tell peers apart; – where a peer was too slow before.",
    )
    for problem in dict.fromkeys(f"{row.peer}: {row.problem}" for row in results.rows if row.problem):
        print_line(problem)
    for line in [*changes(list(found.values())), *_kernels(results)]:
        print_line(line)


def changes(found: Sequence[Winner]) -> list[str]:
    """The sizes in order, as ranges over which the same peers win."""
    return [f"{sizes}: {' ≈ '.join(names)}" for names, sizes in _ranges(found, _names)]


def _names(winner: Winner) -> tuple[str, ...]:
    """The winners in a fixed order."""
    return tuple(sorted(row.peer for row in winner.rows))


def _ranges(found: Sequence[Any], key: Callable[[Any], Any]) -> list[tuple[Any, str]]:
    """Neighbors with the same key: the key, and "16 to 64" or "16"."""
    ranges = []
    for value, alike in itertools.groupby(found, key):
        sizes = [entry.size for entry in alike]
        ranges.append((value, f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"))
    return ranges


def _kernels(results: Results) -> list[str]:
    """Which kernels attnarray chose for which sizes."""
    ours = [row for row in results.rows if row.peer == "attnarray" and row.time is not None]
    return [f"attnarray, {sizes}: {kernels}" for kernels, sizes in _ranges(ours, lambda row: row.kernels)]


def _cell(row: Row | None, best: bool) -> Cell:
    if row is None or row.time is None:
        return Cell(units.NONE, FAINT)
    return Cell(units.seconds(row.time.median), GOOD if best else "")

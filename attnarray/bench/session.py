"""One run of `attnarray bench`, from its arguments to its files."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import attnarray
from attnarray import console
from attnarray.bench import crossover, machine, plots, preflight, report, results, selection, threads
from attnarray.bench.cases import BenchCase
from attnarray.bench.clock import clock_for
from attnarray.bench.markdown import markdown
from attnarray.bench.peers import PEERS, Peer
from attnarray.bench.results import Results, Row
from attnarray.bench.runner import Setting, measure
from attnarray.console import UsageError

SECONDS = {False: 0.08, True: 1.5}  # of timing for each peer on a case of the quick and of the full set
# Seconds before a sample, in which threads of the previous peer stop spinning, as those of GNU OpenMP do.
SETTLE = 1e-2
PICTURES = (".png", ".svg")
INTERRUPTED = 130  # the exit code after Ctrl-C

Advance = Callable[[str], None]


class Plan(NamedTuple):
    """The cases and peers of a run, from valid arguments; `varied` is the case whose sizes are varied."""

    cases: list[BenchCase]
    varied: BenchCase | None
    peers: list[Peer]
    absent: dict[str, str]
    baseline: str
    backend: str
    threads: int
    full: bool

    @property
    def steps(self) -> int:
        return len(crossover.sizes(self.full)) if self.varied else len(self.cases)


def run(options: argparse.Namespace) -> int:
    """Measure as asked; returns the exit code."""
    plan = _plan(options)
    threads.restrict(plan.threads)
    environment = machine.describe(plan.backend, plan.threads, _command(options))
    for warning in filter(None, [machine.busy(environment), _left_out(plan.absent)]):
        print(warning, file=sys.stderr)
    with console.progress("preparing") as bar:
        bar.note("kernels")
        environment["warm-up"] = attnarray.warmup(preflight.DTYPES)
        wrong = preflight.first_wrong({case.function for case in plan.cases}, plan.backend, bar.note)
    if wrong:
        print(f"attnarray bench: no figures, because the check fails: {wrong}. See attnarray check.", file=sys.stderr)
        return 1
    found = Results(environment, {}, plan.baseline, crossover=plan.varied.name if plan.varied else "")
    try:
        _measure(plan, options, found)
        found.complete = True
    except KeyboardInterrupt:
        print(f"Interrupted: {len(found.cases())} of {plan.steps} cases are measured.", file=sys.stderr)
    _save(found, options)
    if found.rows:
        present(found, options)
    if not found.complete:
        return INTERRUPTED
    return 1 if any(PEERS[row.peer].ours and row.problem.startswith("wrong:") for row in found.rows) else 0


def present(found: Results, options: argparse.Namespace) -> None:
    """The tables of a run, and the files that were asked for besides its JSON."""
    if found.crossover:
        crossover.show(found)
    else:
        report.show_summary(found)
    if any(report.lacks_interval(row, found.baseline) for row in found.rows):
        console.print_line(report.NO_INTERVAL)
    if options.markdown:
        results.write_whole(options.markdown, markdown(found))
    written = plots.draw(found, Path(options.plot)) if options.plot else []
    files = [name for name in (None if options.show else options.json, options.markdown, *map(str, written)) if name]
    if files:
        console.print_line(f"Written: {', '.join(files)}.")


def show_lines(found: Results) -> None:
    """The lines that a run shows while it measures."""
    for line in report.heading(found):
        console.print_line(line)
    for rows in found.cases().values():
        for line in report.case_lines(rows, found.baseline):
            console.print_line(line)


def require_outputs(options: argparse.Namespace) -> None:
    """Fail at once if an output cannot be written or drawn."""
    for option, suffixes in (("json", ()), ("markdown", ()), ("plot", PICTURES)):
        path = getattr(options, option)
        if path is not None:
            console.require_writable("bench", f"--{option}", path, suffixes)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("attnarray bench: --plot needs matplotlib: pip install 'attnarray[bench]'")


def _plan(options: argparse.Namespace) -> Plan:
    backend = selection.select_backend(options.backend)
    varied = selection.select_case(options.crossover) if options.crossover is not None else None
    cases = [varied] if varied else selection.select_cases(options.only, options.group, options.full)
    peers, absent = selection.select_peers(options.peers, backend)
    baseline = selection.select_baseline(options.baseline, peers)
    selection.require_rounds(options.rounds)
    require_outputs(options)
    count = selection.select_threads(options.threads)
    return Plan(cases, varied, peers, absent, baseline, backend, count, options.full)


def _measure(plan: Plan, options: argparse.Namespace, found: Results) -> None:
    """Add the rows of one case after the other, each saved and shown at once."""
    clock = clock_for(plan.backend)
    ceilings = machine.measure_ceilings(plan.backend, plan.threads, clock)
    found.ceilings.update(ceilings._asdict())
    setting = Setting(
        plan.baseline,
        plan.backend,
        plan.threads,
        SECONDS[plan.full],
        options.rounds,
        clock=clock,
        ceilings=ceilings,
        settle=SETTLE,
    )
    with console.progress("measuring", plan.steps, still=True) as bar:
        setting = dataclasses.replace(setting, between=bar.tick)
        for line in report.heading(found):
            bar.say(line)
        for rows in _batches(plan, setting, bar.advance):
            found.rows.extend(rows)
            _save(found, options)
            for line in report.case_lines(rows, plan.baseline):
                bar.say(line)
    if sys.stderr.isatty() and not sys.stdout.isatty():  # the lines went to the terminal, not to the file
        show_lines(found)
    found.ceilings["gemm at the end"] = machine.gemm_again(plan.backend, plan.threads, clock)
    if warning := machine.drifted(found.ceilings):
        print(warning, file=sys.stderr)


def _batches(plan: Plan, setting: Setting, advance: Advance) -> Iterator[list[Row]]:
    if plan.varied:
        yield from crossover.measure_sizes(plan.varied, plan.peers, setting, plan.full, advance)
        return
    for case in plan.cases:
        advance(case.name)
        yield measure(case, plan.peers, setting)


def _save(found: Results, options: argparse.Namespace) -> None:
    if options.json and found.rows:
        results.save(found, options.json)


def _left_out(absent: dict[str, str]) -> str:
    return f"Left out: {'; '.join(f'{name} ({reason})' for name, reason in absent.items())}." if absent else ""


def _command(options: argparse.Namespace) -> str:
    """The command without the files that it writes, so that it can be repeated elsewhere."""
    words = ["attnarray bench", "--full" if options.full else "--quick"]
    for name in ("only", "group", "peers"):
        words += [f"--{name} {' '.join(values)}" for values in [getattr(options, name)] if values]
    for name in ("baseline", "threads", "rounds", "crossover"):
        words += [f"--{name} {value}" for value in [getattr(options, name)] if value is not None]
    return " ".join([*words, *(["--backend cupy"] if options.backend == "cupy" else [])])

"""The arguments of `attnarray bench`. Nothing slow is imported until the command runs."""

from __future__ import annotations

import argparse
from typing import Any

from attnarray.console import HelpFormatter

DESCRIPTION = """\
Compare the speed of attention and its primitives with other libraries: medians with intervals over rounds in shuffled
order, memory, and each time as a fraction of the limit of this machine. Outputs and gradients of every library are
compared with float64 first; wrong ones are shown and not timed. The first run compiles the kernels, which takes one
or two minutes more. Exit code 1 if a result of ours is wrong."""

EPILOG = """\
examples:
  attnarray bench
  attnarray bench --full --json today.json --plot today.png
  attnarray bench --group special --peers attnarray torch --rounds 25
  attnarray bench --compare before.json after.json
  attnarray bench --crossover causal-512-d64 --plot crossover.svg
  attnarray bench --show today.json --markdown today.md"""


def add_to(commands: Any) -> None:
    """Add the command to the parsers of `attnarray`."""
    parser = commands.add_parser(
        "bench",
        help="compare the speed of attention with other libraries",
        formatter_class=HelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    sets = parser.add_mutually_exclusive_group()
    sets.add_argument(
        "--quick",
        dest="full",
        action="store_false",
        help="a few cases: a minute once kernels are compiled (default)",
    )
    sets.add_argument("--full", action="store_true", help="all cases, with more rounds")
    _add_choices(parser)
    _add_files(parser)
    parser.set_defaults(run=run, full=False)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    many = {"action": "extend", "nargs": "+", "default": []}
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name contains TEXT", **many)  # type: ignore[arg-type]
    parser.add_argument("--group", metavar="GROUP", help="only cases of these groups", **many)  # type: ignore[arg-type]
    parser.add_argument(
        "--peers",
        metavar="PEER",
        help="only these libraries (default: all that can be used)",
        **many,  # type: ignore[arg-type]
    )
    parser.add_argument(
        "--baseline",
        metavar="PEER",
        help="the library that ratios refer to (default: torch if there, else reference)",
    )
    parser.add_argument(
        "--backend", metavar="NAME", default="numpy", help="array library to measure: numpy (default) or cupy"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every library (default: all usable CPUs)")
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of each library (default: as time allows)")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write all samples, ceilings and versions as JSON")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw bars into FILE (.png or .svg), and the roofline into FILE-roofline"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--crossover", metavar="CASE", help="vary the size of one case: which library is fastest where"
    )
    instead.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two JSON files; nothing is measured")
    instead.add_argument("--show", metavar="FILE", help="show a JSON file again; nothing is measured")
    instead.add_argument("--list", action="store_true", help="list cases and peers; nothing is measured")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if options.list:
        from attnarray.bench import listing

        listing.show()
        return 0
    from attnarray.bench import report, results, session

    if options.compare:
        first, second = (results.load(path) for path in options.compare)
        report.show_comparison(first, second, tuple(options.compare))
        return 0
    if options.show is not None:
        session.require_outputs(options)
        found = results.load(options.show)
        session.show_lines(found)
        session.present(found, options)
        return 0
    return session.run(options)

"""The arguments of `attnarray bench`. Nothing is imported here that takes time before it is asked for."""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = """\
Time attention and the primitives around it beside other libraries: warm-up apart, rounds in shuffled order, medians
with intervals, memory, and each figure as a fraction of what this machine can do. Every peer's outputs and gradients
are compared with float64 first; what is wrong is shown and not timed. Exit code 1 if our own result is wrong."""

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
        help="time attention beside other libraries",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    sets = parser.add_mutually_exclusive_group()
    sets.add_argument("--quick", dest="full", action="store_false", help="a few cases, in less than a minute (default)")
    sets.add_argument("--full", action="store_true", help="all cases, and more rounds")
    _add_choices(parser)
    _add_files(parser)
    parser.set_defaults(run=run, full=False)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    many = {"action": "extend", "nargs": "+", "default": []}
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT", **many)  # type: ignore[arg-type]
    parser.add_argument("--group", metavar="GROUP", help="cases of these groups", **many)  # type: ignore[arg-type]
    parser.add_argument(
        "--peers",
        metavar="PEER",
        help="only these peers (default: all that can be used)",
        **many,  # type: ignore[arg-type]
    )
    parser.add_argument(
        "--baseline", metavar="PEER", help="what ratios refer to (default: torch if there, else reference)"
    )
    parser.add_argument(
        "--backend", metavar="NAME", default="numpy", help="arrays of numpy (default) or cupy, and their clock"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="for all peers alike (default: the CPUs that may be used)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of each peer (default: what time allows)")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write all samples, ceilings and the environment")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw FILE.png or FILE.svg, and the roofline beside it as FILE-roofline"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write tables for docs")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--crossover", metavar="CASE", help="vary the size of one case: which peer wins where")
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
    if options.show:
        session.require_outputs(options)
        found = results.load(options.show)
        session.show_lines(found)
        session.present(found, options)
        return 0
    return session.run(options)

"""The command `attnarray`: info, check, demo, bench."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

import attnarray
from attnarray import console
from attnarray.backend import creation_namespace, supported_backend_names
from attnarray.console import FAINT, GOOD, Cell, UsageError


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}. See {self.prog} --help.")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 fine, 1 a check failed, 2 a wrong argument)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character gets "?", not a traceback
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("attnarray: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads, as in `attnarray info | head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _parser() -> Parser:
    from attnarray.bench import command as bench

    parser = Parser(
        prog="attnarray",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Attention on plain arrays, with forward and backward passes derived by hand.",
        epilog="examples:\n  attnarray info\n  attnarray check --only attention\n  attnarray demo --backend cupy",
    )
    parser.add_argument("--version", action="version", version=f"attnarray {attnarray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_check(commands)
    _add_demo(commands)
    bench.add_to(commands)
    return parser


def _add_info(commands: Commands) -> None:
    info = commands.add_parser(
        "info",
        help="what is there: backends, kernels, versions, threads, caches",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="List backends and kernels, each with the reason if it cannot be used, versions, threads, caches.",
        epilog="examples:\n  attnarray info\n  attnarray info --json",
    )
    info.add_argument("--json", action="store_true", help="print JSON instead of tables")
    info.set_defaults(run=_info)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="check every gradient and every kernel",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Compare the gradient of each input of each public function with central differences in float64, with\n"
            "array code and with kernels, and kernels' results with the reference. Exit code 1 if one is wrong.\n\n"
            "The error of a gradient is its largest difference from the central differences, relative to its largest\n"
            "entry; the differences themselves are good to about 1e-12. Anything above 1e-8 is wrong."
        ),
        epilog=(
            "examples:\n  attnarray check\n  attnarray check --backend array_api_strict --only softmax\n"
            "  attnarray check --json"
        ),
    )
    check.add_argument(
        "--backend", metavar="NAME", help="array library (default: numpy, and cupy where there is a GPU)"
    )
    check.add_argument(
        "--kernels", choices=("all", "reference", "auto"), default="all", help="array code, kernels or both (default)"
    )
    check.add_argument(
        "--only", metavar="TEXT", action="append", default=[], help="functions whose name contains TEXT; repeatable"
    )
    check.add_argument("--json", action="store_true", help="print every single result as JSON")
    check.set_defaults(run=_check)


def _add_demo(commands: Commands) -> None:
    from attnarray.demo import ATTENTIONS

    demo = commands.add_parser(
        "demo",
        help="train a date translator with hand-derived gradients, and draw what it attends to",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Learn to translate dates written in many languages (Unicode CLDR) to ISO 8601: '4 juillet 1987' to\n"
            "'1987-07-04', by the library's hand-written backward passes. Prints the accuracy on dates never seen in\n"
            "training and saves a picture of the alignments. With multi-head attention ten learned queries attend\n"
            "over the characters; most other mechanisms stand between a recurrent encoder and decoder."
        ),
        epilog=(
            "examples:\n  attnarray demo\n  attnarray demo --backend cupy --picture alignments.png\n"
            "  attnarray demo --attention additive\n  attnarray demo --all"
        ),
    )
    which = demo.add_mutually_exclusive_group()
    which.add_argument(
        "--attention",
        metavar="NAME",
        choices=ATTENTIONS,
        help=f"the mechanism: {', '.join(ATTENTIONS)} (default: {ATTENTIONS[0]})",
    )
    which.add_argument(
        "--all", action="store_true", help="every mechanism in turn: a table, and one picture of all alignments"
    )
    demo.add_argument("--backend", metavar="NAME", default="numpy", help="array library to train on (default: numpy)")
    demo.add_argument(
        "--kernels",
        choices=("auto", "reference", "numba", "cuda"),
        default="auto",
        help="which kernels may run (default: auto)",
    )
    demo.add_argument(
        "--epochs", type=_positive, metavar="N", help="passes over the training dates (default: the recipe's)"
    )
    demo.add_argument("--dates", type=_positive, metavar="N", help="training dates (default: the recipe's)")
    demo.add_argument("--seed", type=_seed, default=0, help="seed of data, parameters and order (default: 0)")
    demo.add_argument(
        "--picture", metavar="FILE", help="where the PNG goes (default: alignments.png, with --all mechanisms.png)"
    )
    demo.set_defaults(run=_demo)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)


def _known_backend(name: str) -> str:
    try:
        creation_namespace(name)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"attnarray: {error}") from error
    return name


def _info(options: argparse.Namespace) -> int:
    from attnarray import info

    facts = info.collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    backends = [
        [
            b["name"],
            Cell("ready", GOOD) if b["available"] else Cell("no", FAINT),
            b["version"],
            b["device"] or b["reason"],
        ]
        for b in facts["backends"]
    ]
    console.print_table("Backends (array libraries)", ["name", "", "version", "device, or why not"], backends)
    kernels = [
        [k["function"], k["backend"], Cell("ready", GOOD) if not k["reason"] else Cell("no", FAINT), k["reason"]]
        for k in facts["kernels"]
    ]
    console.print_table("Kernels", ["reference", "kernels", "", "why not"], kernels)
    tiles = [[str(value) for value in row.values()] for row in facts["tensor core tiles"]]
    columns = ["kernel", "calls", "bytes", "dim up to", "rows of a block by rows of a tile"]
    console.print_table("Attention on tensor cores", columns, tiles)
    console.print_table("Here", ["", ""], [[key, str(value)] for key, value in facts["here"].items()])
    return 0


def _check(options: argparse.Namespace) -> int:
    from attnarray import check, check_report

    names = ("numpy", "cupy")
    backends = [_known_backend(options.backend)] if options.backend else supported_backend_names(names)
    try:
        cases = check.select(options.only)
    except ValueError as error:
        raise UsageError(f"attnarray check: {error}") from error
    with console.progress("checking", len(cases) * len(backends)) as bar:
        results = check.run(cases, backends, options.kernels, bar.advance)
    if options.json:
        gradients = [result._asdict() for result in results.gradients]
        kernels = [result._asdict() for result in results.kernels]
        print(json.dumps({"ok": not results.wrong, "gradients": gradients, "kernels": kernels}))
    else:
        check_report.show(results, backends)
    return 1 if results.wrong else 0


def _demo(options: argparse.Namespace) -> int:
    from attnarray.demo import run
    from attnarray.demo.lesson import DemoError

    _known_backend(options.backend)
    try:
        return run.main(options)
    except DemoError as error:
        raise UsageError(f"attnarray demo: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

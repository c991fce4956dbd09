"""The arguments of `attnarray learn`. Nothing else is imported until the command runs."""

from __future__ import annotations

import argparse
from typing import Any

from attnarray.console import HelpFormatter, UsageError

DESCRIPTION = """\
Exercises that grade themselves: derive and write the backward of attention in NumPy, from softmax to a whole GPT block.
A wrong gradient is named with its entry, and with the mistake that it looks like.

commands:
  attnarray learn                       the exercises, your progress, and what to do next
  attnarray learn start [NAME]          write the file of an exercise (default: the next one)
  attnarray learn check [NAME|FILE ...] grade it (default: the current one)
  attnarray learn watch                 grade each file again when it is saved
  attnarray learn hint [NAME]           one hint more, of three
  attnarray learn solution [NAME]       the solution, after asking
  attnarray learn NAME                  the text of an exercise; with --solution its solution

Files and progress are in the folder attnarray-learn, which `start` makes where you are."""

EPILOG = """\
examples:
  attnarray learn start softmax_bwd
  attnarray learn check
  attnarray learn check homework.py --exercise attention_bwd --json

Exit codes: 0 all graded exercises passed, 1 one did not, 2 a wrong argument."""

COMMANDS = ("list", "start", "check", "watch", "hint", "solution")
# Options, and the commands that take them; "NAME" is the name of an exercise.
OPTIONS = {
    "json": ("list", "check"),
    "all": ("check",),
    "exercise": ("check",),
    "seed": ("check",),
    "time_limit": ("check", "watch"),
    "reset": ("start",),
    "solution": ("NAME",),
    "yes": ("solution", "NAME"),
}


def add_to(commands: Any) -> None:
    """Add the command to the parsers of `attnarray`."""
    parser = commands.add_parser(
        "learn",
        help="exercises that grade themselves: write the backward of attention",
        formatter_class=HelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="attnarray learn [COMMAND or NAME] [NAME or FILE ...] [options]",
    )
    parser.add_argument("command", nargs="?", default="list", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="check, list: print JSON, for an autograder")
    parser.add_argument("--all", action="store_true", help="check: every exercise file in the folder")
    parser.add_argument("--exercise", metavar="NAME", help="check: the exercise of a file with another name")
    parser.add_argument("--seed", type=_whole, metavar="N", help="check: other random inputs (default: 0)")
    parser.add_argument(
        "--time-limit", type=_seconds, metavar="SECONDS", help="check, watch: for each file (default: 30)"
    )
    parser.add_argument(
        "--reset", action="store_true", help="start: write the file again; the old one is kept as NAME.py.1"
    )
    parser.add_argument("--solution", action="store_true", help="NAME: show the solution, after asking")
    parser.add_argument("--yes", action="store_true", help="solution: do not ask")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    from attnarray.learn import actions

    kind = options.command if options.command in COMMANDS else "NAME"
    for option, kinds in OPTIONS.items():
        given = getattr(options, option) not in (None, False)
        if given and kind not in kinds:
            takes = " and ".join(f"`attnarray learn {kind}`" for kind in kinds)
            raise UsageError(f"attnarray learn: --{option.replace('_', '-')} is an option of {takes}.")
    return actions.run(kind, options)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 10^18")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds

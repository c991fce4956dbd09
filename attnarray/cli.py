"""The command `attnarray`: info, warmup, check, demo, learn, bench."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO, TypeAlias

import attnarray
from attnarray import console
from attnarray.backend import creation_namespace, supported_backend_names
from attnarray.blas import one_thread_unless_asked
from attnarray.console import UsageError
from attnarray.dispatch import thread_count


class Parser(argparse.ArgumentParser):
    """Prints errors of arguments in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}. See {self.prog} --help.")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0: all is well. 1: a check failed, or something could not be written. 2: a wrong argument. 130: interrupted. 141:
    the output pipe was closed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - up to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Pipes are line-buffered; characters that a terminal lacks are replaced by similar ones.
            stream.reconfigure(errors=console.ASCII, line_buffering=True)
    try:
        try:
            options = _parser().parse_args(arguments)
            if options.run is not _info:  # the full traceback
                _check_thread_count()
            code: int = options.run(options)
        finally:
            sys.stdout.flush()  # also after --help, which raises SystemExit
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("attnarray: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, as in `attnarray info | head`, has closed the pipe
        for stream in (sys.stdout, sys.stderr):
            _give_up_if_broken(stream)
        return 141
    except OSError as error:  # such as a full disk
        _give_up_if_broken(sys.stdout)
        print(f"attnarray: {error}", file=sys.stderr)
        return 1
    return code


def _give_up_if_broken(stream: TextIO) -> None:
    """Discard buffered output, or Python would report an error at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> Parser:
    from attnarray.bench import command as bench
    from attnarray.learn import command as learn

    parser = Parser(
        prog="attnarray",
        formatter_class=console.HelpFormatter,
        description="Attention on plain arrays, with forward and backward passes derived by hand.",
        epilog=(
            "examples:\n  attnarray info\n  attnarray check --only attention\n  attnarray demo --backend cupy\n"
            "  attnarray learn\n\n"
            "Without precompiled kernels, the first check, demo or bench compiles them and takes longer.\n"
            "Exit codes: 0 all is well, 1 a check failed, 2 a wrong argument, 130 interrupted by Ctrl-C."
        ),
    )
    parser.add_argument("--version", action="version", version=f"attnarray {attnarray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_warmup(commands)
    _add_check(commands)
    _add_demo(commands)
    learn.add_to(commands)
    bench.add_to(commands)
    return parser


def _add_info(commands: Commands) -> None:
    info = commands.add_parser(
        "info",
        help="show the machine, array libraries, kernels, versions and caches",
        formatter_class=console.HelpFormatter,
        description=(
            "Show the processor, versions, threads and caches, then array libraries and kernels, with the reason\n"
            "if one cannot be used."
        ),
        epilog="examples:\n  attnarray info\n  attnarray info --json",
    )
    info.add_argument("--json", action="store_true", help="print JSON instead of tables")
    info.set_defaults(run=_info)


def _add_warmup(commands: Commands) -> None:
    warmup = commands.add_parser(
        "warmup",
        help="compile all kernels ahead, so that no later call waits for them",
        formatter_class=console.HelpFormatter,
        description=(
            "Compile every kernel that this machine can use, or load it from the cache, so that no later call waits.\n"
            "With precompiled kernels there is nothing to compile."
        ),
        epilog="examples:\n  attnarray warmup\n  attnarray warmup --dtype float32",
    )
    warmup.add_argument(
        "--dtype", choices=("float32", "float64"), action="append", help="the dtype to be ready for (default: both)"
    )
    warmup.set_defaults(run=_warmup)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="compare every gradient with finite differences, every kernel with array code",
        formatter_class=console.HelpFormatter,
        description=(
            "Compare the gradient of each input of each public function with central differences in float64, with\n"
            "array code and with kernels, and the results of kernels with array code. Exit code 1 if one is wrong.\n"
            "Without precompiled kernels, the first run compiles them and takes longer.\n\n"
            "The error of a gradient is its largest difference from the central differences, relative to its largest\n"
            "entry; the differences themselves are good to about 1e-12. Anything above 1e-8 is wrong."
        ),
        epilog=(
            "examples:\n  attnarray check\n  attnarray check --backend array_api_strict --only softmax\n"
            "  attnarray check --cases my_scorer.py\n  attnarray check --json"
        ),
    )
    check.add_argument(
        "--backend", metavar="NAME", help="array library (default: numpy, and cupy where there is a GPU)"
    )
    check.add_argument(
        "--kernels",
        choices=("all", "reference", "auto"),
        default="all",
        help="array code (reference), kernels (auto), or both (all, the default)",
    )
    check.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        default=[],
        help="only functions whose name contains TEXT; may be repeated",
    )
    check.add_argument(
        "--cases", metavar="FILE", help="check the cases of your own Python file, such as a scorer, instead of ours"
    )
    check.add_argument("--json", action="store_true", help="print every result as JSON instead of tables")
    check.set_defaults(run=_check)


def _add_demo(commands: Commands) -> None:
    from attnarray.demo import ATTENTIONS

    demo = commands.add_parser(
        "demo",
        help="train attention to translate dates, and draw its weights",
        formatter_class=console.HelpFormatter,
        description=(
            "Learn to translate dates written in many languages (Unicode CLDR) to ISO 8601: '4 juillet 1987' to\n"
            "'1987-07-04', by the library's hand-written backward passes. Prints the accuracy on dates never seen in\n"
            "training and saves a picture of the attention weights. With multi-head attention ten learned queries\n"
            "attend to the characters; most other mechanisms connect a recurrent encoder and decoder."
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
        help=f"the attention mechanism: {', '.join(ATTENTIONS)} (default: {ATTENTIONS[0]})",
    )
    which.add_argument(
        "--all", action="store_true", help="train every mechanism; print a table, plot the alignments of all"
    )
    demo.add_argument("--backend", metavar="NAME", default="numpy", help="array library (default: numpy)")
    demo.add_argument(
        "--kernels",
        choices=("auto", "reference", "compiled", "numba", "cuda"),
        default="auto",
        help="auto: the fastest available (default); reference: array code",
    )
    demo.add_argument("--epochs", type=_positive, metavar="N", help="passes over the training dates (default: 3)")
    demo.add_argument("--dates", type=_positive, metavar="N", help="number of training dates (default: by mechanism)")
    demo.add_argument("--seed", type=_seed, default=0, help="seed of dates, parameters and batches (default: 0)")
    demo.add_argument(
        "--picture", metavar="FILE", help="PNG file to write (default: alignments.png; with --all mechanisms.png)"
    )
    demo.set_defaults(run=_demo)


def _check_thread_count() -> None:
    try:
        thread_count()
    except ValueError as error:
        raise UsageError(f"attnarray: {error}") from error


def _positive(text: str) -> int:
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not _is_whole(text) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)


def _is_whole(text: str) -> bool:
    """Whether a text is a number of ASCII digits, few enough for `int`."""
    return text.isascii() and text.isdigit() and len(text) <= 4000


def _known_backend(name: str) -> str:
    try:
        creation_namespace(name)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"attnarray: {error}") from error
    return name


def _info(options: argparse.Namespace) -> int:
    from attnarray import info, info_report

    facts = info.collect()
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        info_report.show(facts)
    return 0


def _warmup(options: argparse.Namespace) -> int:
    from attnarray.dispatch import kernel_modules

    modules = kernel_modules()
    with console.progress("compiling kernels", len(modules)) as bar:
        seconds = attnarray.warmup(tuple(options.dtype or ("float32", "float64")), bar.advance)
    console.print_line(f"{len(seconds)} modules of kernels are ready, after {sum(seconds.values()):.1f} s.")
    return 0


def _check(options: argparse.Namespace) -> int:
    from attnarray import check, check_report

    names = ("numpy", "cupy")
    backends = [_known_backend(options.backend)] if options.backend is not None else supported_backend_names(names)
    try:
        cases = check.select(options.only, options.cases)
    except ValueError as error:
        raise UsageError(f"attnarray check: {error}") from error
    with one_thread_unless_asked(), console.progress("checking", len(cases) * len(backends)) as bar:
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
        with one_thread_unless_asked():
            return run.main(options)
    except DemoError as error:
        raise UsageError(f"attnarray demo: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

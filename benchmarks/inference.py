"""Prepared models against transformers and ONNX Runtime: an encoder of MiniLM's shape, one token of GPT-2 small.

    python -m benchmarks.inference [--quick] [--only encoder whisper] [--rounds N] [--threads N] [--output NAME]

All sides have the same weights and are checked against each other before anything is timed. They take turns of some
calls, after others that are not timed for 0.15 s: until then threads of the side before spin; a ratio is the median
over the rounds of the peer's time over ours, with its 95 % interval. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from attnarray.bench.threads import environment
from benchmarks.models import RATIO, RESULTS, SHOWN, _table

KINDS = ("encoder", "decoding", "smollm2", "whisper")


def prepared_cases(kinds: list[str], quick: bool, threads: int) -> list[Any]:
    """The cases, checked."""
    from benchmarks.inference_cases import decoding_case, encoder_cases, gpt2, smollm2
    from benchmarks.inference_whisper import whisper_case

    return [
        *(encoder_cases(quick, threads) if "encoder" in kinds else []),
        *([decoding_case(quick, "GPT-2 small", gpt2(quick))] if "decoding" in kinds else []),
        *([decoding_case(quick, "SmolLM2-135M", smollm2(quick))] if "smollm2" in kinds else []),
        *([whisper_case(quick)] if "whisper" in kinds else []),
    ]


def measure(cases: list[Any], rounds: int) -> dict[str, Any]:
    """Seconds of each call by case and side, and the ratio of each side to ours."""
    from attnarray.bench.clock import HostClock
    from attnarray.bench.statistics import paired_ratio, spread

    clock, found = HostClock(), {}
    for case in cases:
        samples: dict[str, list[float]] = {name: [] for name in case.sides}
        seconds = {name: clock.sample(run, 1) for name, run in case.sides.items()}
        for n in range(rounds):
            for name, run in list(case.sides.items())[:: 1 if n % 2 else -1]:
                clock.sample(run, calls(UNTIMED, seconds[name]))  # its weights come into the cache, too
                samples[name].append(clock.sample(run, calls(TURN, seconds[name])))
        ours = next(iter(samples))
        found[case.name] = {
            "samples": samples,
            "seconds": {name: spread(times).median for name, times in samples.items()},
            "ratios": {name: paired_ratio(times, samples[ours])._asdict() for name, times in samples.items()},
        }
    return found


def calls(turn: float, seconds: float) -> int:
    """How many calls of so many seconds fill a turn, at least one."""
    return max(1, int(turn / seconds))


def rows(cases: dict[str, Any]) -> list[list[str]]:
    """The rows of the table: a side each, with its time, and its time over ours."""
    lines = []
    for name, found in cases.items():
        for side, seconds in found["seconds"].items():
            ratio = found["ratios"][side]
            between = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append([name, side, f"{seconds * 1e3:,.2f}", f"{ratio['value']:.2f}{between}"])
    return lines


def markdown(result: dict[str, Any]) -> str:
    """The machine and the table."""
    from attnarray.bench.machine import busy

    lines = [f"- {label}: {result[name]}" for name, label in SHOWN.items() if result.get(name)]
    lines += ["", f"**{doubt}**"] if (doubt := busy(result)) else []
    lines += ["", RATIO.replace("PyTorch's time", "the time of the side"), ""]
    return "\n".join([*lines, *_table(COLUMNS, rows(result["cases"]))]) + "\n"


TURN, UNTIMED = 0.04, 0.15  # seconds of calls in a turn, and of those before it
COLUMNS = ["", "side", "ms", "its time over ours"]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(description="Prepared models against transformers and ONNX Runtime.")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help="encoder, decoding, smollm2, whisper",
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each side runs")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of each side; all CPUs by default")
    parser.add_argument("--output", metavar="NAME", help="write NAME.json and NAME.md into benchmarks/results")
    options = parser.parse_args(arguments)

    from attnarray.bench.machine import describe
    from attnarray.console import print_table
    from attnarray.dispatch import cpu_count

    threads = options.threads or cpu_count()
    wanted = environment(threads)
    if arguments is None and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)  # which libraries read when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    import torch

    torch.set_num_threads(threads)
    cases = prepared_cases(options.only, options.quick, threads)
    about = describe("numpy", threads, f"python -m benchmarks.inference --rounds {options.rounds}")
    result = {**about, "versions of peers": versions(), "cases": measure(cases, options.rounds)}
    print_table(f"Prepared models on {threads} threads", COLUMNS, rows(result["cases"]), right=[2, 3])
    if options.output:
        write(options.output, result)
    return result


def versions() -> dict[str, str]:
    """Of the peers."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("transformers", "onnxruntime", "torch")}


def write(name: str, result: dict[str, Any]) -> None:
    """The run as NAME.json, with every sample, and as NAME.md."""
    import json

    from attnarray.bench.results import write_whole

    write_whole(f"{RESULTS / name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_whole(f"{RESULTS / name}.md", markdown(result))


if __name__ == "__main__":
    main()

"""Whole models against PyTorch eager: a training step of a GPT, and prefill and generation with GPT-2's size.

    python -m benchmarks.models [--quick] [--rounds N] [--threads N] [--output NAME]

Both sides have the same weights, do the same work in float32 and are checked against each other before anything is
timed. They are interleaved; a ratio is the median over the rounds of PyTorch's time over ours, with its 95 % interval.
`model_memory.py` says how memory is measured. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from attnarray.bench.threads import environment
from attnarray.console import Progress
from benchmarks import model_memory

RESULTS = Path(__file__).parent / "results"
SPEED = ["", "attnarray, tokens/s", "PyTorch eager, tokens/s", "ratio"]
RATIO = "A ratio is PyTorch's time over ours, above 1 is faster, with its 95 % interval."
STAR = " *: too few rounds for an interval."
MEMORY = ["training step", "between steps, MB", "at the peak, MB"]
SHOWN = {"cpu": "CPU", "threads": "threads", "python": "Python", "numpy": "NumPy", "blas": "BLAS", "numba": "Numba",
         "torch": "PyTorch", "attnarray": "attnarray", "date": "date", "command": "command"}  # fmt: skip


def measured(case: Any, rounds: int, bar: Progress) -> dict[str, Any]:
    """Seconds per call of both, in turns, and their ratio."""
    from attnarray.bench.clock import HostClock
    from attnarray.bench.statistics import paired_ratio, spread

    clock, sides = HostClock(), {"attnarray": case.ours, "PyTorch eager": case.torch}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for name, run in sides.items():
        bar.note(f"{case.name}, first call of {name}")
        run()
    for n in range(rounds):
        for name, run in list(sides.items())[:: 1 if n % 2 else -1]:
            bar.note(f"{case.name}, round {n + 1} of {rounds}")
            samples[name].append(clock.sample(run, 1))
    ratio = paired_ratio(samples["PyTorch eager"], samples["attnarray"])
    rates = {name: case.tokens / spread(times).median for name, times in samples.items()}
    return {"samples": samples, "tokens": case.tokens, "tokens per second": rates, "ratio": ratio._asdict()}


def measure(quick: bool, rounds: int, threads: int) -> dict[str, Any]:
    """All cases, by name, and the memory of each side."""
    from attnarray.console import progress
    from benchmarks.model_cases import generation, training_step

    cases, memory = {}, {}
    with progress("Measuring", 3, still=True) as bar:
        for make in (lambda quick: [training_step(quick)], generation):
            for case in make(quick):
                cases[case.name] = measured(case, rounds, bar)
                bar.advance(case.name)
    with progress("Measuring memory", len(model_memory.SIDES)) as bar:
        for side in model_memory.SIDES:
            bar.note(side)
            memory[side] = model_memory.measured(side, quick, threads)
            bar.advance(side)
    return {"cases": cases, "training memory": memory}


def speed_rows(result: dict[str, Any]) -> list[list[str]]:
    """The rows of the table of speeds."""
    rows = []
    for name, found in result["cases"].items():
        ratio = found["ratio"]
        between = "*" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
        rates = [f"{rate:,.1f}" for rate in found["tokens per second"].values()]
        rows.append([name, *rates, f"{ratio['value']:.2f}{between}"])
    return rows


def memory_rows(result: dict[str, Any]) -> list[list[str]]:
    """The rows of the table of memory."""
    rows = []
    for side, found in result["training memory"].items():
        figures = ["not meas."] * 2 if found is None else [f"{found[name] / 1e6:,.1f}" for name in ("held", "peak")]
        rows.append([side, *figures])
    return rows


def lacks_interval(result: dict[str, Any]) -> bool:
    """Whether a ratio was taken in too few rounds for an interval."""
    return any(case["ratio"]["low"] is None for case in result["cases"].values())


def markdown(result: dict[str, Any]) -> str:
    """The machine, and both tables."""
    from attnarray.bench.machine import busy

    lines = [f"- {label}: {result[name]}" for name, label in SHOWN.items() if result.get(name)]
    lines += ["", f"**{doubt}**"] if (doubt := busy(result)) else []
    star = STAR.replace("*", "\\*") if lacks_interval(result) else ""
    lines += ["", RATIO + star, ""]
    lines += _table(SPEED, speed_rows(result))
    lines += ["", "Memory above that of the loaded library, each in a separate process, by resident pages.", ""]
    return "\n".join([*lines, *_table(MEMORY, memory_rows(result))]) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, write the files."""
    parser = argparse.ArgumentParser(description="Whole models against PyTorch eager.")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each side runs")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of each side; all CPUs by default")
    parser.add_argument("--output", metavar="NAME", help="write NAME.json and NAME.md into benchmarks/results")
    options = parser.parse_args(arguments)

    from attnarray.bench.machine import busy, describe
    from attnarray.console import print_line, print_table
    from attnarray.dispatch import cpu_count

    threads = options.threads or cpu_count()
    wanted = environment(threads)
    if arguments is None and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)  # which libraries read when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    import torch

    torch.set_num_threads(threads)
    about = describe("numpy", threads, "python -m benchmarks.models")  # with the load before the start
    found = measure(options.quick, options.rounds, threads)
    result = {**about, **found}
    if doubt := busy(result):
        print_line(doubt)
    print_table(f"Models in float32 on {threads} threads", SPEED, speed_rows(result), right=[1, 2, 3],
                caption=STAR.strip() if lacks_interval(result) else "")  # fmt: skip
    print_table("Memory beyond that of the loaded library", MEMORY, memory_rows(result), right=[1, 2])
    if options.output:
        write(RESULTS / options.output, result)
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """The run as `path`.json, with every sample, and as `path`.md."""
    from attnarray.bench.results import write_whole

    write_whole(f"{path}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_whole(f"{path}.md", markdown(result))


if __name__ == "__main__":
    main()

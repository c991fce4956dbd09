"""Train the demo's models with several numbers of threads, on an idle machine and while other processes compute.

Threads of NumPy's products spin while they wait. This measures what they gain on an idle machine, and what they cost
on a busy one; `attnarray.blas` is chosen by it. Each measurement is a separate process,
all kinds in turn, several rounds; the figures are medians.

    python -m benchmarks.busy --output NAME-busy      # writes results/NAME-busy.json and .md; about ten minutes
    python -m benchmarks.busy --quick                 # a test that it runs
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
ATTENTIONS = ("multi-head", "additive")
WARM = 5  # steps
VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS", "ATTNARRAY_NUM_THREADS")
SPIN = "while True: pass"


class Kind(NamedTuple):
    """What is measured: a model, the number of other processes that compute, and threads (None: all CPUs)."""

    attention: str
    busy: int
    blas: int | None
    kernels: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of training, timed together")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="numbers of other processes that compute")
    parser.add_argument("--output", metavar="NAME", help="name of the files in benchmarks/results, without extension")
    parser.add_argument("--quick", action="store_true", help="one round of few steps")
    parser.add_argument("--measure", nargs=2, metavar=("ATTENTION", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(seconds_of_steps(options.measure[0], int(options.measure[1])))
        return
    rounds, steps = (1, 5) if options.quick else (options.rounds, options.steps)
    threads = ((None, None), (1, None), (1, 1))
    kinds = [Kind(*kind, *pair) for kind in itertools.product(ATTENTIONS, options.busy) for pair in threads]
    samples: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for n in range(rounds):
        for kind in kinds:
            samples[kind].append(measure(kind, steps))
            print(f"round {n + 1}/{rounds}  {kind}  {samples[kind][-1]:.1f} ms a step", flush=True)
    lines = table(samples)
    print("\n".join(lines))
    if options.output:
        write(options.output, samples, lines)


def measure(kind: Kind, steps: int) -> float:
    """Milliseconds of a step, in a new process."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if kind.blas is not None:
        environment |= {name: str(kind.blas) for name in VARIABLES[:3]}
    if kind.kernels is not None:
        environment["ATTNARRAY_NUM_THREADS"] = str(kind.kernels)
    command = [sys.executable, "-m", "benchmarks.busy", "--measure", kind.attention, str(steps)]
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(kind.busy)]
    try:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        for process in others:
            process.kill()
            process.wait()
    return 1e3 * float(done.stdout) / steps


def seconds_of_steps(attention: str, steps: int) -> float:
    """Of training the demo's model, after some steps that are not timed."""
    from attnarray.demo import dates, training
    from attnarray.demo.lesson import prepare
    from attnarray.demo.mechanisms import MECHANISMS

    lesson = prepare(*dates.make_pairs(training.BATCH * (WARM + steps), 10, 0))
    model = MECHANISMS[attention].model
    times: list[float] = []
    for _ in training.train(
        model, lesson.learned, lesson.fresh(model, 0), 1, 0, lambda *_: times.append(time.perf_counter())
    ):
        pass
    return times[WARM + steps - 1] - times[WARM - 1]


def table(samples: dict[Kind, list[float]]) -> list[str]:
    """Markdown: medians and quartiles."""
    lines = [
        "| attention | busy processes | threads of NumPy's products | threads of kernels | ms a step | quartiles |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for kind, times in samples.items():
        low, high = np.quantile(times, [0.25, 0.75])
        threads = [str(count or "default") for count in (kind.blas, kind.kernels)]
        numbers = f"{statistics.median(times):.1f} | {low:.1f} to {high:.1f} |"
        lines.append(f"| {kind.attention} | {kind.busy} | {' | '.join(threads)} | {numbers}")
    return lines


def write(name: str, samples: dict[Kind, list[float]], lines: list[str]) -> None:
    from attnarray import info

    found = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "here": {name: value for name, value in info.collect()["here"].items() if name != "kernel cache"},
        "milliseconds": [{**kind._asdict(), "samples": times} for kind, times in samples.items()],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(["# Training with other busy processes", "", *lines]) + "\n", "utf-8")


if __name__ == "__main__":
    main()

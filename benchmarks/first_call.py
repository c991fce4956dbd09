"""How long a new process takes until attention and its gradients are there, and how much is installed for it.

    python -m benchmarks.first_call [--runs N] [--output NAME] NAME=PYTHON ...

Each PYTHON is the interpreter of an environment with attnarray installed, each NAME says which: for example one with a
wheel that has precompiled kernels, and one with Numba. Every run is a process of its own with empty caches, the
environments in turn. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnarray.console import print_line, print_table, progress

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CODE = """
import json, sys, time
start = time.perf_counter()
import numpy as np
numpy = time.perf_counter()
import attnarray as aa
ours = time.perf_counter()
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, 128, 64), dtype=np.float32)
before = time.perf_counter()
out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v)
forward = time.perf_counter()
grads = aa.scaled_dot_product_attention_bwd(out, ctx)
backward = time.perf_counter()
seconds = {"import numpy": numpy - start, "import attnarray": ours - numpy, "forward": forward - before,
           "backward": backward - forward}
choices = aa.explain(aa.scaled_dot_product_attention, q, k, v).choices
print(json.dumps({"seconds": seconds, "kernels": choices[0].kernel, "version": aa.__version__}))
"""
SIZES = """
import importlib.metadata, json
sizes = {}
for package in importlib.metadata.distributions():
    paths = [file.locate() for file in package.files or ()]
    sizes[package.metadata["Name"]] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(sizes))
"""


def run(python: str, code: str) -> Any:
    """What code prints as JSON in a new process, in an empty folder and with empty caches."""
    with tempfile.TemporaryDirectory() as folder:
        known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-c", code], cwd=folder, env={**known, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{python} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measured(environments: dict[str, str], runs: int, advance: Any, run: Any = run) -> dict[str, Any]:
    """For each environment the median of each step, and of all, in seconds; which kernels ran; bytes by package."""
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in environments}
    for _ in range(runs + 1):  # the first run brings files into memory
        for name, python in environments.items():
            advance(name)
            samples[name].append(run(python, CODE))
    found = {}
    for name, some in samples.items():
        seconds = [{**each["seconds"], "all": sum(each["seconds"].values())} for each in some[1:]]
        medians = {step: statistics.median(each[step] for each in seconds) for step in seconds[0]}
        sizes = run(environments[name], SIZES)
        found[name] = {"seconds": medians, "samples": seconds, "kernels": some[0]["kernels"], "bytes": sizes}
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_call", description=__doc__.partition("\n")[0])
    parser.add_argument("environments", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="processes of each environment (default: 10)")
    parser.add_argument("--output", metavar="NAME", help="write NAME.json into benchmarks/results")
    options = parser.parse_args(arguments)
    environments = dict(each.partition("=")[::2] for each in options.environments)
    if not all(environments.values()):
        parser.error("expected NAME=PYTHON, a name and the interpreter of an environment")

    from attnarray.bench import machine
    from attnarray.bench.results import write_whole
    from attnarray.dispatch import cpu_count

    about = machine.describe("numpy", cpu_count(), "python -m benchmarks.first_call")
    with progress("running", (options.runs + 1) * len(environments)) as bar:
        found = measured(environments, options.runs, bar.advance)
    if doubt := machine.busy(about):
        print_line(doubt)
    steps = list(next(iter(found.values()))["seconds"])
    rows = [
        [name, each["kernels"], *(f"{1000 * each['seconds'][step]:.0f} ms" for step in steps),
         f"{sum(each['bytes'].values()) / 1e6:.0f} MB"]
        for name, each in found.items()
    ]  # fmt: skip
    columns = ["environment", "kernels", *steps, "installed"]
    print_table("A new process, with empty caches", columns, rows, right=range(2, len(columns)))
    result = {**about, "environments": found}
    if options.output:
        write_whole(RESULTS / f"{options.output}.json", json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()

"""All checks and measurements of the CUDA kernels that need a GPU, in one command of less than ten minutes.

    python -m benchmarks.gpu_check [--only STAGE ...] [--output FILE] [--list]

Each stage runs in its own process, so that one that hangs or crashes does not affect the others. The results are
written after each stage. Exit code 0: all stages passed; 1: one failed; 2: there is no GPU, or none that is supported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attnarray.console import progress

ROOT = Path(__file__).parents[1]


class Stage(NamedTuple):
    """A function of a module here; `seconds` is the longest that it may take."""

    module: str
    seconds: int
    about: str


STAGES = {
    "device": Stage("gpu_check_machine", 10, "the GPU, its driver, and the versions of all packages"),
    "compilation": Stage("gpu_check_correctness", 45, "every source, on all processors, for the next stages"),
    "ceilings": Stage("gpu_check_machine", 15, "rates of copies and matrix products"),
    "calibration": Stage("gpu_check_correctness", 10, "each primitive against the emulation, bit by bit"),
    "kernels": Stage("gpu_check_correctness", 30, "every kernel against its reference in float64; the same bits again"),
    "attention": Stage("gpu_check_attention", 50, "attention on tensor cores against the reference in float64"),
    "suite": Stage("gpu_check_suite", 140, "the tests that need a GPU"),
    "examples": Stage("gpu_check_suite", 60, "the programs of docs/examples, their quick form"),
    "check": Stage("gpu_check_correctness", 55, "`attnarray check` on CuPy"),
    "sanitizer": Stage("gpu_check_correctness", 50, "every kernel under compute-sanitizer, if installed"),
    "rows": Stage("gpu_check_speed", 25, "kernels along rows, as a share of the bandwidth of a copy"),
    "additive": Stage("gpu_check_additive", 15, "additive scores, forward and backward, compared with array code"),
    "sixteen_bit": Stage("gpu_check_products", 20, "batched products of 16-bit matrices, compared with PyTorch"),
    "attention_speed": Stage("gpu_check_attention", 60, "attention on tensor cores, compared with PyTorch's kernels"),
    "overhead": Stage("gpu_check_speed", 15, "what a call costs the host"),
}
PASSED, FAILED, NO_GPU, NOT_RUN, TIMED_OUT = "passed", "failed", "no GPU", "not run", "timed out"
EXIT_CODES = {PASSED: 0, NOT_RUN: 0, NO_GPU: 2}


class NoGpuError(Exception):
    """There is no supported GPU; the message says why."""


class NotRunError(Exception):
    """A stage needs something that is not installed; the message says what."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages, print their results, and return the exit code."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{name:<12} {stage.about}" for name, stage in STAGES.items()))
        return 0
    chosen = [name for name in STAGES if not options.only or name in options.only]
    results: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stages": {}}
    with progress("stages", len(chosen)) as bar:
        for name in chosen:
            bar.note(f"{name} (at most {STAGES[name].seconds} s)")
            found = run_stage(name)
            results["stages"][name] = found
            bar.say(f"{name:<12} {found['status']:<10} {found['seconds']:6.1f} s  {found.get('reason', '')}".rstrip())
            bar.advance(name)
            results["exit_code"] = exit_code([stage["status"] for stage in results["stages"].values()])
            if options.output:
                write(Path(options.output), results)
    return int(results.get("exit_code", 0))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--output", help="a JSON file, written after each stage")
    parser.add_argument("--list", action="store_true", help="list the stages")
    return parser.parse_args(arguments)


def exit_code(statuses: Sequence[str]) -> int:
    """1 if a stage failed, else 2 if there was no GPU, else 0."""
    codes = {EXIT_CODES.get(status, 1) for status in statuses}
    return 1 if 1 in codes else max(codes, default=0)


def run_stage(name: str) -> dict[str, Any]:
    """Run one stage in a new process."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check_stage", STAGES[name].module, name, str(target)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=STAGES[name].seconds)
        except subprocess.TimeoutExpired:
            found = {"status": TIMED_OUT, "reason": f"took more than {STAGES[name].seconds} seconds"}
        else:
            found = json.loads(target.read_text()) if target.exists() else _crashed(done)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _crashed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {"status": FAILED, "reason": f"the process ended with code {done.returncode}: {done.stderr[-800:]}"}


def write(path: Path, results: Any) -> None:
    """Write a file atomically."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())

"""Time of the commands without compiled kernels, and again with those that the first run compiled.

    python -m benchmarks.cold [--output NAME] [COMMAND ...]

Each command runs twice, in new processes, with the caches of compiled kernels in a folder that is empty before
the first run. COMMAND is what follows `attnarray`, quoted if it has options: "bench --quick"; by default info,
check, demo and bench. Nothing else should run meanwhile. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnarray.console import print_line, print_table, progress

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = ("info", "check", "demo", "bench")
CACHES = ("NUMBA_CACHE_DIR", "ATTNARRAY_CUDA_CACHE")
RUNS = ("cold", "warm")


def run(command: str, folder: Path) -> None:
    """Run one command of attnarray, with its caches and outputs in a folder."""
    caches = {name: str(folder / name.lower()) for name in CACHES}
    environment = {**os.environ, **caches, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "attnarray", *command.split()], cwd=folder, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"attnarray {command} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


def measured(
    commands: Sequence[str],
    heard: Callable[[str], None],
    run: Callable[[str, Path], None] = run,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Seconds of each command, cold and warm."""
    seconds: dict[str, dict[str, float]] = {}
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            for name in RUNS:
                heard(f"attnarray {command}, {name}")
                start = now()
                run(command, Path(folder))
                seconds.setdefault(command, {})[name] = now() - start
    return seconds


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold", description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"default: {', '.join(COMMANDS)}")
    parser.add_argument("--output", metavar="NAME", help="write NAME.json into benchmarks/results")
    options = parser.parse_args(arguments)

    from attnarray.bench import machine
    from attnarray.bench.results import write_whole
    from attnarray.dispatch import cpu_count

    commands = options.commands or COMMANDS
    about = machine.describe("numpy", cpu_count(), "python -m benchmarks.cold")
    with progress("running", len(RUNS) * len(commands)) as bar:
        seconds = measured(commands, bar.advance)
    result = {**about, "seconds": seconds}
    if doubt := machine.busy(about):
        print_line(doubt)
    rows = [[f"attnarray {name}", *(f"{found[run]:.1f} s" for run in RUNS)] for name, found in seconds.items()]
    print_table("With nothing compiled before, and again", ["command", *RUNS], rows, right=[1, 2])
    if options.output:
        write_whole(RESULTS / f"{options.output}.json", json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()

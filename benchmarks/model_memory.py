"""Memory for training a GPT, each library in a separate process.

Resident pages by Linux, with one allocator heap for all threads. A tiny model is trained first, so that the code of the
library is loaded and compiled; the resident memory then, after free memory was returned to the system, is the base.
Then the model is made and trained for two steps. `held` is the resident memory above the base between two steps:
parameters, moments, and with PyTorch also gradients, which it keeps until the next step. `peak` is the maximum above
the base during the third step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnarray.bench import memory
from attnarray.bench.threads import environment

ROOT = Path(__file__).parents[1]
SIDES = ("attnarray", "attnarray, recompute", "PyTorch eager")


def measured(side: str, quick: bool, threads: int) -> dict[str, int] | None:
    """`held` and `peak` in bytes, of a new process; None if the system does not report it."""
    command = [sys.executable, "-m", "benchmarks.model_memory", side, "--threads", str(threads)]
    found = subprocess.run(
        [*command, *(["--quick"] if quick else [])], cwd=ROOT, env={**os.environ, **environment(threads)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        sys.exit(f"Measuring the memory of {side} failed:\n{found.stderr}")
    return json.loads(found.stdout)


def footprint(side: str, quick: bool) -> dict[str, int] | None:
    """The same, of this process."""
    if not memory.CLEAR.exists():
        return None
    tiny = step_of(side, quick=True)
    tiny()
    del tiny
    base = resident()
    step = step_of(side, quick)
    for _ in range(2):
        step()
    held = resident()
    extra = memory.peak_extra_bytes(step, "numpy")
    return None if extra is None else {"held": held - base, "peak": held - base + extra}


def step_of(side: str, quick: bool) -> Callable[[], None]:
    from benchmarks.model_cases import our_training, torch_training

    return torch_training(quick).step if side == "PyTorch eager" else our_training(quick, "recompute" in side).step


def resident() -> int:
    """Resident bytes of this process, without free memory of the allocator."""
    gc.collect()
    memory.return_free_memory()
    return memory.kilobytes("VmRSS") * 1024


def main(arguments: list[str] | None = None) -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description="How much memory training a GPT takes.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch; others read the environment")
    options = parser.parse_args(arguments)
    if options.side == "PyTorch eager":
        import torch

        torch.set_num_threads(options.threads)
    found: Any = footprint(options.side, options.quick)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

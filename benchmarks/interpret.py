"""Statistics of attention against the forward whose weights they are of: time and memory.

    python -m benchmarks.interpret --output NAME-interpret   # writes results/NAME-interpret.json
    python -m benchmarks.interpret --quick                   # a test that it runs

Both sides run in turn, causal, in float32; a ratio is the median of those of the rounds. Memory is that of arrays above
the context, at its peak. `PREDICTED` was written before the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray import interpret
from attnarray.bench.machine import describe
from attnarray.dispatch import thread_count

RESULTS = Path(__file__).parent / "results"
DIM = 64
PREDICTED = {"time over that of the forward": 1.1, "MB at 100,000 tokens": 120.0}


def measured(tokens: int, heads: int, rounds: int) -> dict[str, float]:
    """Seconds of both sides, their ratio, and the bytes of the statistics."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, heads, tokens, DIM), np.float32)

    def forward() -> Any:
        return aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)[1]

    ctx = forward()
    times: dict[str, list[float]] = {"forward": [], "statistics": []}
    for _ in range(rounds):
        for name, run in (("forward", forward), ("statistics", lambda: interpret.attention_statistics(ctx))):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    tracemalloc.start()
    interpret.attention_statistics(ctx)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ratios = [b / a for a, b in zip(times["forward"], times["statistics"], strict=True)]
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {"tokens": tokens, "heads": heads, **medians, "ratio": statistics.median(ratios), "bytes": peak}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2048x8", "16384x8", "100000x1"], help="tokens x heads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="", help="NAME of a file in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    sizes = ["64x2"] if options.quick else options.sizes
    rows = []
    for size in sizes:
        tokens, heads = map(int, size.split("x"))
        rows.append(measured(tokens, heads, options.rounds if tokens < 50_000 else 1))
        row = rows[-1]
        print(
            f"{size}: forward {row['forward']:.3f} s, statistics {row['statistics']:.3f} s, ratio {row['ratio']:.2f}, "
            f"{row['bytes'] / 1e6:.0f} MB",
            flush=True,
        )
    command = " ".join(["python -m benchmarks.interpret --sizes", *sizes, f"--rounds {options.rounds}"])
    result = {"environment": describe("numpy", thread_count(), command), "predicted": PREDICTED, "rows": rows}
    if options.output:
        (RESULTS / f"{options.output}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()

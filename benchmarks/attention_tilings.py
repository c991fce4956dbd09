"""Speed of attention on tensor cores with different tilings, on a GPU.

    python -m benchmarks.attention_tilings [--output FILE]

Each kernel is timed alone, on bfloat16 without masks, for the default tiling and some others. The rate
counts the matrix products of the kernel: two forward, three for the gradient of queries, four for those of
keys and values.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.kernels.cuda import attention, loader, unavailable
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda.attention_plan import Tiling
from benchmarks.gpu_check import EXIT_CODES, NO_GPU, write
from benchmarks.gpu_check_attention import random_array
from benchmarks.gpu_check_machine import AHEAD, device, milliseconds

BATCH, HEADS, LENGTH = 2, 16, 4096
PRODUCTS = {"forward": 2, "queries": 3, "keys": 4}
TRIED = {
    ("forward", 64): (Tiling(4, 1, 64), Tiling(4, 2, 32), Tiling(4, 2, 64), Tiling(4, 2, 96)),
    ("forward", 128): (Tiling(4, 1, 64), Tiling(4, 2, 32), Tiling(4, 2, 48), Tiling(8, 2, 48)),
    ("queries", 64): (Tiling(4, 1, 32), Tiling(4, 1, 64), Tiling(4, 2, 64)),
    ("queries", 128): (Tiling(4, 1, 32), Tiling(4, 1, 64), Tiling(4, 2, 32)),
    ("keys", 64): (Tiling(4, 1, 32), Tiling(4, 1, 64), Tiling(4, 2, 32)),
    ("keys", 128): (Tiling(4, 1, 32), Tiling(4, 1, 64), Tiling(8, 1, 64)),
}


def main() -> int:
    """Time all tilings, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_tilings", description=__doc__)
    parser.add_argument("--output", help="a JSON file")
    options = parser.parse_args()
    if unavailable():
        print(unavailable(), file=sys.stderr)
        return EXIT_CODES[NO_GPU]
    rows = []
    for row in measured():
        rows.append(row)
        speed = f"{row['ms']:7.3f} ms {row['TFLOP/s']:6.0f} TFLOP/s"
        print(f"{row['kernel']:<8} {row['dim']:>4} {row['tiling']!s:<14} {speed}", flush=True)
    if options.output:
        write(Path(options.output), {"device": device(), "rows": rows})
    return 0


def measured() -> Iterator[dict[str, Any]]:
    for (kernel, dim), tilings in TRIED.items():
        q, k, v, dout = (random_array((BATCH, HEADS, LENGTH, dim), "bfloat16") for _ in range(4))
        scoring = ScoreModifiers(dim**-0.5)
        out, lse = attention.attention(q, k, v, scoring)
        arguments = (q, k, v, scoring) if kernel == "forward" else (dout, None, q, k, v, out, lse, scoring)
        call = attention.attention if kernel == "forward" else attention.attention_backward
        chosen, _ = plan.choose_tiling(kernel, dim, dim, 2, loader.shared_bytes(0), LENGTH, True)
        for tiling in tilings:
            with only(kernel, tiling):
                time = milliseconds(lambda call=call, arguments=arguments: call(*arguments), 7, AHEAD)
            operations = 2.0 * PRODUCTS[kernel] * BATCH * HEADS * LENGTH**2 * dim
            row = {"kernel": kernel, "dim": dim, "tiling": tuple(tiling), "ms": time}
            yield {**row, "TFLOP/s": operations / time / 1e9, "used": tiling == chosen}


@contextlib.contextmanager
def only(kernel: str, tiling: Tiling) -> Iterator[None]:
    """Within the block, only this kernel of those with tiles is launched, with this tiling."""
    launch = attention.launch

    def launched(one: loader.Kernel, *rest: Any) -> None:
        if one.name == f"attention_{kernel}":
            launch(one, *rest)

    def planned(kind: str, layout: Any, dtype: str, *_: Any) -> tuple[str, Tiling, int]:
        itemsize = 4 if dtype == "float32" else 2
        return f"attention_{kind}", tiling, plan.shared_bytes(kind, tiling, *layout.dims, itemsize)

    attention._chosen.cache_clear()
    with unittest.mock.patch.multiple(attention, launch=launched, _tiling=planned):
        yield
    attention._chosen.cache_clear()


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of the float32 kernels on long sums, compared with the array code and the same calls in float64.

    python -m benchmarks.accuracy [--sizes 64 1024 4096] [--only sdpa] [--mean 0 1] [--output NAME]

Every case is called at increasing numbers of keys, queries, rows, tokens or edges. For each result the table has the
root mean square and the maximum of the error of the array code (`use_kernels("reference")`), in roundings of the
largest number of the result, and the ratio of the error of the kernels to it. Small sizes are drawn
several times and combined. `--output NAME` writes results/NAME-accuracy.json, and .md with the worst of all
sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray import use_kernels
from benchmarks.accuracy_cases import CASES, Arrays, Case, Numbers, Results

SIZES = (64, 1024, 4096, 16384, 65536)
RESULTS = Path(__file__).parent / "results"
DRAWS, LARGE = 32, 2**17  # draws per case: about LARGE rows, at most DRAWS
EPS = 2.0**-24  # half the distance of 1 to the next float32: the largest error of one rounding
MOST = 2.0  # times the error of the array code
# Roundings of the largest number allowed besides: inputs and outputs of a sum are rounded, too, and the maximum of few
# numbers is random.
ALLOWANCE, ALLOWANCE_LARGEST = 1.0, 8.0


class Row(NamedTuple):
    """The errors of a result in roundings: of the array code, and how many times as large those of the kernels are."""

    case: str
    mean: float
    size: int
    result: str
    rms: float
    rms_ratio: float
    largest: float
    largest_ratio: float

    @property
    def is_right(self) -> bool:
        """Whether the error is at most twice that of the array code, plus some roundings."""
        pairs = (self.rms, self.rms_ratio, ALLOWANCE), (self.largest, self.largest_ratio, ALLOWANCE_LARGEST)
        return all(error * ratio <= MOST * error + allowance for error, ratio, allowance in pairs)


def in_dtype(arrays: Arrays, dtype: Any) -> Arrays:
    """Copies, with floats in `dtype`."""
    return {name: x.astype(dtype) if x.dtype.kind == "f" else x.copy() for name, x in arrays.items()}


def measured(case: Case, size: int, mean: float, draws: int | None = None) -> Iterator[Row]:
    """All results of a case at a size."""
    draws = draws or max(1, min(DRAWS, LARGE // size))
    drawn = [errors(case, size, Numbers(mean, draw)) for draw in range(draws)]
    for name in drawn[0]:
        taken = np.concatenate([some[name] for some in drawn], axis=1)
        rms, largest = (x.tolist() for x in (np.sqrt(np.mean(taken**2, axis=1)), np.max(taken, axis=1)))
        ratios = [found / reference if reference else float(found > 0) for reference, found in (rms, largest)]
        yield Row(case.name, mean, size, name, rms[0], ratios[0], largest[0], ratios[1])


def errors(case: Case, size: int, some: Numbers) -> Results:
    """Of each result, those of the array code and those of the kernels: (2, numbers)."""
    arrays = in_dtype(case.arrays(size, some), np.float32)
    exact = case.call(**in_dtype(arrays, np.float64))
    found = case.call(**in_dtype(arrays, np.float32))
    with use_kernels("reference"):
        reference = case.call(**in_dtype(arrays, np.float32))
    differences = {}
    for name, right in exact.items():
        scale = EPS * max(float(np.max(np.abs(right), initial=0.0)), 1e-30)
        off = [np.abs(np.asarray(results[name], np.float64) - right) / scale for results in (reference, found)]
        differences[name] = np.stack(off).reshape(2, -1)
    return differences


def report(rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = [
        "| case | mean | size | result | rms, array code | kernels | largest, array code | kernels |  |",
        "|---|---:|---:|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        fault = "" if row.is_right else "more than twice"
        lines.append(
            f"| {row.case} | {row.mean:g} | {row.size} | {row.result} | {row.rms:.3g} | {row.rms_ratio:.2f} | "
            f"{row.largest:.3g} | {row.largest_ratio:.2f} | {fault} |"
        )
    return "\n".join(lines) + "\n"


def worst(rows: list[Row]) -> list[Row]:
    """For each case and result the row with the largest error of the kernels relative to the array code."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.case, row.result
        if key not in found or row.rms_ratio > found[key].rms_ratio:
            found[key] = row
    return list(found.values())


def main() -> int:
    """Measure all cases, print the table, and write it if asked; return 1 if a kernel is not accurate enough."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--mean", type=float, nargs="+", default=(0.0, 1.0), help="of values and cotangents")
    parser.add_argument("--only", nargs="+", default=("",), help="cases whose names have one of these in them")
    parser.add_argument("--output", help="write results/NAME-accuracy.json and .md")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        for mean in options.mean if any(part in case.name for part in options.only) else ():
            print(f"{case.name}, mean {mean:g} ...", file=sys.stderr, flush=True)
            for size in options.sizes:
                rows += measured(case, size, mean) if size <= case.most else ()
    print(report(rows))
    if options.output:
        path = RESULTS / f"{options.output}-accuracy.json"
        machine = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__}
        lines = ",\n".join(json.dumps([float(f"{x:.4g}") if isinstance(x, float) else x for x in row]) for row in rows)
        head = json.dumps({**machine, "fields": Row._fields})[:-1]
        path.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')
        path.with_suffix(".md").write_text(f"# Accuracy of the float32 kernels\n\n{report(worst(rows))}")
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of attention on 16-bit arrays, and that of PyTorch, against float64 of the same 16-bit numbers.

    python -m benchmarks.sixteen_bits [--output NAME]

For the output and each gradient the table has the root mean square of the error relative to that of the result, in
roundings of the dtype: 1 is the largest error of rounding one number once. `--output NAME` writes
results/NAME-sixteen-bits.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa

RESULTS = Path(__file__).parent / "results"
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
NAMES = ("out", "query", "key", "value")


class Case(NamedTuple):
    """H heads, T queries, S keys, D features; queries are `spread` times as large as keys."""

    name: str
    H: int
    T: int
    S: int
    D: int
    spread: float = 1.0
    is_causal: bool = False


CASES = (
    Case("8 heads, 1024 x 1024, D 128", 8, 1024, 1024, 128),
    Case("8 heads, 1024 x 1024, D 64, causal", 8, 1024, 1024, 64, 1.0, True),
    Case("8 heads, 512 x 512, D 64, weights on few keys", 8, 512, 512, 64, 6.0),
    Case("4 heads, 64 x 8192, D 64", 4, 64, 8192, 64),
    Case("16 heads, 1 x 4096, D 128", 16, 1, 4096, 128),
)


def measured(case: Case, dtype: str, seed: int = 0) -> Iterator[tuple[str, float, float]]:
    """For each result its name, and the errors of ours and of PyTorch's."""
    rng, to = np.random.default_rng(seed), aa.asarray([0.0], dtype).dtype
    shapes = [(1, case.H, case.T, case.D)] + [(1, case.H, case.S, case.D)] * 2 + [(1, case.H, case.T, case.D)]
    query, key, value, dout = (rng.standard_normal(shape) for shape in shapes)
    given = [x.astype(to) for x in (case.spread * query, key, value, dout)]
    exact = ours([x.astype(np.float64) for x in given], case.is_causal, "reference")
    found, others = ours(given, case.is_causal, "auto"), torch_results(given, case.is_causal)
    for name, right, one, other in zip(NAMES, exact, found, others, strict=True):
        size = ROUNDING[dtype] * np.sqrt(np.mean(right**2))
        yield name, *(float(np.sqrt(np.mean((x.astype(np.float64) - right) ** 2)) / size) for x in (one, other))


def ours(given: list[Any], is_causal: bool, kernels: Any) -> list[Any]:
    """The output and the gradients of query, key and value."""
    with aa.use_kernels(kernels):
        out, ctx = aa.scaled_dot_product_attention_fwd(*given[:3], is_causal=is_causal)
        grads = aa.scaled_dot_product_attention_bwd(given[3], ctx)
    return [out, grads.query, grads.key, grads.value]


def torch_results(given: list[Any], is_causal: bool) -> list[Any]:
    """The same of PyTorch."""
    torch: Any = importlib.import_module("torch")
    kind = getattr(torch, given[0].dtype.name)
    query, key, value, dout = (torch.from_numpy(x.astype(np.float32)).to(kind) for x in given)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=is_causal)
    results = [out, *torch.autograd.grad(out, inputs, dout)]
    return [x.detach().float().numpy() for x in results]


def report() -> Iterator[str]:
    """A table in Markdown, line by line."""
    yield "| case | dtype | result | attnarray | PyTorch |"
    yield "|---|---|---|---:|---:|"
    for case in CASES:
        for dtype in ROUNDING:
            for name, one, other in measured(case, dtype):
                result = name if name == "out" else f"gradient of {name}"
                yield f"| {case.name} | {dtype} | {result} | {one:.3f} | {other:.3f} |"


def main() -> int:
    """Measure all cases, print the table, and write it if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sixteen_bits", description=__doc__)
    parser.add_argument("--output", help="write results/NAME-sixteen-bits.md")
    options = parser.parse_args()
    torch: Any = importlib.import_module("torch")
    lines = []
    for line in report():
        print(line, flush=True)
        lines.append(line)
    if options.output:
        title = "# Accuracy of attention on 16-bit arrays"
        about = (
            "The root mean square of the error relative to that of the result, in roundings of the dtype; PyTorch "
            f"{torch.__version__}. By `python -m benchmarks.sixteen_bits --output {options.output}`."
        )
        path = RESULTS / f"{options.output}-sixteen-bits.md"
        path.write_text("\n".join([title, "", about, "", *lines]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A short `attnarray check` of the functions to be measured: no figures are reported for wrong gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attnarray import check
from attnarray.cases import CASES

SAMPLED = 8  # entries of each input; `attnarray check` has many more, but takes longer
DTYPES = ("float32", "float64")


def first_wrong(functions: Iterable[str], backend: str, note: Callable[[str], None] = lambda _: None) -> str:
    """Return what is wrong with a gradient or kernel of these functions, or ""; `note` is called with each case."""
    names = set(functions)
    for case in CASES:
        if case.function not in names:
            continue
        note(f"checking {case.name}")
        reached = check.kernels_reached(case, backend)
        for kernels in ("reference", "auto") if reached else ("reference",):
            for gradient in check.check_gradients(case, backend, kernels, SAMPLED):
                if not gradient.ok:
                    by = f"{gradient.kernels} kernels" if gradient.kernels != "reference" else "array code"
                    return f"the gradient of {gradient.input} in {case.name} by {by} is off by {gradient.error:.0e}"
        for kernel in (k for dtype in DTYPES if reached for k in check.check_kernels(case, backend, dtype)):
            if not kernel.ok:
                return f"{kernel.result} of {case.name} by {kernel.kernels} kernels is off by {kernel.error:.0e}"
    return ""

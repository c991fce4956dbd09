"""The problem of a case for all peers, its true result, and the comparison of a peer's result with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import attnarray
from attnarray import tree
from attnarray.backend import asarray, use_backend
from attnarray.bench.cases import BenchCase
from attnarray.bench.peers.ours import named
from attnarray.bench.peers.peer import Problem
from attnarray.checks import FLOATS
from attnarray.dispatch import use_kernels
from attnarray.triples import find_triple

Named = dict[str, np.ndarray]

# Largest difference from the reference, relative to its largest entry. Correct results differ by rounding, which grows
# with the number of keys summed; a wrong formula is off by a hundredth or more.
TOLERANCES = {
    "float64": 1e-10,
    "float32": 1e-4,  # peers sum in their own order and use their own exponentials
    "float16": 2e-2,  # 11 bits, and some peers keep weights or gradients of scores in them
    "bfloat16": 5e-2,  # 8 bits
}


class Reference(NamedTuple):
    """The problem and its true result, from our array code in float64: outputs and gradients by name."""

    problem: Problem
    results: Named

    @property
    def bytes_moved(self) -> int:
        """Every array read once and every result written once, in the case's dtype."""
        problem = self.problem
        cotangent = [leaf for _, leaf in tree.flatten(problem.dout)]
        itemsize = problem.case.numpy_dtype.itemsize
        read = sum(array.nbytes for array in [*(leaf for _, leaf in tree.flatten(problem.arrays)), *cotangent])
        return int(read + itemsize * sum(result.size for result in self.results.values()))


def compute_reference(case: BenchCase, backend: str = "numpy", threads: int = 1, seed: int = 0) -> Reference:
    """Draw the arrays of a case and compute its result in float64."""
    arrays = case.arrays(seed)
    rng = np.random.default_rng(seed + 1)
    triple = find_triple(getattr(attnarray, case.function))
    with use_backend(backend), use_kernels("reference"):
        arguments = {**tree.map(_precise, arrays), **case.options}
        if case.direction == "forward":
            problem = Problem(case, arrays, None, (), backend, threads)
            return Reference(problem, named((triple.f(**arguments), None)))
        out, ctx = triple.fwd(**arguments)
        dout = tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(case.numpy_dtype), out)
        grads = triple.bwd(tree.map(_precise, dout), ctx)
    gradients = named((None, grads))
    problem = Problem(case, arrays, dout, tuple(gradients), backend, threads)
    return Reference(problem, gradients if case.direction == "backward" else named((out, grads)))


class Verdict(NamedTuple):
    """The largest error of any result, and what is wrong; empty if nothing is."""

    error: float
    wrong: str


def judge(found: Named, reference: Named, dtype: str) -> Verdict:
    """Compare the result of a peer with the reference, output by output and gradient by gradient."""
    worst, wrong = 0.0, ""
    for name, exact in reference.items():
        if name not in found:
            return Verdict(np.inf, f"{_called(name)} is missing")
        given = np.asarray(found[name], dtype=np.float64)
        if given.shape != exact.shape:
            return Verdict(np.inf, f"{_called(name)} has shape {given.shape}, expected {exact.shape}")
        error = _error(given, exact)
        if error > max(worst, TOLERANCES[dtype]):
            wrong = f"{_called(name)} is off by {error:.0e} of its largest entry, allowed {TOLERANCES[dtype]:.0e}"
        worst = max(worst, error)
    return Verdict(worst, wrong)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    finite = np.abs(exact[np.isfinite(exact)])
    scale = max(float(np.max(finite, initial=0.0)), float(np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore"):
        distance = np.where(found == exact, 0.0, np.abs(found - exact))
    return float(np.max(np.where(np.isnan(distance), np.inf, distance), initial=0.0)) / scale


def _called(name: str) -> str:
    return "the output" if name == "out" else name if name.startswith("out.") else f"the gradient of {name}"


def _precise(array: Any) -> Any:
    floating = array.dtype.name in FLOATS
    return asarray(array.astype(np.float64) if floating else array)

"""The engine of `attnarray check`: every gradient against central differences, every kernel against the reference."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import attnarray
from attnarray import tree
from attnarray.backend import asarray, dtype_name, to_numpy, use_backend
from attnarray.cases import CASES, Case
from attnarray.checks import FLOATS, is_array, shown
from attnarray.dispatch import KernelMode, explain, use_kernels
from attnarray.gradient_check import gradcheck
from attnarray.triples import find_triple

TOLERANCE = 1e-8  # the error of the differences themselves is about 1e-12 of the largest entry
SAMPLED = 96  # entries checked of each input of a case; the tests check every one
# The error of a kernel may be twice that of the reference, plus a few roundings of the largest entry. The error of the
# reference on one set of numbers is random: it is the maximum over several, each perturbed by a rounding.
ERROR_RATIO, ROUNDINGS, DRAWS = 2.0, 8, 4


class GradientResult(NamedTuple):
    """One input of one case: the largest error relative to the largest entry of the gradient."""

    function: str
    input: str
    case: str
    backend: str
    kernels: str
    entries: int
    error: float
    ok: bool


class KernelResult(NamedTuple):
    """One output or gradient of one case: errors of kernel and reference against float64, by the largest entry."""

    function: str
    result: str
    case: str
    backend: str
    kernels: str
    dtype: str
    error: float
    reference_error: float
    ok: bool


class Results(NamedTuple):
    """The results of one run of `attnarray check`."""

    gradients: list[GradientResult]
    kernels: list[KernelResult]

    @property
    def wrong(self) -> list[GradientResult | KernelResult]:
        return [*(r for r in self.gradients if not r.ok), *(r for r in self.kernels if not r.ok)]

    def only(self, backend: str) -> Results:
        return Results(
            [result for result in self.gradients if result.backend == backend],
            [result for result in self.kernels if result.backend == backend],
        )


def run(cases: Sequence[Case], backends: Sequence[str], kernels: KernelMode, advance: Callable[[str], None]) -> Results:
    """Check all cases on all backends; `kernels` is "all", "reference" or "auto"; `advance` is called for each case."""
    results = Results([], [])
    for backend in backends:
        for case in cases:
            advance(case.name)
            try:
                _check(case, backend, kernels, results)
            except Exception as error:
                error.add_note(f"This is the case {case.name} on {backend}.")
                raise
    return results


def _check(case: Case, backend: str, kernels: KernelMode, results: Results) -> None:
    reached = kernels != "reference" and kernels_reached(case, backend)
    if kernels in ("all", "reference") or not reached:
        results.gradients.extend(check_gradients(case, backend, "reference"))
    if kernels in ("all", "auto") and reached:
        results.gradients.extend(check_gradients(case, backend, "auto"))
        for dtype in ("float32", "float64"):
            results.kernels.extend(check_kernels(case, backend, dtype))


def select(only: Sequence[str] = (), file: str | None = None) -> list[Case]:
    """The cases of the functions whose names contain one of `only` (all by default), or those of a Python file."""
    every = CASES if file is None else cases_in(file)
    cases = [case for case in every if not only or any(part and part in case.function for part in only)]
    if not cases:
        known = ", ".join(dict.fromkeys(case.function for case in every))
        raise ValueError(
            f"No function matches {', '.join(part or repr(part) for part in only)}. Known functions: {known}."
        )
    return cases


def cases_in(file: str) -> tuple[Case, ...]:
    """The cases in the list CASES of a Python file."""
    expected = "expected a Python file that lists attnarray.cases.Case values as CASES"
    try:
        found = runpy.run_path(file).get("CASES")
    except Exception as error:  # whatever the file does
        raise ValueError(f"{file!r} cannot be run ({type(error).__name__}: {error}), {expected}.") from error
    if not isinstance(found, list | tuple) or not found or not all(isinstance(case, Case) for case in found):
        raise ValueError(f"{file!r} has CASES = {shown(found)}, {expected}.")
    unknown = [case.function for case in found if case.function not in attnarray.TRIPLES]
    if unknown:
        raise ValueError(
            f"{file!r} has a case of {shown(unknown[0])}, expected a differentiable function of attnarray, such as "
            "'attend', which takes parts of your own."
        )
    return tuple(found)


def kernels_reached(case: Case, backend: str) -> set[str]:
    """The kernel backends that run for this case by default, e.g. {"numba"}; empty when all is array code."""
    with use_backend(backend):
        arguments = case.arguments()
    choices = explain(find_triple(case.f).fwd, **arguments).choices
    return {choice.kernel for choice in choices} - {"reference"}


def check_gradients(case: Case, backend: str, kernels: KernelMode, max_elements: int = SAMPLED) -> list[GradientResult]:
    """Every input of a case; `kernels` is "reference" or "auto"."""
    with use_backend(backend), use_kernels(kernels):
        report = gradcheck(case.f, tolerance=TOLERANCE, max_elements=max_elements, **case.arguments())
    name = _kernel_name(case, backend, kernels)
    return [
        GradientResult(case.function, entry.name, case.label, backend, name, entry.elements, entry.error, entry.ok)
        for entry in report.inputs
    ]


def check_kernels(case: Case, backend: str, dtype: str) -> list[KernelResult]:
    """Outputs and gradients of a case with kernels and without, both against the reference in float64.

    In float64 the reference rounds too: its rounding error is estimated as that in float32, scaled by the epsilons.
    """
    names = _kernel_name(case, backend, "auto")
    reference = _results(case, backend, "reference", "float64")
    rounded = "float32" if dtype == "float64" else dtype
    references = [_results(case, backend, "reference", rounded, moved=n) for n in range(DRAWS)]
    finer = float(np.finfo(dtype).eps / np.finfo(rounded).eps)
    kernel = _results(case, backend, "auto", dtype)
    rows = []
    for result in dict.fromkeys([*reference, *kernel]):
        exact, found = reference.get(result), kernel.get(result)
        largest = 0.0 if exact is None else float(np.max(np.abs(exact), initial=0.0))
        scale = max(largest, float(np.finfo(np.float32).tiny))
        found = None if found is None or found.dtype != dtype else found  # of another dtype it is wrong anyhow
        error = _largest_distance(found, exact) / scale
        reference_error = max(_largest_distance(other.get(result), exact) for other in references) / scale * finer
        allowed = ERROR_RATIO * reference_error + ROUNDINGS * float(np.finfo(dtype).eps)
        ok = math.isfinite(allowed) and error <= allowed
        rows.append(KernelResult(case.function, result, case.label, backend, names, dtype, error, reference_error, ok))
    return rows


def _kernel_name(case: Case, backend: str, kernels: KernelMode) -> str:
    return "reference" if kernels == "reference" else "+".join(sorted(kernels_reached(case, backend))) or "reference"


def _results(case: Case, backend: str, kernels: KernelMode, dtype: str, moved: int = 0) -> dict[str, np.ndarray]:
    """Outputs and gradients by name, as float64 on the host, for a fixed random cotangent.

    With `moved`, a seed, all floating arguments are perturbed by a rounding, up or down.
    """
    with use_backend(backend):
        arguments = case.arguments(dtype)
        if moved:
            noise = np.random.default_rng(moved)
            arguments = tree.map(lambda leaf: _moved(leaf, noise), arguments)
    triple = find_triple(case.f)
    with use_kernels(kernels):
        out, ctx = triple.fwd(**arguments)
        rng = np.random.default_rng(1)
        with use_backend(backend):
            cotangent = tree.map(lambda leaf: _cotangent(leaf, rng), out)
        grads = triple.bwd(cotangent, ctx)
    named = {**dict(_named("out", out)), **dict(_named("", grads))}
    return {name: to_numpy(leaf) for name, leaf in named.items()}


def _moved(leaf: Any, rng: np.random.Generator) -> Any:
    if not is_array(leaf) or dtype_name(leaf.dtype) not in FLOATS:
        return leaf
    host = to_numpy(leaf).astype(np.float64)
    eps = float(np.finfo(to_numpy(leaf).dtype).eps)
    return asarray(host * (1.0 + eps * rng.choice([-1.0, 1.0], host.shape)), dtype=dtype_name(leaf.dtype))


def _cotangent(leaf: Any, rng: np.random.Generator) -> Any:
    return asarray(
        rng.standard_normal(leaf.shape) * np.isfinite(to_numpy(leaf).astype(float)), dtype=dtype_name(leaf.dtype)
    )


def _named(prefix: str, results: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in tree.flatten(results):
        yield ".".join([*([prefix] if prefix else []), *map(str, path)]), leaf


def _largest_distance(found: np.ndarray | None, exact: np.ndarray | None) -> float:
    """The largest |found - exact|, where equal infinities are 0 apart and a NaN or another infinity is infinitely far.

    Infinite, too, if only one of the two exists, or their shapes differ.
    """
    if found is None or exact is None or found.shape != exact.shape:
        return np.inf
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(found - exact)
    distance = np.where(found == exact, 0.0, np.where(np.isnan(distance), np.inf, distance))
    return float(np.max(distance, initial=0.0))

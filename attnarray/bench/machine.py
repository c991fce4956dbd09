"""The machine: its description, and its highest rates of matrix products, copies and exponentials."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from attnarray import info
from attnarray.backend import asarray, creation_namespace, use_backend
from attnarray.bench.cases import Cost
from attnarray.bench.clock import Clock

GEMM_SIZE = {"numpy": {"float32": 1536, "float64": 1024}, "cupy": {"float32": 8192, "float64": 4096, "float16": 8192}}
COPIED = {"numpy": 2**26, "cupy": 2**30}  # bytes, more than any cache holds
EXP_BLOCK, EXP_REPEATS = 2**14, 64  # elements that fit in a core's cache, so that memory bandwidth does not count
EXP_DTYPES = ("float32", "float64")
ATTEMPTS = 7  # a ceiling is the best of so many
PACKAGES = ("numba", "llvmlite", "torch", "jax", "keras", "onnx", "onnxruntime", "cupy-cuda12x", "cupy-cuda13x")
# A one-minute load above this share of the CPUs means that other processes compute.
BUSY = 0.25
DRIFT = 0.15  # relative change of the matrix product until the end that is reported


class Ceilings(NamedTuple):
    """The best rates of this machine, on the threads of the run: per second, by dtype where it matters."""

    gemm: dict[str, float]  # floating-point operations of a matrix product
    copy: float  # bytes read and written
    exp: dict[str, float]  # exponentials

    def seconds(self, cost: Cost, moved: float, dtype: str) -> float | None:
        """A lower bound of the time of a call: that of its slowest kind of work; None if nothing was measured."""
        if not self.copy:
            return None
        wide = "float64" if dtype == "float64" else "float32"  # CPUs compute 16-bit floats in float32
        gemm, exp = self.gemm.get(dtype, self.gemm[wide]), self.exp.get(dtype, self.exp[wide])
        return max(cost.flops / gemm, moved / self.copy, cost.exps / exp)


def measure_ceilings(backend: str, threads: int, clock: Clock) -> Ceilings:
    """Time a large matrix product, a large copy and many exponentials, by NumPy and by PyTorch if installed."""
    gemm = {dtype: _gemm(backend, dtype, n, threads, clock) for dtype, n in GEMM_SIZE[backend].items()}
    if backend == "numpy":
        with ThreadPoolExecutor(threads) as pool:
            copy = _copy_on_host(pool, threads, clock)
            exp = {dtype: _exp_on_host(pool, threads, dtype, clock) for dtype in EXP_DTYPES}
        return Ceilings(gemm, copy, exp)
    return Ceilings(gemm, _copy_on_device(clock), {dtype: _exp_on_device(dtype, clock) for dtype in EXP_DTYPES})


def _best(run: Callable[[], Any], work: float, clock: Clock) -> float:
    run()
    return work / min(clock.sample(run, 1) for _ in range(ATTEMPTS))


def _gemm(backend: str, dtype: str, n: int, threads: int, clock: Clock) -> float:
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((n, n), dtype=np.float32).astype(dtype) for _ in range(2)]
    with use_backend(backend):
        a, b = (asarray(factor) for factor in factors)
    rates = [_best(lambda: a @ b, 2.0 * n**3, clock)]
    if backend == "numpy" and (torch := _torch(threads)):
        c, d = (torch.from_numpy(factor) for factor in factors)
        rates.append(_best(lambda: c @ d, 2.0 * n**3, clock))
    return max(rates)


def _torch(threads: int) -> Any:
    """PyTorch, if installed: on many CPUs its libraries are faster than NumPy's."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    return torch


def gemm_again(backend: str, threads: int, clock: Clock) -> float:
    """The float32 rate once more, to compare the end of a run with its start."""
    return _gemm(backend, "float32", GEMM_SIZE[backend]["float32"], threads, clock)


def _copy_on_host(pool: ThreadPoolExecutor, threads: int, clock: Clock) -> float:
    source = np.ones(COPIED["numpy"] // 8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))

    def copy() -> None:
        list(pool.map(lambda part: np.copyto(*part), parts))

    return _best(copy, 2.0 * source.nbytes, clock)


def _exp_on_host(pool: ThreadPoolExecutor, threads: int, dtype: str, clock: Clock) -> float:
    x = -np.random.default_rng(0).random((threads, EXP_BLOCK)).astype(dtype)
    out = np.empty_like(x)
    ways: list[tuple[Any, Any, Any]] = [(np.exp, x, out)]
    if torch := _torch(threads):
        ways.append((torch.exp, torch.from_numpy(x), torch.from_numpy(out)))

    def rate(exp: Any, source: Any, target: Any) -> float:
        def work(row: int) -> None:
            for _ in range(EXP_REPEATS):
                exp(source[row], out=target[row])

        return _best(lambda: list(pool.map(work, range(threads))), float(x.size * EXP_REPEATS), clock)

    return max(rate(*way) for way in ways)


def _copy_on_device(clock: Clock) -> float:
    cupy = creation_namespace("cupy")
    source = cupy.ones(COPIED["cupy"] // 4, dtype="float32")
    target = cupy.zeros_like(source)

    def copy() -> None:
        target[...] = source

    return _best(copy, 2.0 * float(source.nbytes), clock)


def _exp_on_device(dtype: str, clock: Clock) -> float:
    cupy = creation_namespace("cupy")
    kernel = cupy.ElementwiseKernel(
        "T x", "T y", f"T s = x; for (int n = 0; n < {EXP_REPEATS}; ++n) s = exp(-s); y = s"
    )
    x = cupy.ones(2**22, dtype=dtype)
    return _best(lambda: kernel(x), float(x.size * EXP_REPEATS), clock)


def describe(backend: str, threads: int, command: str) -> dict[str, Any]:
    """Machine and software of a run; no names of hosts, users or folders."""
    facts = info.collect()
    here = {name: value for name, value in facts["here"].items() if name != "kernel cache"}
    devices = {b["name"]: b["device"] for b in facts["backends"] if b["available"]}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "backend": backend,
        "device": devices[backend] if backend != "numpy" else "",
        "cpu": facts["machine"]["cpu"],
        "cpus": os.cpu_count(),
        "threads": threads,
        "memory": facts["machine"]["memory"],
        "load": _load(),
        **here,
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def busy(environment: dict[str, Any]) -> str:
    """A warning if other processes compute on this machine; empty if not."""
    load = environment.get("load")
    if load is None or load <= BUSY * environment["cpus"]:
        return ""
    return f"The load of this machine was {load:.1f} before the start: others compute here, and figures will be off."


def drifted(ceilings: dict[str, Any]) -> str:
    """A warning if the machine was not as fast at the end as at the start; empty if it was, or is unknown."""
    at_the_end = ceilings.get("gemm at the end")
    change = 0.0 if at_the_end is None else at_the_end / ceilings["gemm"]["float32"] - 1
    if abs(change) <= DRIFT:
        return ""
    how = f"{100 * abs(change):.0f} % {'slower' if change < 0 else 'faster'}"
    return f"The matrix product was {how} at the end than at the start: this machine was not quiet."


def warnings(environment: dict[str, Any], ceilings: dict[str, Any]) -> list[str]:
    """Why the figures of a run may be wrong; shown wherever the figures are."""
    return list(filter(None, [busy(environment), drifted(ceilings)]))


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

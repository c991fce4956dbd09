"""Stages of `gpu_check`: the device, and what it reaches at best. Also the clock of the other stages."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Callable
from typing import Any

import attnarray
from attnarray.kernels.cuda import loader, nvrtc

FLUSHED = 256 * 2**20  # bytes that are written between two runs, more than any level-2 cache holds
RUNS = 20


def device() -> dict[str, Any]:
    """The GPU, its driver, and the versions of all that takes part."""
    runtime = loader.cupy().cuda.runtime
    number = int(runtime.getDevice())
    properties = runtime.getDeviceProperties(number)
    names = {
        "multiprocessors": "multiProcessorCount",
        "memory bytes": "totalGlobalMem",
        "level-2 cache bytes": "l2CacheSize",
        "shared bytes of a block": "sharedMemPerBlockOptin",
        "registers of a multiprocessor": "regsPerMultiprocessor",
    }
    compiler = nvrtc.find()
    return {
        "name": properties["name"].decode(),
        "compute capability": loader.capability_of(number) / 10,
        **{ours: int(properties[theirs]) for ours, theirs in names.items() if theirs in properties},
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "nvrtc": list(compiler.version) if compiler else None,
        "attnarray": attnarray.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("cupy-cuda13x", "cupy-cuda12x", "numpy", "torch")},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def milliseconds(run: Callable[[], Any], runs: int = RUNS) -> float:
    """The median time of a run on the GPU, by its own clock; the level-2 cache is flushed before each."""
    cupy = loader.cupy()
    flush = cupy.empty(FLUSHED // 4, dtype="float32")
    run()
    times = []
    for _ in range(runs):
        flush.fill(0)
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop))
    return statistics.median(times)


def copy_bandwidth(count: int = 2**28) -> float:
    """Bytes read and written per second by a copy of that many float32."""
    cupy = loader.cupy()
    source, target = cupy.ones(count, dtype="float32"), cupy.empty(count, dtype="float32")
    return 8 * count / milliseconds(lambda: cupy.copyto(target, source)) * 1e3


def ceilings() -> dict[str, Any]:
    """What copies and matrix products of random numbers reach."""
    cupy, size = loader.cupy(), 8192
    found: dict[str, Any] = {"copy GB/s": copy_bandwidth() / 1e9}
    for dtype in ("float16", "float32"):
        a, b = (cupy.random.standard_normal((size, size), dtype="float32").astype(dtype) for _ in range(2))
        out = cupy.empty((size, size), dtype=dtype)
        found[f"matmul {dtype} TFLOP/s"] = 2e-9 * size**3 / milliseconds(lambda: cupy.matmul(a, b, out=out))  # noqa: B023
    return found

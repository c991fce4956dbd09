"""Stages of `gpu_check`: the device and its highest rates. Also the clock of the other stages."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attnarray
from attnarray.kernels.cuda import cache, loader, nvrtc

FLUSHED = 256 * 2**20  # bytes that are written between two runs, larger than any L2 cache
RUNS = 20
AHEAD = 8  # flushes that keep the GPU busy while the host prepares a call


def device() -> dict[str, Any]:
    """The GPU, its driver, and the versions of all packages."""
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
        "compute capability": loader.compute_capability(number) / 10,
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


def milliseconds(run: Callable[[], Any], runs: int = RUNS, flushes: int = 1) -> float:
    """The median time of a run on the GPU, by CUDA events; the L2 cache is flushed before each.

    With several flushes, the GPU is still busy when the host has launched the run, and does not wait for it.
    """
    cupy = loader.cupy()
    flush = cupy.empty(FLUSHED // 4, dtype="float32")
    run()
    times = []
    for _ in range(runs):
        for _ in range(flushes):
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


PRODUCTS = """#include "matrix.cuh"
KERNEL(256) products(Global<float> out) {
  Left<Stored> a = {};
  Right<Stored> b = {};
  float sums[16][4] = {};
  put(a, 0, threadIdx.x), put(b, 0, threadIdx.x);
  for (int n = 0; n < 2048; n++)
    UNROLL for (int part = 0; part < 16; part++) multiply(sums[part], a, b);
  float all = 0;
  UNROLL for (int part = 0; part < 16; part++) all += sums[part][0] + sums[part][3];
  if (all == 1.0f) out[0] = all;
}
EXPORT(products)
"""


def products_per_second(dtype: str) -> float:
    """Operations per second of mma.sync on fragments in registers: the limit of our kernels that use it."""
    cupy, device = loader.cupy(), int(loader.cupy().cuda.runtime.getDevice())
    headers = {name: cache.source_text(name) for name in ("matrix.cuh", "primitives.cuh")}
    compiler = nvrtc.find()
    target = nvrtc.target(loader.compute_capability(device), compiler.architectures if compiler else ())
    image = nvrtc.compile_source(PRODUCTS, "products.cu", headers, loader.compiler_options(dtype), target).image
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.cubin"
        path.write_bytes(image)
        kernel = cupy.RawModule(path=str(path)).get_function("products")
        out, blocks = cupy.zeros(1, dtype="float32"), 8 * loader.multiprocessors(device)
        time = milliseconds(lambda: kernel((blocks,), (256,), (out,)), 5)
    step = 8 if dtype == "float32" else 16
    return 2.0 * 16 * 8 * step * 16 * 2048 * 8 * blocks / time * 1e3


def ceilings() -> dict[str, Any]:
    """The rates of copies and of matrix products of random numbers."""
    cupy, size = loader.cupy(), 8192
    found: dict[str, Any] = {"copy GB/s": copy_bandwidth() / 1e9}
    for dtype in ("float16", "float32"):
        a, b = (cupy.random.standard_normal((size, size), dtype="float32").astype(dtype) for _ in range(2))
        out = cupy.empty((size, size), dtype=dtype)
        found[f"matmul {dtype} TFLOP/s"] = 2e-9 * size**3 / milliseconds(lambda: cupy.matmul(a, b, out=out))  # noqa: B023
    for dtype in ("float16", "float32"):
        found[f"mma.sync {dtype} TFLOP/s"] = products_per_second(dtype) / 1e12
    return found

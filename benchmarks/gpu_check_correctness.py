"""Stages of `gpu_check`: what is computed is right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from attnarray.kernels.cuda import cache, loader, nvrtc
from attnarray.kernels.cuda.grid import Grid
from attnarray.kernels.table import KERNELS
from benchmarks.gpu_check import ROOT, NotRunError

SHAPES = [(5, 1), (9, 3), (2, 63), (3, 130), (2, 3, 5), (4, 1000), (3, 5000), (2, 20000)]
TINY = [(3, 7), (2, 300)]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ROUNDINGS = {"float32": 16, "float64": 100}  # sums in another order than the reference's


def calibration() -> dict[str, Any]:
    """Each primitive on the GPU and under emulation, on the same numbers: the same bits."""
    from cuda_emulation import building

    if building.UNAVAILABLE:
        raise NotRunError(building.UNAVAILABLE)
    device = int(loader.cupy().cuda.runtime.getDevice())
    compiler, capability = nvrtc.find(), loader.capability_of(device)
    architecture = nvrtc.target(capability, compiler.architectures if compiler else ())
    wrong, compared = [], 0
    for kind in ("float16", "bfloat16"):
        text, headers = (
            (building.HERE / "calibration.cu").read_text(),
            {"primitives.cuh": cache.source_of("primitives.cuh")},
        )
        image = nvrtc.compile_source(
            text, "calibration.cu", headers, (*loader.OPTIONS, f"-DStored={kind}"), architecture
        )
        name = cache.key(text, headers, (kind,), architecture, compiler and compiler.version)
        module = loader.cupy().RawModule(path=str(cache.entry(name, lambda image=image: image.image)))
        emulated = building.library(building.unit("calibration.cu", [kind]))
        for kernel, grid, values in _calibration_calls(kind, capability):
            expected = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
            building.run(getattr(emulated, f"{kernel}_{kind}"), grid, expected)
            found = _on_the_gpu(module.get_function(kernel), grid, values)
            compared += 1
            if any(a.tobytes() != b.tobytes() for a, b in zip(found, expected, strict=True)):
                wrong.append(f"{kernel} of {kind}")
    return {"compared": compared, "wrong": wrong}


def _calibration_calls(kind: str, capability: int) -> Iterator[tuple[str, Grid, list[Any]]]:
    """Small whole numbers for products, so that no order of sums rounds."""
    rng, warp, two = np.random.default_rng(0), Grid((1, 1, 1), (32, 1, 1), 1024), Grid((1, 1, 1), (64, 1, 1), 1024)

    def short(*shape: int) -> np.ndarray:
        whole = rng.integers(-8, 9, shape).astype(np.float32)
        return whole.astype(np.float16) if kind == "float16" else (whole.view(np.uint32) >> 16).astype(np.uint16)

    def long(*shape: int) -> np.ndarray:
        return rng.integers(-8, 9, shape).astype(np.float32).view(np.uint32)

    yield "multiplied", warp, [short(16, 16), short(16, 8), np.zeros((16, 8), np.float32)]
    yield "multiplied_tf32", warp, [long(16, 8), long(8, 8), np.zeros((16, 8), np.float32)]
    x = (rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 6, 3000)).astype(np.float32)
    yield "converted", warp, [x, np.zeros(3000, np.uint16), np.zeros(3000, np.float32), np.int64(3000)]
    yield "streamed", two, [rng.standard_normal(256).astype(np.float32), np.zeros(256, np.float32)]
    yield "shuffled", warp, [2.0 ** np.arange(32, dtype=np.float32), np.zeros(1024, np.float32)]
    if capability >= 90:
        yield "engine", two, [rng.standard_normal(384).astype(np.float32), np.zeros(384, np.float32)]


def _on_the_gpu(function: Any, grid: Grid, values: list[Any]) -> list[Any]:
    cupy = loader.cupy()
    moved = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in values]
    function(grid.blocks, grid.threads, tuple(moved), shared_mem=grid.shared)
    return [cupy.asnumpy(value) if isinstance(value, cupy.ndarray) else value for value in moved]


def _calls(shapes: list[tuple[int, ...]], most: int) -> Iterator[tuple[str, Any, str]]:
    """Kernels along rows with arguments in float32 and float64."""
    from row_calls import CALLS

    for name in [name for name, row in KERNELS.items() if "cuda" in row and name in CALLS]:
        for shape in shapes:
            drawn = list(CALLS[name](np.random.default_rng(shape), shape))
            for arguments in drawn[:: max(1, len(drawn) // most)]:
                for dtype in ("float32", "float64"):
                    yield name, in_dtype(arguments, dtype), dtype


def in_dtype(arguments: Any, dtype: str) -> Any:
    def is_float(value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.dtype.kind == "f"

    return tuple(value.astype(dtype) if is_float(value) else value for value in arguments)


def _run(name: str, arguments: Any) -> tuple[Any, ...]:
    """A kernel on the GPU; its results on the host."""
    import importlib

    cupy, (module, _, function) = loader.cupy(), KERNELS[name]["cuda"].partition(":")
    kernel = getattr(importlib.import_module(f"attnarray.kernels.cuda.{module}"), function)
    results = kernel(*(cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments))
    results = results if isinstance(results, tuple) else (results,)
    return tuple(None if result is None else cupy.asnumpy(result) for result in results)


def kernels() -> dict[str, Any]:
    """Every kernel along rows against its reference in float64, twice: the same bits again."""
    from row_calls import reference

    wrong, count, largest = [], 0, 0.0
    for name, arguments, dtype in _calls(SHAPES, 4):
        truth, found = reference(name, in_dtype(arguments, "float64")), _run(name, arguments)
        again = _run(name, arguments)
        for result, other, exact in zip(found, again, truth, strict=True):
            if exact is None:
                continue
            finite = np.isfinite(exact)
            scale = max(np.max(np.abs(exact[finite]), initial=1.0), np.max(np.abs(arguments[0]), initial=0.0))
            error = float(np.max(np.abs(result[finite] - exact[finite]), initial=0.0) / (scale * EPS[dtype]))
            largest, count = max(largest, error), count + 1
            same = np.array_equal(np.isfinite(result), finite) and result.tobytes() == other.tobytes()
            if not same or error > ROUNDINGS[dtype]:
                wrong.append(f"{name} {dtype} {exact.shape}: {error:.1f} roundings, same bits again: {same}")
    return {"results": count, "largest error in roundings": largest, "wrong": wrong}


def check() -> dict[str, Any]:
    """`attnarray check` on CuPy: gradients of every public function, and kernels against references."""
    command = [sys.executable, "-m", "attnarray.cli", "check", "--backend", "cupy", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    return {"gradients": len(report["gradients"]), "kernels": len(report["kernels"]), "wrong": not report["ok"]}


def sanitizer() -> dict[str, Any]:
    """Every kernel along rows at tiny sizes under compute-sanitizer: memory, races, uninitialised numbers."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise NotRunError("compute-sanitizer is not installed")
    found: dict[str, Any] = {"wrong": []}
    for check_of in ("memcheck", "racecheck"):
        command = [tool, "--tool", check_of, "--error-exitcode", "9", sys.executable, "-m", __name__]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found[check_of] = done.returncode
        if done.returncode:
            found["wrong"].append(f"{check_of}: {done.stdout[-600:]}{done.stderr[-200:]}")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    for tiny in _calls(TINY, 1):
        _run(*tiny[:2])

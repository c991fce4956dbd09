"""Stages of `gpu_check`: correctness."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda import cache, loader, nvrtc
from attnarray.kernels.cuda.attention_plan import HOPPER
from attnarray.kernels.cuda.grid import Grid
from attnarray.kernels.table import KERNELS
from benchmarks.gpu_check import ROOT, NotRunError

SHAPES = [(5, 1), (9, 3), (2, 63), (3, 130), (2, 3, 5), (4, 1000), (3, 1001), (3, 5000), (2, 20000)]
# Blocks of the norms' gradients sum several rows, and several waves of wide ones; losses have several blocks.
MANY = [("norm", (3000, 640)), ("norm", (230, 10000)), ("loss", (20000, 320))]
TINY = [(3, 7), (2, 300), (2, 1040)]
EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
ROUNDINGS = {
    "float16": 4,
    "float32": 16,
    "float64": 100,
}  # for sums in another order than the reference's; one more to 16 bits
# Indices of arguments that stay in float32 with 16-bit arrays.
KEPT = {
    "ops.norm:_layer_norm_backward": (2, 3),
    "ops.norm:_rms_norm_backward": (2,),
    "ops.loss:_cross_entropy_backward": (0, 3, 4),
}
SHARDS = max(min((os.cpu_count() or 2) // 2, 8), 1)  # processes that share the work of a stage


def compilation() -> dict[str, Any]:
    """Compile every source for every dtype into the cache, in parallel processes."""
    failed = together([[sys.executable, "-m", __name__, "compile", str(n), str(2 * SHARDS)] for n in range(2 * SHARDS)])
    return {"compilations": len(_jobs()), "wrong": [done.stderr[-600:] for done in failed if done.returncode]}


def _jobs() -> list[tuple[str, str]]:
    """Each source in each dtype, except those that need the constants of a call: all that include attention.cuh."""
    sources = [path for path in sorted(cache.SOURCES.glob("*.cu")) if '"attention.cuh"' not in path.read_text()]
    return [(path.name, dtype) for path in sources for dtype in loader.STORED]


def _compile(shard: int, shards: int) -> None:
    """The share of a process. Some sources support some dtypes only, and do not compile for others."""
    device, compiler = int(loader.cupy().cuda.runtime.getDevice()), nvrtc.find()
    architecture = nvrtc.target(loader.compute_capability(device), compiler.architectures if compiler else ())
    for source, dtype in _jobs()[shard::shards]:
        try:
            loader.compiled(source, dtype, architecture)
        except nvrtc.CompileError:
            if dtype == "float32":
                raise


def together(commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time and wait for all."""
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    found = []
    for command, process in zip(commands, running, strict=True):
        out, errors = process.communicate()
        found.append(subprocess.CompletedProcess(command, process.returncode, out, errors))
    return found


def calibration() -> dict[str, Any]:
    """Each primitive on the GPU and in the emulation, on the same numbers: equal bit by bit."""
    from tests.cuda_emulation import building

    if building.UNAVAILABLE:
        raise NotRunError(building.UNAVAILABLE)
    device = int(loader.cupy().cuda.runtime.getDevice())
    compiler, capability = nvrtc.find(), loader.compute_capability(device)
    target = nvrtc.target(capability, compiler.architectures if compiler else ())
    files = {"calibration.cu": (target, _calibration_calls)}
    if capability == HOPPER:
        files["calibration_warpgroup.cu"] = (f"{target}a", _warpgroup_calls)
    headers = {name: cache.source_text(name) for name in ("primitives.cuh", "matrix.cuh", "warpgroup.cuh")}
    wrong, compared = [], 0
    for kind, (file, (architecture, calls)) in product(("float16", "bfloat16"), files.items()):
        text = (building.HERE / file).read_text()
        image = nvrtc.compile_source(text, file, headers, (*loader.OPTIONS, f"-DStored={kind}"), architecture)
        name = cache.key(text, headers, (kind,), architecture, compiler and compiler.version)
        module = loader.cupy().RawModule(path=str(cache.entry(name, lambda image=image: image.image)))
        emulated = building.library(building.unit(file, [kind], ["CALIBRATION=1"]))
        for kernel, grid, values in calls(kind, capability):
            expected = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
            building.run(getattr(emulated, f"{kernel}_{kind}"), grid, expected)
            found = _on_the_gpu(module.get_function(kernel), grid, values)
            compared += 1
            if any(a.tobytes() != b.tobytes() for a, b in zip(found, expected, strict=True)):
                wrong.append(f"{kernel} of {kind}")
    return {"compared": compared, "wrong": wrong}


def _calibration_calls(kind: str, capability: int) -> Iterator[tuple[str, Grid, list[Any]]]:
    """Small integers for products, so that sums are exact in any order."""
    rng, warp, two = np.random.default_rng(0), Grid((1, 1, 1), (32, 1, 1), 1024), Grid((1, 1, 1), (64, 1, 1), 1024)

    def short(*shape: int) -> np.ndarray:
        return _short(rng, kind, shape)

    def long(*shape: int) -> np.ndarray:
        return rng.integers(-8, 9, shape).astype(np.float32).view(np.uint32)

    yield "multiplied", warp, [short(16, 16), short(16, 8), np.zeros((16, 8), np.float32)]
    yield "multiplied_tf32", warp, [long(16, 8), long(8, 8), np.zeros((16, 8), np.float32)]
    x = (rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 6, 3000)).astype(np.float32)
    yield "converted", warp, [x, np.zeros(3000, np.uint16), np.zeros(3000, np.float32), np.int64(3000)]
    yield "streamed", two, [rng.standard_normal(256).astype(np.float32), np.zeros(256, np.float32)]
    x, words = rng.standard_normal(64).astype(np.float32), np.zeros(32, np.uint32)
    stored, whole = np.zeros(64, np.uint16), np.zeros(32, np.int32)
    yield "packed", warp, [x, words, words.copy(), stored, whole, np.zeros(160, np.float32)]
    yield "shuffled", warp, [2.0 ** np.arange(32, dtype=np.float32), np.zeros(1024, np.float32)]
    if capability >= 90:
        yield "engine", two, [rng.standard_normal(384).astype(np.float32), np.zeros(384, np.float32)]


def _short(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    whole = rng.integers(-8, 9, shape).astype(np.float32)
    return whole.astype(np.float16) if kind == "float16" else (whole.view(np.uint32) >> 16).astype(np.uint16)


def _warpgroup_calls(kind: str, _capability: int) -> Iterator[tuple[str, Grid, list[Any]]]:
    rng = np.random.default_rng(0)
    for keys, dim in ((64, 128), (128, 64), (128, 128)):
        arrays = [_short(rng, kind, (rows, dim)) for rows in (64, keys)]
        sums = [np.zeros((64, columns), np.float32) for columns in (keys, dim)]
        yield f"grouped_{keys}_by_{dim}", Grid((1, 1, 1), (128, 1, 1), 2 * dim * (64 + keys)), [*arrays, *sums]


def _on_the_gpu(function: Any, grid: Grid, values: list[Any]) -> list[Any]:
    cupy = loader.cupy()
    moved = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in values]
    function(grid.blocks, grid.threads, tuple(moved), shared_mem=grid.shared)
    return [cupy.asnumpy(value) if isinstance(value, cupy.ndarray) else value for value in moved]


def _calls(
    shapes: Sequence[tuple[int, ...]], most: int, dtypes: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[tuple[str, Any, str]]:
    """Kernels along rows with their arguments in each dtype."""
    from tests.support.row_calls import CALLS

    for name in names or _names():
        for shape in shapes:
            drawn = list(CALLS[name](np.random.default_rng(shape), shape))
            for arguments in drawn[:: max(1, len(drawn) // most)]:
                for dtype in dtypes:
                    if not ("lstm" in name and dtype == "float16"):
                        yield name, in_dtype(arguments, dtype, KEPT.get(name, ())), dtype


def _names() -> list[str]:
    from tests.support.row_calls import CALLS

    return [name for name, row in KERNELS.items() if "cuda" in row and name in CALLS]


def in_dtype(arguments: Any, dtype: str, kept: Sequence[int] = ()) -> Any:
    """The arguments with floating arrays in a dtype, those of the indices `kept` in float32 at least."""

    def moved(index: int, value: Any) -> Any:
        if not (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            return value
        return value.astype("float32" if index in kept and dtype == "float16" else dtype)

    return tuple(moved(index, value) for index, value in enumerate(arguments))


def _run(name: str, arguments: Any) -> tuple[Any, ...]:
    """A kernel on the GPU; its results on the host."""
    import importlib

    cupy, (module, _, function) = loader.cupy(), KERNELS[name]["cuda"].partition(":")
    kernel = getattr(importlib.import_module(f"attnarray.kernels.cuda.{module}"), function)
    results = kernel(*(cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments))
    results = results if isinstance(results, tuple) else (results,)
    return tuple(None if result is None else cupy.asnumpy(result) for result in results)


def kernels() -> dict[str, Any]:
    """Every kernel along rows against its reference in float64, twice: equal bit by bit."""
    from tests.support.row_calls import reference

    wrong, declined, count, largest = [], set(), 0, dict.fromkeys(EPS, 0.0)
    many = (_calls([shape], 1, tuple(EPS), [name for name in _names() if word in name]) for word, shape in MANY)
    for name, arguments, dtype in chain(_calls(SHAPES, 4, tuple(EPS)), *many):
        truth = reference(name, in_dtype(arguments, "float64"))
        try:
            found, again = _run(name, arguments), _run(name, arguments)
        except Declined as reason:
            declined.add(f"{name} {dtype}: {reason}")
            continue
        for result, other, exact in zip(found, again, truth, strict=True):
            if exact is None:
                continue
            with np.errstate(over="ignore"):  # results that overflow their dtype are infinite
                finite = np.isfinite(exact.astype(result.dtype))
            scale = max(np.max(np.abs(exact[finite]), initial=1.0), np.max(np.abs(arguments[0]), initial=0.0))
            error = float(np.max(np.abs(result[finite] - exact[finite]), initial=0.0) / (scale * EPS[dtype]))
            largest[dtype], count = max(largest[dtype], error), count + 1
            same = np.array_equal(np.isfinite(result), finite) and result.tobytes() == other.tobytes()
            if not same or error > ROUNDINGS[dtype]:
                wrong.append(f"{name} {dtype} {exact.shape}: {error:.1f} roundings, same bits again: {same}")
    return {"results": count, "largest error in roundings": largest, "declined": sorted(declined), "wrong": wrong}


def check() -> dict[str, Any]:
    """`attnarray check` on CuPy: gradients of every public function, and kernels against references."""
    from attnarray.check import select

    functions = sorted({case.function for case in select()})
    commands = [
        [sys.executable, "-m", "attnarray.cli", "check", "--backend", "cupy", "--json"]
        + [word for name in functions[n::SHARDS] for word in ("--only", name)]
        for n in range(min(SHARDS, len(functions)))
    ]
    found: dict[str, Any] = {"gradients": 0, "kernels": 0, "wrong": []}
    for done in together(commands):
        try:
            report = json.loads(done.stdout)
        except ValueError:
            found["wrong"].append(f"code {done.returncode}: {done.stderr[-600:]}")
            continue
        found["gradients"] += len(report["gradients"])
        found["kernels"] += len(report["kernels"])
        if not report["ok"]:
            rows = [row for row in (*report["gradients"], *report["kernels"]) if not row["ok"]]
            found["wrong"] += [str(row) for row in rows[:5]]
    return found


def sanitizer() -> dict[str, Any]:
    """Every kernel along rows at tiny sizes under compute-sanitizer: memory, and races."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise NotRunError("compute-sanitizer is not installed")
    tool_runs = [(name, n) for name in ("memcheck", "racecheck") for n in range(SHARDS)]
    commands = [
        [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            __name__,
            "sanitized",
            str(n),
            str(SHARDS),
        ]
        for name, n in tool_runs
    ]
    found: dict[str, Any] = {"processes": len(commands), "wrong": []}
    for (name, n), done in zip(tool_runs, together(commands), strict=True):
        if done.returncode:
            found["wrong"].append(f"{name} {n}: {done.stdout[-600:]}{done.stderr[-200:]}")
    return found


def _sanitized(shard: int, shards: int) -> None:
    """What the sanitizer runs: one call of each kernel of a shard and size, as each takes seconds."""
    for name, arguments, _ in _calls(TINY, 1, ("float32",), _names()[shard::shards]):
        _run(name, arguments)


if __name__ == "__main__":
    {"compile": _compile, "sanitized": _sanitized}[sys.argv[1]](*map(int, sys.argv[2:4]))

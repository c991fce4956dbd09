"""Stages of `gpu_check`: speed. Times are medians by CUDA events, on random numbers, with a flushed cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import attnarray as aa
from attnarray.attention.engine import attention
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.kernels.cuda import loader
from attnarray.ops import dropout, gelu, loss, norm, softmax
from benchmarks.gpu_check_machine import copy_bandwidth, milliseconds

ROWS = [(65536, 1024), (16384, 4096), (8192, 8192), (4096, 32768)]
CALLS, ROUNDS = 400, 7


def rows() -> dict[str, Any]:
    """The bandwidth of each kernel (every array once), as a share of that of a copy."""
    bandwidth, found = copy_bandwidth(), []
    for count, width in ROWS:
        for dtype, size in (("float32", 4), ("float16", 2)):
            for name, (passes, run) in _row_calls(count, width, dtype).items():
                try:
                    time_of = milliseconds(run)
                except MemoryError as error:
                    found.append({"kernel": name, "rows": count, "width": width, "dtype": dtype, "reason": str(error)})
                    continue
                share = passes * count * width * size / time_of * 1e3 / bandwidth
                row = {"kernel": name, "rows": count, "width": width, "dtype": dtype, "ms": time_of, "of a copy": share}
                found.append(row)
    return {"copy GB/s": bandwidth / 1e9, "worst": worst(found), "rows": found}


def worst(rows: list[dict[str, Any]]) -> dict[str, str]:
    """For each kernel and dtype the smallest share of a copy, and its rows."""
    least: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = f"{row['kernel']}, {row['dtype']}"
        if "of a copy" in row and (name not in least or row["of a copy"] < least[name]["of a copy"]):
            least[name] = row
    return {name: f"{row['of a copy']:.2f} at {row['rows']} x {row['width']}" for name, row in sorted(least.items())}


def _row_calls(count: int, width: int, dtype: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Name -> the number of arrays of that size to read and write, and the call."""
    cupy = loader.cupy()
    x, d = (cupy.random.standard_normal((count, width), dtype="float32").astype(dtype) for _ in range(2))
    w = cupy.ones(width, dtype=dtype)
    y = softmax.softmax_forward(x, None, 1)
    _, mean, inverse = norm.layer_norm_forward(x, w, w, 1e-5)
    classes = cupy.random.randint(0, width, count).astype("int64")
    logs, (_, root) = softmax.log_softmax_forward(x, None, 1), norm.rms_norm_forward(x, w, 1e-5)
    losses, largest, total = loss.cross_entropy_forward(x, classes, -100, 0.0)
    return {
        "softmax": (2, lambda: softmax.softmax_forward(x, None, 1)),
        "softmax backward": (3, lambda: softmax.softmax_backward(d, y, 1)),
        "log softmax": (2, lambda: softmax.log_softmax_forward(x, None, 1)),
        "log softmax backward": (3, lambda: softmax.log_softmax_backward(d, logs, 1)),
        "layer norm": (2, lambda: norm.layer_norm_forward(x, w, w, 1e-5)),
        "rms norm": (2, lambda: norm.rms_norm_forward(x, w, 1e-5)),
        "layer norm backward": (3, lambda: norm.layer_norm_backward(d, x, mean, inverse, w, True)),
        "rms norm backward": (3, lambda: norm.rms_norm_backward(d, x, root, w)),
        "gelu": (2, lambda: gelu.gelu_forward(x, "none")),
        "dropout": (2, lambda: dropout.drop(x, 0.1, 7, None)),
        "cross entropy": (1, lambda: loss.cross_entropy_forward(x, classes, -100, 0.0)),
        "cross entropy backward": (
            2, lambda: loss.cross_entropy_backward(losses, x, classes, largest, total, -100, 0.0)
        ),
    }  # fmt: skip


def overhead() -> dict[str, Any]:
    """The host time of a warm call, with almost no work for the GPU."""
    cupy = loader.cupy()
    x = cupy.ones((4, 64), dtype="float32")
    w, found = cupy.ones(64, dtype="float32"), dict[str, list[float]]()
    q, scoring = cupy.ones((1, 4, 64, 64), dtype="float16"), ScoreModifiers(0.125)
    calls = {
        "attention kernel": lambda: attention(q, q, q, scoring),
        "softmax kernel": lambda: softmax.softmax_forward(x, None, 1),
        "layer norm kernel": lambda: norm.layer_norm_forward(x, w, w, 1e-5),
        "attnarray.softmax": lambda: aa.softmax(x),
        "cupy.exp, to compare": lambda: cupy.exp(x),
        "cupy.empty, to compare": lambda: cupy.empty((4, 64), "float32"),
    }
    for _ in range(ROUNDS):  # interleaved, as the host's speed varies
        for name, call in calls.items():
            found.setdefault(name, []).append(_host_microseconds(call))
    return {"microseconds": {name: statistics.median(times) for name, times in found.items()}}


def _host_microseconds(call: Callable[[], Any]) -> float:
    device = loader.cupy().cuda.Device()
    for _ in range(20):
        call()
    device.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    taken = time.perf_counter() - start
    device.synchronize()
    return taken / CALLS * 1e6

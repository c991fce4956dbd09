"""Stages of `gpu_check`: how fast. Times are medians by the GPU's clock, on random numbers, with a flushed cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attnarray as aa
from attnarray.attention.alignment.additive_core import additive_scores, additive_scores_backward
from attnarray.kernels.cuda import loader
from attnarray.ops import dropout, gelu, loss, norm, softmax
from benchmarks.gpu_check_machine import copy_bandwidth, milliseconds

ROWS = [(65536, 1024), (16384, 4096), (8192, 8192), (4096, 32768)]
CALLS = 2000


def rows() -> dict[str, Any]:
    """Each kernel's least traffic (every array once) per second, as a share of what a copy reaches."""
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
    return {"copy GB/s": bandwidth / 1e9, "rows": found}


def _row_calls(count: int, width: int, dtype: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Name -> how many arrays of that size it must read and write, and the call."""
    cupy = loader.cupy()
    x, d = (cupy.random.standard_normal((count, width), dtype="float32").astype(dtype) for _ in range(2))
    w = cupy.ones(width, dtype=dtype)
    y = softmax.softmax_forward(x, None, 1)
    _, mean, inverse = norm.layer_norm_forward(x, w, w, 1e-5)
    classes = cupy.random.randint(0, width, count).astype("int64")
    losses, largest, total = loss.cross_entropy_forward(x, classes, -100, 0.0)
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "softmax": (2, lambda: softmax.softmax_forward(x, None, 1)),
        "softmax backward": (3, lambda: softmax.softmax_backward(d, y, 1)),
        "layer norm": (2, lambda: norm.layer_norm_forward(x, w, w, 1e-5)),
        "rms norm": (2, lambda: norm.rms_norm_forward(x, w, 1e-5)),
        "gelu": (2, lambda: gelu.gelu_forward(x, "none")),
        "dropout": (2, lambda: dropout.drop(x, 0.1, 7, None)),
        "cross entropy": (1, lambda: loss.cross_entropy_forward(x, classes, -100, 0.0)),
        "cross entropy backward": (
            2, lambda: loss.cross_entropy_backward(losses, x, classes, largest, total, -100, 0.0)
        ),
    }  # fmt: skip
    if width <= 8192:  # beyond, sums of weights go to the reference
        calls["layer norm backward"] = (3, lambda: norm.layer_norm_backward(d, x, mean, inverse, w, True))
    return calls


def additive() -> dict[str, Any]:
    """Additive scores and their gradients, beside the array code on the same GPU and PyTorch's eager code."""
    cupy, found = loader.cupy(), []
    for batch, length, features in ((8, 512, 256), (4, 1024, 512)):
        q, k = (cupy.random.standard_normal((batch, 1, length, features), dtype="float32") for _ in range(2))
        w = cupy.random.standard_normal(features, dtype="float32")
        d = cupy.random.standard_normal((batch, 1, length, length), dtype="float32")

        def both(q: Any = q, k: Any = k, w: Any = w, d: Any = d) -> None:
            additive_scores(q, k, w)
            additive_scores_backward(d, q, k, w)

        row = {"batch": batch, "length": length, "features": features, "ms": milliseconds(both)}
        with aa.use_kernels("reference"):
            row["array code ms"] = milliseconds(both, 5)
        row["PyTorch eager ms"] = _torch_additive(batch, length, features)
        found.append(row)
    return {"rows": found}


def _torch_additive(batch: int, length: int, features: int) -> float | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    q, k = (torch.randn(batch, length, features, device="cuda", requires_grad=True) for _ in range(2))
    w, d = torch.randn(features, device="cuda", requires_grad=True), torch.randn(batch, length, length, device="cuda")

    def both() -> None:
        (torch.tanh(q[:, :, None] + k[:, None]) @ w).backward(d)

    torch.cuda.synchronize()
    stream = loader.cupy().cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
    with stream:
        return milliseconds(both, 5)


def overhead() -> dict[str, Any]:
    """What a call costs the host when all is warm and the GPU has almost nothing to do."""
    cupy = loader.cupy()
    x = cupy.ones((4, 64), dtype="float32")
    w, found = cupy.ones(64, dtype="float32"), {}
    calls = {
        "softmax kernel": lambda: softmax.softmax_forward(x, None, 1),
        "layer norm kernel": lambda: norm.layer_norm_forward(x, w, w, 1e-5),
        "attnarray.softmax": lambda: aa.softmax(x),
        "cupy.exp, to compare": lambda: cupy.exp(x),
    }
    for name, call in calls.items():
        for _ in range(100):
            call()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found[name] = (time.perf_counter() - start) / CALLS * 1e6
        cupy.cuda.Device().synchronize()
    return {"microseconds": found}

"""A stage of `gpu_check`: additive scores."""

from __future__ import annotations

from typing import Any

import attnarray as aa
from attnarray.attention.alignment.additive import additive_scores, additive_scores_backward
from attnarray.kernels.cuda import loader
from benchmarks.gpu_check_machine import milliseconds

SIZES = ((8, 512, 256), (4, 1024, 512))  # batch, length, features
# Batch, queries, keys, features, and the size of the numbers: above 10, exponentials are of sums.
CHECKED = ((2, 70, 150, 37, 1.0), (3, 150, 70, 130, 3.0), (2, 33, 65, 64, 30.0), (4, 1, 100, 256, 1.0))


def additive() -> dict[str, Any]:
    """Scores and gradients compared with array code on the GPU and PyTorch eager; correct and reproducible."""
    cupy, found = loader.cupy(), []
    for batch, length, features in SIZES:
        q, k = (cupy.random.standard_normal((batch, 1, length, features), dtype="float32") for _ in range(2))
        w = cupy.random.standard_normal(features, dtype="float32")
        d = cupy.random.standard_normal((batch, 1, length, length), dtype="float32")

        def forward(q: Any = q, k: Any = k, w: Any = w) -> None:
            additive_scores(q, k, w)

        def both(q: Any = q, k: Any = k, w: Any = w, d: Any = d) -> None:
            additive_scores(q, k, w)
            additive_scores_backward(d, q, k, w)

        row = {"batch": batch, "length": length, "features": features, "ms": milliseconds(both)}
        row["forward ms"] = milliseconds(forward)
        with aa.use_kernels("reference"):
            row["array code ms"] = milliseconds(both, 5)
        row["PyTorch eager ms"] = _torch_additive(batch, length, features)
        found.append(row)
    return {"rows": found, "wrong": [line for sizes in CHECKED for line in _wrong(*sizes)]}


def _wrong(batch: int, queries: int, keys: int, features: int, size: float) -> list[str]:
    """Results with errors of more than roundings of their sums, or with other bits the second time."""
    cupy, found = loader.cupy(), []
    q, k = (size * cupy.random.standard_normal((batch, 1, length, features)) for length in (queries, keys))
    w, d = cupy.random.standard_normal(features), cupy.random.standard_normal((batch, 1, queries, keys))
    terms = {"scores": features, "dq": keys, "dk": queries, "dw": batch * queries * keys}
    for dtype, eps in (("float32", 2.0**-23), ("float64", 2.0**-52)):
        q1, k1, w1, d1 = (x.astype(dtype) for x in (q, k, w, d))
        q2, k2, w2, d2 = (x.astype("float64") for x in (q1, k1, w1, d1))
        with aa.use_kernels("reference"):
            exact = additive_scores(q2, k2, w2), *additive_scores_backward(d2, q2, k2, w2)
        runs = [(additive_scores(q1, k1, w1), *additive_scores_backward(d1, q1, k1, w1)) for _ in range(2)]
        for (name, count), result, again, truth in zip(terms.items(), *runs, exact, strict=True):
            error, bound = float(abs(result - truth).max()), 24 * eps * (1 + 3 * count**0.5)
            same = result.get().tobytes() == again.get().tobytes()
            if not (error <= bound and same):
                sizes = (batch, queries, keys, features, size)
                found.append(f"{name} {dtype} {sizes}: {error:.2g}, at most {bound:.2g}; same bits again: {same}")
    return found


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

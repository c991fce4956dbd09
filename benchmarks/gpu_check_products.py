"""A stage of `gpu_check`: batched products of 16-bit matrices, compared with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.cuda import loader, products
from benchmarks.gpu_check_machine import AHEAD, milliseconds

# Shapes of attention with 32 heads: dot products of queries and keys, and weights times values.
SHAPES = {"dot products": (2048, 128, 2048), "weights times values": (2048, 2048, 128)}
HEADS = 32
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def sixteen_bit() -> dict[str, Any]:
    """TFLOP/s of `matmul_16_bit` and of torch.matmul; small products of every layout against float64."""
    rows, wrong = [], []
    for dtype, kind in dtypes().items():
        for name, (m, k, n) in SHAPES.items():
            x = drawn((1, HEADS, m, k), kind)
            y = drawn((1, HEADS, n, k), kind).mT if name == "dot products" else drawn((1, HEADS, k, n), kind)
            work, theirs = 2e-9 * HEADS * m * k * n, _torch_products(dtype, x.shape, y.shape, name == "dot products")
            for out in (kind, np.dtype(np.float32)):
                ours = work / milliseconds(lambda x=x, y=y, out=out: products.matmul_16_bit(x, y, out), flushes=AHEAD)
                row = {"product": name, "dtype": dtype, "result": out.name, "TFLOP/s": ours}
                if theirs and out == kind:
                    row |= {"torch.matmul TFLOP/s": work / theirs, "of torch.matmul": ours * theirs / work}
                rows.append(row)
        wrong += _wrong(dtype, kind)
    return {"rows": rows, "wrong": wrong}


def dtypes() -> dict[str, Any]:
    try:
        import ml_dtypes
    except ImportError:
        return {"float16": np.dtype(np.float16)}
    return {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def drawn(shape: tuple[int, ...], kind: Any) -> Any:
    return products.rounded(loader.cupy().random.standard_normal(shape, dtype="float32"), kind)


def _wrong(dtype: str, kind: Any) -> list[str]:
    """Errors of more than the rounding of the result, for row-major, column-major and strided matrices."""
    found, rng = [], np.random.default_rng(0)
    layouts = {
        "rows": lambda x: x,
        "columns": lambda x: x.view(np.uint16).mT.copy().view(kind).mT,
        "a part": lambda x: x[:, :, 1:-1],
    }
    for x_name, x_layout in layouts.items():
        for y_name, y_layout in layouts.items():
            x = rng.standard_normal((2, 3, 37, 35)).astype(np.float32).astype(kind)
            y = rng.standard_normal((2, 3, 37 if y_name == "a part" else 35, 41)).astype(np.float32).astype(kind)
            exact = x_layout(x).astype(np.float64) @ y_layout(y).astype(np.float64)
            moved = (loader.cupy().asarray(array.view(np.uint16)).view(kind) for array in (x, y))
            x, y = (layout(array) for layout, array in zip((x_layout, y_layout), moved, strict=True))
            for out in (kind, np.dtype(np.float32)):
                result = products.matmul_16_bit(x, y, out).get().astype(np.float64)
                bound = (EPS[dtype] if out == kind else 1e-6) * float(np.abs(exact).max())
                error = float(np.abs(result - exact).max())
                if not error <= bound:
                    found.append(f"{dtype} {x_name} times {y_name} in {out.name}: {error:.2g}, at most {bound:.2g}")
    return found


def _torch_products(dtype: str, x: Any, y: Any, transposed: bool) -> float | None:
    """Milliseconds of torch.matmul, or None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    kind = getattr(torch, dtype)
    a = torch.randn(x, device="cuda").to(kind)
    b = (
        torch.randn((*y[:2], y[3], y[2]), device="cuda").to(kind).mT
        if transposed
        else torch.randn(y, device="cuda").to(kind)
    )
    torch.cuda.synchronize()
    with loader.cupy().cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        return milliseconds(lambda: torch.matmul(a, b), flushes=AHEAD)

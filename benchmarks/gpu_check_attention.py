"""Stages of `gpu_check`: correctness and speed of attention on tensor cores, compared with PyTorch's kernels."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.kernels.cuda import attention as kernels
from attnarray.kernels.cuda import loader
from attnarray.kernels.cuda.attention_plan import HOPPER
from benchmarks.gpu_check_machine import AHEAD, copy_bandwidth, milliseconds, products_per_second

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
MOST_WORKERS = 12


def attention() -> dict[str, Any]:
    """Every option and odd sizes against the reference in float64, and reproducibility; the errors of float32.

    Most of the time is compilation, so several processes share the cases.
    """
    workers, families = min(os.cpu_count() or 1, MOST_WORKERS), ("", "1") if has_wgmma() else ("",)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        errors = [pool.submit(_float32_errors, *case, family) for case in LONG for family in families]
        found = list(pool.map(_share_of_cases, range(workers), [workers] * workers))
        float32 = [one.result() for one in errors]
    wrong = [fault for _, faults in found for fault in faults]
    return {"cases": sum(cases for cases, _ in found), "wrong": wrong, "errors of float32": float32}


LONG = ((512, 64), (4096, 64), (4096, 128))  # keys and dims


def _float32_errors(keys: int, dim: int, warpgroups: str) -> dict[str, Any]:
    """Errors of kernels, as multiples of those of the reference in float32 on the host."""
    from tests.support.kernel_calls import Sizes, call_of, in_dtype
    from tests.support.tensor_core_calls import errors_beside_float32, run

    cupy, call = loader.cupy(), in_dtype(call_of(Sizes(512, keys, dim, dim, 1, 1, 1)), "float32")
    with mock.patch.dict(os.environ, ATTNARRAY_WARPGROUPS=warpgroups):
        times = errors_beside_float32(run(call, cupy.asarray, cupy.asnumpy), call)
    return {"keys": keys, "dim": dim, "warpgroups": bool(warpgroups), "times": times}


def _share_of_cases(first: int, workers: int) -> tuple[int, list[str]]:
    from tests.support.kernel_calls import in_dtype
    from tests.support.tensor_core_calls import all_calls, faults, run, truth_of, warpgroup_calls

    cupy, wrong, cases = loader.cupy(), [], 0
    calls = [("", *call) for call in all_calls()]
    if has_wgmma():
        calls += [("1", f"warpgroups {n}", *call) for n, call in enumerate(warpgroup_calls())]
    for warpgroups, name, dtype, call in calls[first::workers]:
        rounded = in_dtype(call, dtype)
        with mock.patch.dict(os.environ, ATTNARRAY_WARPGROUPS=warpgroups):
            found, again = (run(rounded, cupy.asarray, cupy.asnumpy) for _ in range(2))
        cases += 1
        wrong += [f"{name} {dtype}: {fault}" for fault in faults(found, truth_of(rounded), rounded, dtype)]
        wrong += [f"{name} {dtype}: {n} has other bits" for n in found if found[n].tobytes() != again[n].tobytes()]
    return cases, wrong


def has_wgmma() -> bool:
    return loader.compute_capability(int(loader.cupy().cuda.runtime.getDevice())) == HOPPER


class Shape(NamedTuple):
    """A case. `window` counts keys to the left; a bias is (1, H, T, S), with its gradient, and a mask (B, 1, T, S)."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    dtype: str = "bfloat16"
    causal: bool = False
    window: int | None = None
    bias: bool = False
    mask: bool = False
    backward: bool = True

    @property
    def pairs(self) -> float:
        """The number of visible pairs of queries and keys, per head."""
        if self.window is not None:
            return self.queries * (self.window + 1) - self.window * (self.window + 1) / 2
        return self.queries * self.keys / (2 if self.causal else 1)

    def operations(self, products: int) -> float:
        return 2.0 * products * self.batch * self.heads * self.pairs * self.dim

    @property
    def bytes(self) -> float:
        """Of query, key, value and output, once each."""
        rows = 2 * self.heads * self.queries + 2 * self.kv_heads * self.keys
        return float(self.batch * rows * self.dim * ITEMSIZE[self.dtype])


MASKED = 0.7  # share of visible pairs
FORWARD, BACKWARD = 2, 5  # matrix products that attention needs
OURS_BACKWARD = 7  # weights and their gradients are computed twice, so that no two blocks add to one output


def shapes() -> Iterator[Shape]:
    for dim in (64, 128):
        for length in (1024, 2048, 4096, 8192, 16384):
            heads = 64 if length < 16384 else 16
            for causal in (False, True):
                mode = "causal" if causal else "full"
                yield Shape(f"{mode} {length} D{dim}", 1, heads, heads, length, length, dim, causal=causal)
    yield Shape("grouped causal 8192 D128", 1, 64, 8, 8192, 8192, 128, causal=True)
    yield Shape("window 1024 of 8192 D64", 1, 64, 64, 8192, 8192, 64, causal=True, window=1024)
    for dim in (64, 128):
        yield Shape(f"bias 2048 D{dim}", 2, 16, 16, 2048, 2048, dim, bias=True)
        yield Shape(f"mask 2048 D{dim}", 2, 16, 16, 2048, 2048, dim, mask=True)
    for causal in (False, True):
        yield Shape(f"float32 {'causal' if causal else 'full'} 4096 D64", 1, 32, 32, 4096, 4096, 64, "float32", causal)
    yield Shape("float32 full 4096 D128", 1, 16, 16, 4096, 4096, 128, "float32")
    for batch, keys in ((1, 8192), (16, 8192), (8, 65536)):
        yield Shape(f"decode {batch} x {keys} D128", batch, 64, 8, 1, keys, 128, backward=False)


def attention_speed() -> dict[str, Any]:
    """Times compared with PyTorch's kernels, and with lower bounds by operations and bytes."""
    peers, rows, bandwidth = _peers(), [], copy_bandwidth()
    rates = {dtype: products_per_second(dtype) for dtype in ("bfloat16", "float32")}
    for shape in shapes():
        runs = {"ours": _ours(shape), **{name: make(shape) for name, make in peers.items()}}
        if shape.queries > 1 and not (shape.bias or shape.mask) and has_wgmma():
            runs["warpgroups"] = {way: with_wgmma(run) for way, run in _ours(shape).items()}
        row: dict[str, Any] = {"case": shape.name, "dtype": shape.dtype}
        for way, products in (("forward", FORWARD), ("both", FORWARD + BACKWARD)):
            if way == "both" and not shape.backward:
                continue
            ours = FORWARD + (OURS_BACKWARD if way == "both" else 0) + (2 if shape.bias and way == "both" else 0)
            rate = rates["float32" if shape.dtype == "float32" else "bfloat16"]
            predicted = max(shape.operations(ours) / rate, (1 if way == "forward" else 3) * shape.bytes / bandwidth)
            row[f"{way} predicted ms"] = 1e3 * predicted
            for name, run in runs.items():
                if way in run:
                    row[f"{way} {name} ms"] = time_or_reason(run[way])
            best = row[f"{way} ours ms"]
            row[f"{way} TFLOP/s"] = shape.operations(products) / best / 1e9
            row[f"{way} of a copy"] = shape.bytes / best * 1e3 / bandwidth
        rows.append(row)
    return {"rows": rows, "products per second": rates, "copy GB/s": bandwidth / 1e9}


def time_or_reason(run: Callable[[], Any]) -> Any:
    try:
        return milliseconds(run, 7, AHEAD)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"


def with_wgmma(run: Callable[[], Any]) -> Callable[[], Any]:
    def changed() -> Any:
        with mock.patch.dict(os.environ, ATTNARRAY_WARPGROUPS="1"):
            return run()

    return changed


def _ours(shape: Shape) -> dict[str, Callable[[], Any]]:
    q, k, v, dout = (random_array(size, shape.dtype) for size in _sizes(shape))
    bias = mask = None
    if shape.mask:
        mask = loader.cupy().random.random((shape.batch, 1, shape.queries, shape.keys)) < MASKED
    if shape.bias:
        bias = random_array((1, shape.heads, shape.queries, shape.keys), shape.dtype)
    right = 0 if shape.causal or shape.window is not None else None
    offset = shape.keys - shape.queries
    scoring = ScoreModifiers(shape.dim**-0.5, bias=bias, mask=mask, left=shape.window, right=right, q_offset=offset)

    def both() -> None:
        out, lse = kernels.attention(q, k, v, scoring)
        kernels.attention_backward(dout, None, q, k, v, out, lse, scoring)

    return {"forward": lambda: kernels.attention(q, k, v, scoring), "both": both}


def _sizes(shape: Shape) -> tuple[tuple[int, ...], ...]:
    query = (shape.batch, shape.heads, shape.queries, shape.dim)
    key = (shape.batch, shape.kv_heads, shape.keys, shape.dim)
    return query, key, key, query


def random_array(size: tuple[int, ...], dtype: str) -> Any:
    cupy = loader.cupy()
    x = cupy.random.standard_normal(size, dtype="float32")
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(dtype)
    import ml_dtypes

    return (x.view("uint32") >> 16).astype("uint16").view(ml_dtypes.bfloat16)


def _peers() -> dict[str, Callable[[Shape], dict[str, Callable[[], Any]]]]:
    """PyTorch's kernels, if it is installed and finds the GPU."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def make(backend: Any, is_deterministic: bool) -> Callable[[Shape], dict[str, Callable[[], Any]]]:
        def of(shape: Shape) -> dict[str, Callable[[], Any]]:
            dtype = getattr(torch, shape.dtype)
            q, k, v, dout = (torch.randn(size, device="cuda", dtype=dtype) for size in _sizes(shape))
            for x in (q, k, v):
                x.requires_grad_(shape.backward)
            mask = _torch_mask(torch, shape, dtype)
            inputs = [x for x in (q, k, v, mask) if x is not None and x.requires_grad]
            grouped = shape.heads != shape.kv_heads
            options = {"attn_mask": mask, "is_causal": shape.causal and mask is None, "enable_gqa": grouped}
            attend = torch.nn.functional.scaled_dot_product_attention

            def forward() -> Any:
                with sdpa_kernel(backend), torch.no_grad():
                    return attend(q, k, v, **options)

            def both() -> None:
                torch.use_deterministic_algorithms(is_deterministic)
                with sdpa_kernel(backend):
                    torch.autograd.grad(attend(q, k, v, **options), inputs, dout)

            return {"both": both} if is_deterministic else {"forward": forward, "both": both}

        return of

    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of PyTorch's, which would take time
    named = {
        "flash": ("FLASH_ATTENTION", False),
        "flash deterministic": ("FLASH_ATTENTION", True),
        "cudnn": ("CUDNN_ATTENTION", False),
        "efficient": ("EFFICIENT_ATTENTION", False),
    }
    return {name: make(getattr(SDPBackend, backend), mode) for name, (backend, mode) in named.items()}


def _torch_mask(torch: Any, shape: Shape, dtype: Any) -> Any:
    """PyTorch supports windows as masks only."""
    if shape.bias:
        size = (1, shape.heads, shape.queries, shape.keys)
        return torch.randn(size, device="cuda", dtype=dtype, requires_grad=True)
    if shape.mask:
        return torch.rand((shape.batch, 1, shape.queries, shape.keys), device="cuda") < MASKED
    if shape.window is None:
        return None
    i, j = (torch.arange(size, device="cuda") for size in (shape.queries, shape.keys))
    return (j <= i[:, None]) & (j >= i[:, None] - shape.window)

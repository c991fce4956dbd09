"""Calls of attention on tensor cores: arguments, results, the truth, and tolerances."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
import numpy as np

import attnarray as aa
from attnarray.attention import engine
from attnarray.attention.dot_product import partial
from attnarray.attention.normalizers import masked_softmax
from attnarray.kernels.cuda import attention
from tests.support.kernel_calls import OPTIONS, Call, Sizes, call_of, in_dtype, kinds, largest
from tests.support.libraries import EPS

NAMES = ("dquery", "dkey", "dvalue", "dbias", "dsinks")
DTYPES = ("float16", "bfloat16", "float32")


def arguments_of(call: Call) -> tuple[Any, ...]:
    """The arguments of `attend` for a call, on NumPy arrays."""
    arguments = {name: value for name, value in call.items() if name not in ("dout", "dlse")}
    recorded = mock.patch.object(partial, "attention", side_effect=engine.attention.reference)
    with recorded as attend, np.errstate(all="ignore"), aa.use_kernels("reference"):
        partial.attention_partial_fwd(**arguments)
    return attend.call_args.args


def run(call: Call, to_device: Callable[[np.ndarray], Any], to_host: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """The results of the kernels, by name, on the host; the backward takes those of the forward."""

    def moved(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return to_device(value)
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return value._replace(**{name: moved(one) for name, one in value._asdict().items()})
        return value

    q, k, v, scoring = map(moved, arguments_of(call))
    out, lse = attention.attention(q, k, v, scoring)
    grads = attention.attention_backward(moved(call["dout"]), moved(call.get("dlse")), q, k, v, out, lse, scoring)
    named = {"out": out, "lse": lse, **dict(zip(NAMES, grads, strict=True))}
    return {name: to_host(array) for name, array in named.items() if array is not None}


def truth_of(call: Call) -> dict[str, np.ndarray]:
    """The reference in float64 on the same numbers."""
    exact = in_dtype(call, "float64")
    q, k, v, scoring = arguments_of(exact)
    with np.errstate(all="ignore"), aa.use_kernels("reference"):
        out, lse = engine.attention(q, k, v, scoring)
        grads = engine.attention_backward(exact["dout"], exact.get("dlse"), q, k, v, out, lse, scoring)
    named = {"out": out, "lse": lse, **dict(zip(NAMES, grads, strict=True))}
    return {name: array for name, array in named.items() if array is not None}


def faults(found: dict[str, np.ndarray], truth: dict[str, np.ndarray], call: Call, dtype: str) -> Iterator[str]:
    """What is wrong with results, in words; NaN and infinities must be where they are in the truth."""
    if set(found) != set(truth):
        yield f"{sorted(found)} were found, expected {sorted(truth)}"
    for name, exact in truth.items():
        result, expected = found[name].astype(np.float64), "float32" if name == "lse" else dtype
        if result.shape != exact.shape or found[name].dtype != expected:
            yield f"{name} has {result.shape} {found[name].dtype}, expected {exact.shape} {expected}"
            continue
        finite = np.isfinite(exact)
        if not (np.array_equal(np.isnan(result), np.isnan(exact)) and np.array_equal(np.isfinite(result), finite)):
            yield f"{name} has NaN or infinities at other indices"
            continue
        error = np.max(np.abs(result[finite] - exact[finite]), initial=0.0)
        allowed = allowed_error(name, exact, truth["lse"], call, dtype)
        if error > allowed:
            yield f"{name} is off by {error}, at most {allowed}"


def assert_as_exact_as_float32(found: dict[str, np.ndarray], call: Call) -> None:
    """Errors, as root mean squares, are at most some times those of the reference in float32.

    The lse has the rounding of the largest score, a sum that tensor cores truncate a few times.
    """
    for name, times in errors_beside_float32(found, call).items():
        assert times < (4.0 if name == "lse" else 2.5), f"{name} is off by {times} times the error of float32"


def errors_beside_float32(found: dict[str, np.ndarray], call: Call) -> dict[str, float]:
    """The errors of results, as multiples of those of the reference in float32: root mean squares.

    The lse has the rounding of its dot products, which BLAS sums in an order that depends on the processor, with or
    without fused multiply-adds. So its error is compared with that of dot products that are summed sequentially.
    """
    q, k, v, scoring = arguments_of(call)
    with aa.use_kernels("reference"):
        out, lse = engine.attention(q, k, v, scoring)
        grads = engine.attention_backward(call["dout"], None, q, k, v, out, lse, scoring)
        _, lse = masked_softmax(_running_dot_products(q, k), scoring)
    plain = {"out": out, "lse": lse, **dict(zip(NAMES, grads, strict=True))}
    truth = truth_of(call)
    return {name: float(_rms(found[name] - exact) / _rms(plain[name] - exact)) for name, exact in truth.items()}


def _running_dot_products(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Dot products of each query with each key of its head, the same on each processor."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    dots = np.zeros((*q.shape[:3], k.shape[2]), q.dtype)
    for d in range(q.shape[3]):
        dots += q[..., d, None] * k[..., None, :, d]
    return dots


def _rms(x: np.ndarray) -> Any:
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def allowed_error(name: str, exact: np.ndarray, lse: np.ndarray, call: Call, dtype: str) -> float:
    """Roundings of weights and of score gradients to the stored type, of which sums average most.

    The rounding of scores, in float32 for all dtypes, is that of exponents.
    """
    scores = call["query"].shape[1] * call["query"].shape[2] * call["key"].shape[2] * call["query"].shape[0]
    terms = 1.0 if name in ("out", "lse") else max(scores / max(exact.size, 1), 1.0)
    eps = EPS["float32"] if name == "lse" else EPS[dtype]
    roundings = 4 * eps + 4 * EPS["float32"] * max(largest(lse), 8.0)
    return float(roundings * max(largest(exact), 1.0) * np.sqrt(terms))


def all_calls() -> Iterator[tuple[str, str, Call]]:
    """Name, dtype and call, for a GPU, where larger ones are fast: odd sizes, each option, all together."""
    for n, sizes in enumerate(ODD_SIZES):
        for dtype in (DTYPES[n % 2], "float32"):
            yield f"{tuple(sizes)}", dtype, call_of(sizes)
            yield f"{tuple(sizes)} causal", dtype, call_of(sizes, is_causal=True, q_offset=sizes.keys - sizes.queries)
    calls = []
    several = (37, 260, 16, 24, 3), (2, 600, 64, 64, 4), (200, 200, 128, 128, 1), (130, 160, 64, 64, 2)
    for sizes in itertools.starmap(Sizes, several):
        calls += [(f"{option} {tuple(sizes)}", call_of(sizes, 1, [option])) for option in OPTIONS]
        calls += [(f"kind {n} {tuple(sizes)}", call) for n, call in enumerate(kinds(sizes))]
    for n, (name, call) in enumerate(calls):
        yield name, DTYPES[n % 3], call


def warpgroup_calls() -> list[tuple[str, Call]]:
    """Dtype and call: plain ones for kernels with warpgroup instructions."""
    calls: list[tuple[str, Sizes, Call]] = [
        ("bfloat16", Sizes(128, 128, 64, 64, 1, 1, 1), {}),
        ("float16", Sizes(200, 333, 64, 64, 1, 2, 1), {"is_causal": True, "q_offset": 133}),
        ("bfloat16", Sizes(150, 290, 128, 128, 1, 1, 1), {"is_causal": True, "q_offset": 140}),
        ("float16", Sizes(130, 140, 128, 64, 1, 1, 2), {"window": (40, 9)}),
        ("bfloat16", Sizes(75, 270, 64, 128, 3, 1, 1), {}),  # the rows of three heads together
        ("float16", Sizes(131, 257, 70, 125, 1, 1, 1), {"kv_lengths": np.array([201])}),
        ("bfloat16", Sizes(140, 260, 64, 64, 1, 1, 2), {"is_causal": True, "q_offset": np.array([-30, 60])}),
        ("float32", Sizes(130, 200, 64, 64, 2, 2, 2), {"is_causal": True, "q_offset": 70}),
        ("float32", Sizes(150, 150, 62, 59, 1, 1, 1), {"window": (70, 0)}),
    ]
    return [(dtype, call_of(sizes, seed, **given)) for seed, (dtype, sizes, given) in enumerate(calls)]


ODD_SIZES = [
    Sizes(*sizes)
    for sizes in (
        (1, 1, 8, 8, 1), (5, 70, 16, 8, 2), (70, 33, 40, 64, 1), (65, 129, 64, 32, 1), (130, 67, 32, 48, 3),
        (1, 1000, 128, 128, 8), (3, 63, 80, 63, 2), (111, 200, 96, 128, 1), (257, 129, 128, 64, 2),
        (100, 90, 160, 192, 1), (70, 300, 256, 256, 2), (300, 40, 256, 32, 1), (17, 500, 64, 256, 1),
    )
]  # fmt: skip

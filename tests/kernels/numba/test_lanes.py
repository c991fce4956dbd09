"""Exponentials, logarithms and hyperbolic tangents as vector code: how exact they are, and their odd cases."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.lanes import Lanes, cpu_features, exp, lanes, log, tanh
from attnarray.kernels.numba.vector.memory import pointer
from attnarray.kernels.numba.vector.panel import Row, panel_pass

WIDER = {"float32": np.float64, "float64": np.longdouble}
NO_WIDER = np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps
TRUTHS = pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param("float64", marks=pytest.mark.skipif(NO_WIDER, reason="nothing here is wider than float64")),
    ],
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
# Without them x log2(e) is rounded, and e^x is off by up to |x| ulp.
FUSED_PRODUCTS = "fma" in cpu_features() or platform.machine().lower() not in ("x86_64", "amd64")


@panel_pass
def exp_rows(x: Row) -> dict[str, Lanes]:
    return {"x": exp(x)}


@panel_pass
def log_rows(x: Row) -> dict[str, Lanes]:
    return {"x": log(x)}


@panel_pass
def tanh_rows(x: Row) -> dict[str, Lanes]:
    return {"x": tanh(x)[0]}


@panel_pass
def slope_rows(x: Row) -> dict[str, Lanes]:
    return {"x": tanh(x)[1]}


def compiled(each_row: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function of any numbers that `each_row` is of the rows of a panel."""

    def run(panel: Any, rows: int) -> None:
        each_row(0, rows, 0, pointer(panel))

    fast = jit(run, fastmath=EXACT)

    def of(x: np.ndarray) -> np.ndarray:
        rows = -(-x.size // lanes(x))
        panel = np.zeros(rows * lanes(x), x.dtype)
        panel[: x.size] = x
        fast(panel, rows)
        return panel[: x.size]

    return of


EXP, LOG, TANH, SLOPE = (compiled(each_row) for each_row in (exp_rows, log_rows, tanh_rows, slope_rows))


def between(low: float, high: float, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, 2**18).astype(dtype)


def powers(low: float, high: float, dtype: str) -> np.ndarray:
    """Numbers of all magnitudes from e^low to e^high."""
    return np.exp(np.random.default_rng(1).uniform(low, high, 2**18).astype(WIDER[dtype])).astype(dtype)


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """How far off each number is, in distances between neighbours of its dtype."""
    step = np.spacing(np.abs(exact.astype(found.dtype))).astype(exact.dtype)
    return np.abs(found - exact) / step


# Beside each bound stands the largest error that was found, in float32 and in float64.


@TRUTHS
def test_exp_is_exact_to_about_one_ulp(dtype: str) -> None:
    largest = {"float32": 87.0, "float64": 709.0}[dtype]
    smallest = math.log(np.finfo(dtype).tiny)
    for low, high in ((smallest, largest), (smallest, smallest + 2), (largest - 2, largest), (-20, 0), (-1, 1)):
        x = between(low, high, dtype)
        error = ulps(EXP(x), np.exp(x.astype(WIDER[dtype])))
        assert np.all(error <= 1.2 + (0.0 if FUSED_PRODUCTS else np.abs(x))), error.max()  # 1.18 and 1.01


@TRUTHS
def test_exp_goes_to_zero_below_the_normal_numbers(dtype: str) -> None:
    tiny = np.finfo(dtype).tiny
    x = between(math.log(tiny) - 2, math.log(tiny), dtype)
    assert np.all(np.abs(EXP(x) - np.exp(x.astype(WIDER[dtype]))) < tiny)
    far = np.array([math.log(tiny) - 1, -1e3, -1e10, -np.finfo(dtype).max, -math.inf], dtype)
    np.testing.assert_array_equal(EXP(far), 0.0)


@TRUTHS
def test_tanh_is_exact_to_a_few_ulps(dtype: str) -> None:
    ranges = [between(low, high, dtype) for low, high in ((-20, 20), (-1, 1), (-0.57, -0.53), (0.53, 0.57))]
    for x in [*ranges, powers(-80, -1, dtype), -powers(-20, 0, dtype)]:  # near 0 relative to x, which nothing cancels
        error = ulps(TANH(x), np.tanh(x.astype(WIDER[dtype])))
        assert np.all(error <= (3.6 if FUSED_PRODUCTS else 4.2)), error.max()  # 3.38 and 3.45


@TRUTHS
def test_the_slope_of_tanh_is_exact_to_a_few_eps(dtype: str) -> None:
    largest = {"float32": 43.0, "float64": 354.0}[dtype]  # beyond, e^(-2 x) is below the normal numbers
    for x in (between(-largest, largest, dtype), between(-6, 6, dtype), powers(-40, 0, dtype)):
        exact = 1 / np.cosh(x.astype(WIDER[dtype])) ** 2
        error = np.abs(SLOPE(x) / exact - 1) / np.finfo(dtype).eps
        assert np.all(error <= 3.0 + (0.0 if FUSED_PRODUCTS else np.abs(x))), error.max()  # 2.43 and 2.41
    x = between(largest, 2 * largest, dtype)
    assert np.all(np.abs(SLOPE(x) - 1 / np.cosh(x.astype(WIDER[dtype])) ** 2) < 4 * np.finfo(dtype).tiny)


@TRUTHS
def test_log_is_exact_to_a_few_ulps(dtype: str) -> None:
    limits = np.finfo(dtype)
    normal = powers(math.log(limits.tiny), math.log(limits.max), dtype)
    edges = np.array([limits.tiny, limits.max, math.sqrt(0.5), math.sqrt(2.0)], dtype)
    ranges = [between(low, high, dtype) for low, high in ((0.7, 1.42), (0.98, 1.02), (1, 1e4))]
    for x in (normal, edges, *ranges, 1 + powers(-14, -2, dtype), 1 - powers(-14, -2, dtype)):
        x = x[(x >= limits.tiny) & (x < math.inf)]
        error = ulps(LOG(x), np.log(x.astype(WIDER[dtype])))
        assert np.all(error <= 3.1), error.max()  # 2.85 and 2.92


@DTYPES
def test_special_values(dtype: str) -> None:
    nan, inf = math.nan, math.inf

    def check(function: Callable[[np.ndarray], np.ndarray], values: dict[float, float]) -> None:
        found = function(np.array(list(values), dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, list(values.values()))

    check(EXP, {-inf: 0, nan: nan, 0.0: 1})
    check(LOG, {0.0: -inf, 1.0: 0, nan: nan})
    check(TANH, {inf: 1, -inf: -1, 100.0: 1, -100.0: -1, 1e30: 1, 0.0: 0, nan: nan})
    check(SLOPE, {inf: 0, -inf: 0, 1e30: 0, 0.0: 1, nan: nan})


@DTYPES
def test_tanh_is_odd_and_its_slope_even(dtype: str) -> None:
    for x in (between(0, 30, dtype), powers(-80, 2, dtype)):
        np.testing.assert_array_equal(TANH(-x), -TANH(x))
        np.testing.assert_array_equal(SLOPE(-x), SLOPE(x))
        assert np.all(np.abs(TANH(x)) <= 1)


@DTYPES
def test_lanes_are_independent(dtype: str) -> None:
    """NaN and infinities in other lanes change no bit."""
    x = between(0.1, 5, dtype)[:1000]
    odd = np.array([math.nan, math.inf, -math.inf, 0.0], dtype)
    mixed = np.stack([x, np.resize(odd, x.shape)], axis=1).ravel()
    for function in (EXP, LOG, TANH, SLOPE):
        np.testing.assert_array_equal(function(mixed)[::2], function(x))

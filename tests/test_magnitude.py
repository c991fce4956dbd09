"""Numbers near the limits of their dtype: squares neither overflow nor underflow; unrepresentable options fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim
from tests.support.libraries import Library, assert_close
from tests.support.messages import says

MODES = ("reference", "auto")
# Exponents of rows whose squares overflow; with the last ones, so do their sums and the differences of two numbers.
LARGE = {"float32": (64, 100, 126, 127), "bfloat16": (64, 100, 126, 127), "float64": (512, 800, 1022, 1023)}
NORMS: dict[str, tuple[str, ...]] = {
    "layer_norm": ("weight", "bias"), "plain layer_norm": (), "rms_norm": ("weight",), "plain rms_norm": (),
}  # fmt: skip


def normed(name: str, numbers: np.ndarray, exponent: int, dtype: str) -> tuple[Any, Any]:
    """The output and the gradients for numbers times a power of two."""
    function, E = name.split()[-1], numbers.shape[-1]
    given = {part: aa.asarray(np.linspace(0.5, 1.5, E), dtype) for part in NORMS[name]}
    out, ctx = getattr(aa, f"{function}_fwd")(aa.asarray(numbers * 2.0**exponent, dtype), **given)
    dout = aa.asarray(np.random.default_rng(E).standard_normal(numbers.shape), dtype)
    grads = getattr(aa, f"{function}_bwd")(dout, ctx)
    return out.astype(np.float64), [None if grad is None else grad.astype(np.float64) for grad in grads]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_large_rows_are_those_of_smaller_ones(name: str, dtype: str, mode: str) -> None:
    digits = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float64": 2.0**-52}[dtype]
    for E in (2, 7, 64, 1000):
        numbers = np.random.default_rng(E).uniform(-1.9, 1.9, (3, E))
        with aa.use_kernels(mode):
            expected, grads = normed(name, numbers, 40, dtype)
            for exponent in LARGE[dtype]:
                found, others = normed(name, numbers, exponent, dtype)
                np.testing.assert_array_equal(found, expected)  # exact for powers of two
                for other, grad in zip(others[1:], grads[1:], strict=True):
                    if grad is not None:  # 1 / deviation may be below the normal numbers: two digits fewer
                        np.testing.assert_allclose(other, grad, rtol=0, atol=4 * digits * np.max(np.abs(grad)))
                if exponent < max(LARGE[dtype]) - 1:  # at the end, dx itself is below the normal numbers
                    dx, scale = others[0] * 2.0 ** (exponent - 40), np.max(np.abs(grads[0]))
                    bound = 4 * digits * scale + 2.0 ** (exponent - 40) * {"float64": 2.0**-1074}.get(dtype, 2.0**-133)
                    np.testing.assert_allclose(dx, grads[0], rtol=0, atol=bound)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", LARGE)
def test_rows_of_both_signs_and_equal_rows_at_the_end_of_a_dtype(dtype: str, mode: str) -> None:
    largest = float(aa.asarray(np.array(2.0 ** max(LARGE[dtype])), dtype))
    with aa.use_kernels(mode):
        ends = aa.asarray(np.array([[largest, -largest], [-largest, -largest], [0.0, largest]]), dtype)
        out = aa.layer_norm(ends).astype(np.float64)
        np.testing.assert_allclose(out, [[1, -1], [0, 0], [-1, 1]], rtol=0, atol=1e-2 if dtype == "bfloat16" else 1e-6)
        out = aa.rms_norm(ends).astype(np.float64)
        root = math.sqrt(2)
        np.testing.assert_allclose(
            out, [[1, -1], [-1, -1], [0, root]], rtol=0, atol=1e-2 if dtype == "bfloat16" else 1e-6
        )
        equal = aa.asarray(np.full((1, 4), largest), dtype)
        weight = aa.asarray(np.ones(4), dtype)
        dx = aa.layer_norm_bwd(aa.asarray(np.array([[1.0, 0, 0, 0]]), dtype), aa.layer_norm_fwd(equal, weight)[1]).x
        slopes = np.array([[0.75, -0.25, -0.25, -0.25]]) / math.sqrt(1e-5)  # the variance is 0
        np.testing.assert_allclose(dx.astype(np.float64), slopes, rtol=1e-2 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", [aa.layer_norm, aa.rms_norm])
def test_one_large_row_changes_no_other(function: Any, mode: str) -> None:
    x = np.random.default_rng(3).standard_normal((5, 30)).astype(np.float32)
    with aa.use_kernels(mode):
        expected = function(x)
        for number in (1e30, np.inf, np.nan):
            x[2, 4] = number
            with np.errstate(invalid="ignore"):
                found = function(x)
            np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(expected, 2, 0))
            assert np.all(np.isfinite(found[2])) == (number == 1e30)


def times_power(number: float, exponent: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.ldexp(number, exponent))


@pytest.mark.parametrize(("dtype", "exponents"), {"float32": (-140, -100, -60, 60, 100, 127),
                                                  "bfloat16": (-120, -60, 60, 127), "float16": (-20, 10),
                                                  "float64": (-1040, -900, -500, 500, 900, 1023)}.items())  # fmt: skip
def test_clipping_of_large_and_small_gradients(library: Library, dtype: str, exponents: tuple[int, ...]) -> None:
    if dtype not in library.dtypes:
        pytest.skip("no such dtype")
    for exponent in exponents:
        host = [np.array([[0.75, 0.0], [-1.0, 1.0]]), np.array(1.25), np.zeros((0, 3))]
        grads = {str(n): library.array(leaf * 2.0**exponent, dtype) for n, leaf in enumerate(host)}
        norm = math.sqrt(0.75**2 + 2 + 1.25**2)
        digits = 2.0 ** {"bfloat16": -7, "float16": -9}.get(dtype, -20 if exponent != -140 else -8)
        for bound in (1.0, 2.0 ** (exponent - 3), 2.0**exponent * norm * 1.5):
            if bound == math.inf:
                continue
            clipped, before = optim.clip_by_global_norm(grads, bound)
            factor = min(1.0, times_power(bound / norm, -exponent))
            for leaf, (_, found) in zip(host, sorted(clipped.items()), strict=True):
                expected = leaf * 2.0**exponent * factor
                found = aa.to_numpy(found).astype(np.float64)
                least = 2.0 ** (-1074 if dtype == "float64" else -24 if dtype == "float16" else -133)
                if library.name == "jax" and dtype == "float64":
                    least = 2.0**-1022  # XLA takes subnormal numbers for 0
                np.testing.assert_allclose(found, expected, rtol=digits, atol=least)
            if times_power(norm, exponent) < 2.0 ** (1023 if dtype == "float64" else 128):
                assert float(before) == pytest.approx(norm * 2.0**exponent, rel=digits)
            else:
                assert float(before) == math.inf
            assert float(optim.global_norm(grads)) == float(before)


def test_the_norm_of_gradients_of_several_dtypes() -> None:
    grads = {"a": np.array([3e200]), "b": np.array([1.0, 0.0], np.float32), "c": np.array([4e200])}
    assert float(optim.global_norm(grads)) == pytest.approx(5e200, rel=1e-15)
    grads = {"a": np.array([3e-200]), "b": np.zeros(2, np.float32), "c": np.array([4e-200])}
    assert float(optim.global_norm(grads)) == pytest.approx(5e-200, rel=1e-15)
    assert float(optim.global_norm({"a": np.zeros(3), "b": np.zeros(0)})) == 0
    clipped, norm = optim.clip_by_global_norm({"a": np.array([3e38, np.inf], np.float32)}, 1.0)
    assert np.all(np.isnan(clipped["a"]))
    assert float(norm) == math.inf


def test_an_eps_that_float32_does_not_hold() -> None:
    x = np.ones((2, 3), np.float32)
    for function in (aa.layer_norm, aa.rms_norm):
        expected = (
            "`eps` is 1e-50, expected a number of a size from 1.2e-38 to 8.5e+37: arrays of float32 are computed in"
        )
        says(ValueError, expected, lambda f=function: f(x, eps=1e-50))  # type: ignore[misc]
        says(ValueError, "`eps` is 1e+39, expected", lambda f=function: f(x, eps=1e39))  # type: ignore[misc]
        assert_close(function(x.astype(np.float64), eps=1e-50), function(x.astype(np.float64), eps=1e-30), 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 4.0])
@pytest.mark.parametrize(("dtype", "exponents"), [("float32", range(10, 128)), ("float64", range(400, 1024, 5))])
def test_sparse_maps_of_large_logits(dtype: str, exponents: range, alpha: float, mode: str) -> None:
    near = np.array([0.0, 0.4, -0.2, 0.3])
    with aa.use_kernels(mode):
        expected = aa.entmax(np.concatenate([near, np.full(5, -60.0)]), alpha=alpha)
        for exponent in exponents:
            large = 2.0**exponent
            x = np.concatenate([near, large * np.array([-1.0, -0.5, -1.0, -0.7, -1.0])])
            equal = large * np.array([-1.0, -1.0 + 2.0**-20, *[-1.0] * 7])  # except one, by far the largest
            found = aa.entmax(np.stack([x, equal]).astype(dtype), alpha=alpha)
            np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)
            if exponent > 30:
                np.testing.assert_array_equal(found[1], np.eye(9)[1])

"""Sparsemax and entmax: equal to the papers' formulas and to their definition, and edge cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.naive.entmax import entmax as naive_entmax
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here
ROUNDING = 1e-13  # sums of hundreds of numbers in another order; powers of them for the smallest alpha
REFERENCES = {name: case for name, case in frozen("sparse.npz").items() if "x" in case.arrays}
RNG = np.random.default_rng(3)
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])
each_alpha = pytest.mark.parametrize("alpha", [1.5, 2.0])


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", REFERENCES)
def test_they_equal_the_papers(name: str, dtype: str, kernels: str) -> None:
    arrays = Frozen.in_dtype(REFERENCES[name], dtype).arrays
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(getattr(aa, name), arrays["x"])
        assert_close(out, arrays["out"], TOLERANCE[dtype])
        assert_close(pullback(arrays["dout"]).x, arrays["grad_x"], TOLERANCE[dtype])


@each_kernels
@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.5, 1.8, 2.0, 2.5, 4.0, 10.0])
@pytest.mark.parametrize("size", [1, 2, 7, 63, 500])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_the_threshold_is_that_of_the_definition(alpha: float, size: int, spread: float, kernels: str) -> None:
    x = spread * RNG.standard_normal((3, size)) + 5.0
    with aa.use_kernels(kernels):
        y = aa.entmax(x, alpha=alpha)
    exact = naive_entmax(x, alpha=alpha)
    assert y.min() >= 0
    if alpha <= 2:
        assert_close(y, exact, 10 * ROUNDING)
        np.testing.assert_allclose(y.sum(-1), 1.0, rtol=10 * ROUNDING)
    # A root amplifies rounding at the edge of the support, so entries there are excluded.
    assert_close(y ** (alpha - 1), exact ** (alpha - 1), ROUNDING)


@each_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_alpha
def test_long_rows(alpha: float, dtype: str, kernels: str) -> None:
    x = RNG.standard_normal((2, 4096)).astype(dtype)
    with aa.use_kernels(kernels):
        y = aa.entmax(x, alpha=alpha)
    # A few roundings of a sum whose terms are at most 1.
    assert_close(y, naive_entmax(x, alpha=alpha), {"float32": 5e-7, "float64": 1e-14}[dtype])


def test_alpha_two_is_sparsemax_and_alpha_one_is_softmax_in_the_limit() -> None:
    x = 2.0 * RNG.standard_normal((4, 9))
    np.testing.assert_array_equal(aa.entmax(x, alpha=2.0), aa.sparsemax(x))
    errors = [np.abs(aa.entmax(x, alpha=1.0 + step) - aa.softmax(x)).max() for step in (1e-1, 1e-2, 1e-3)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


def test_sparsemax_is_the_nearest_point() -> None:
    """No step towards another distribution decreases the distance: (x - y) (p - y) <= 0 for all p."""
    x = RNG.standard_normal((50, 6))
    y = aa.sparsemax(x)
    corners = np.eye(6)
    assert np.einsum("ni,nki->nk", x - y, corners - y[:, None]).max() < ROUNDING
    np.testing.assert_allclose(aa.sparsemax(y), y, atol=ROUNDING)  # a distribution is its own projection


@each_kernels
@each_alpha
def test_support_ties_and_shifts(alpha: float, kernels: str) -> None:
    with aa.use_kernels(kernels):
        x = np.array([0.5, 0.5, 0.25, 0.5, -4.0])
        y = aa.entmax(x, alpha=alpha)
        assert y[0] == y[1] == y[3] > y[2] > 0 == y[4]
        assert_close(aa.entmax(np.zeros(7), alpha=alpha), np.full(7, 1 / 7), ROUNDING)
        assert_close(aa.entmax(x + 2.0**20, alpha=alpha), y, 0)
        reach = 1.0 / (alpha - 1.0)
        np.testing.assert_array_equal(aa.entmax(np.array([3.0, 3.0 - reach, 3.0 - 2 * reach]), alpha=alpha), [1, 0, 0])
        assert aa.entmax(np.array([3.0, 3.0 - 0.99 * reach]), alpha=alpha)[1] > 0


@each_kernels
def test_the_gradient_at_a_kink_is_that_of_the_side_outside_the_support(kernels: str) -> None:
    x, dout = np.array([1.0, 0.0, -3.0]), np.array([2.0, 5.0, 7.0])  # tau = 0 = x_2
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(aa.sparsemax, x)
        assert out.tolist() == [1.0, 0.0, 0.0]
        dx = pullback(dout).x
        h = 2.0**-20
        slopes = [((aa.sparsemax(x + step * np.eye(3)[1]) - out) @ dout) / step for step in (-h, h)]
        smooth = [((aa.entmax(2 * x + step * np.eye(3)[1]) - out) @ dout) / step for step in (-h, h)]
        np.testing.assert_array_equal(aa.vjp(aa.entmax, 2 * x)[1](dout).x, 0.0)
    assert dx.tolist() == [0.0, 0.0, 0.0]
    assert slopes[0] == dx[1]
    assert slopes[1] == pytest.approx(1.5)  # inside, it would be this
    assert max(map(abs, smooth)) < 1e-4  # no kink


@each_kernels
@each_alpha
def test_nan_infinities_and_masks(alpha: float, kernels: str) -> None:
    x = RNG.standard_normal((6, 37))
    clean = aa.entmax(x, alpha=alpha)
    x[0, 3], x[1, 5], x[2] = math.nan, math.inf, -math.inf
    x[3, 1] = -math.inf
    with aa.use_kernels(kernels):
        y, pullback = aa.vjp(aa.entmax, x, alpha=alpha)
        dx = pullback(np.ones_like(y)).x
        assert np.all(np.isnan(y[:2]))
        assert np.all(np.isnan(dx[:2]))
        np.testing.assert_array_equal(y[2], 0.0)
        assert y[3, 1] == 0
        assert y[3].sum() == pytest.approx(1.0)
        assert_close(y[4:], clean[4:], ROUNDING)
        hidden, pullback = aa.vjp(aa.entmax, x, mask=np.arange(37) > 5, alpha=alpha)
        np.testing.assert_array_equal(hidden[:, :6], 0.0)
        np.testing.assert_allclose(hidden[[0, 1, 3, 4, 5]].sum(-1), 1.0)
        dout = np.where(hidden > 0, 1.0, math.nan)  # entries outside the support are ignored
        np.testing.assert_allclose(pullback(dout).x, 0.0, atol=ROUNDING)
        np.testing.assert_array_equal(aa.entmax(x, mask=np.zeros(37, bool), alpha=alpha), 0.0)


@each_kernels
@each_alpha
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 3)], ids=str)
def test_empty_sizes(shape: tuple[int, ...], alpha: float, kernels: str) -> None:
    with aa.use_kernels(kernels):
        for axis in range(len(shape)):
            out, pullback = aa.vjp(aa.entmax, np.zeros(shape), axis, alpha=alpha)
            assert out.shape == pullback(out).x.shape == shape


@each_kernels
@each_alpha
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_floats_are_computed_in_float32(dtype: str, alpha: float, kernels: str) -> None:
    x = aa.asarray(RNG.standard_normal((5, 40)), dtype)
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(aa.entmax, x, alpha=alpha)
        dx = pullback(out).x
    assert out.dtype == dx.dtype == x.dtype
    exact = aa.entmax(x.astype(np.float32), alpha=alpha)
    np.testing.assert_array_equal(out, exact.astype(x.dtype))


X = np.zeros((2, 3))
BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "alpha 1": (ValueError, {"alpha": 1.0}, "`alpha` is 1.0, expected a number above 1 and up to 10: 1.5, or 2 for"),
    "alpha NaN": (ValueError, {"alpha": math.nan}, "`alpha` is nan, expected a number above 1"),
    "alpha 11": (ValueError, {"alpha": 11}, "`alpha` is 11, expected a number above 1 and up to 10"),
    "alpha, text": (ValueError, {"alpha": "1.5"}, "`alpha` is '1.5', expected a number above 1"),
    "axis": (ValueError, {"axis": 2}, "`axis` is 2, but the array has 2 axes: expected -2 to 1."),
    "mask": (TypeError, {"mask": np.ones((2, 3))}, "`mask` has dtype float64, expected bool (True = keep)."),
    "mask shape": (ValueError, {"mask": np.ones((3, 2), bool)}, "`mask` has shape (3, 2), which does not broadcast"),
    "integers": (TypeError, {"x": np.zeros(3, int)}, "`x` has dtype int64, expected one of float16"),
    "a list": (TypeError, {"x": [1.0]}, "`x` has type list, expected an array"),
}


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    says(error, expected, lambda: aa.entmax(**{"x": X, **changes}))
    if "alpha" not in changes:
        says(error, expected, lambda: aa.sparsemax(**{"x": X, **changes}))


def test_the_backward_says_what_is_wrong() -> None:
    out, ctx = aa.sparsemax_fwd(X)
    says(ValueError, "`dout` has shape (3,), expected (2, 3)", lambda: aa.sparsemax_bwd(out[0], ctx))
    says(TypeError, "expected the EntmaxContext that the forward", lambda: aa.entmax_bwd(out, ctx))

"""Properties of activations beyond the contract: limits, closed forms, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

import attnarray as aa

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])


EXTREMES = [-math.inf, -1e300, -1000.0, -0.0, 1000.0, 1e300, math.inf]


@pytest.mark.parametrize(
    ("name", "options", "expected", "slopes"),
    [
        ("relu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0, 1, 1, 1]),
        ("gelu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("gelu", {"approximate": "tanh"}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("silu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("tanh", {}, [-1, -1, -1, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]),
        ("sigmoid", {}, [0, 0, 0, 0.5, 1, 1, 1], [0, 0, 0, 0.25, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_activations_reach_their_limits_without_a_warning(name, options, expected, slopes, dtype) -> None:
    largest = float(np.finfo(dtype).max)
    x = np.clip(EXTREMES, -largest, largest).astype(dtype)
    x[[0, -1]] = -math.inf, math.inf
    out, pullback = aa.vjp(getattr(aa, name), x, **options)
    np.testing.assert_array_equal(
        out, np.minimum(expected, np.where(np.isinf(expected), math.inf, largest)).astype(dtype)
    )
    np.testing.assert_array_equal(pullback(np.ones_like(x)).x, np.asarray(slopes, dtype))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_activations_keep_nan_and_single_numbers(name: str) -> None:
    f = getattr(aa, name)
    assert np.isnan(f(np.array([math.nan, 1.0]))).tolist() == [True, False]
    out, pullback = aa.vjp(f, np.array(1.5))
    dx = pullback(np.array(2.0)).x
    assert type(out) is type(dx) is np.ndarray
    assert out.shape == dx.shape == ()


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_activations_refuse_what_is_not_a_floating_array(name: str) -> None:
    with pytest.raises(TypeError, match="`x` has dtype int64, expected one of float16"):
        getattr(aa, name)(np.array([1, 2]))
    with pytest.raises(TypeError, match="Expected arrays, but got list"):
        getattr(aa, name)([1.0, 2.0])


def test_gated_activations_leave_x_when_their_mirror_image_is_taken_away() -> None:
    x = np.linspace(-5.0, 5.0, 101)
    for out in (aa.gelu(x) - aa.gelu(-x), aa.gelu(x, approximate="tanh") - aa.gelu(-x, approximate="tanh")):
        np.testing.assert_allclose(out, x, atol=1e-15)  # a few roundings of numbers up to 5
    np.testing.assert_allclose(aa.silu(x) - aa.silu(-x), x, atol=1e-15)


def test_gelu_forms_differ_by_the_known_small_amount() -> None:
    x = np.linspace(-6.0, 6.0, 1201)
    apart = np.max(np.abs(aa.gelu(x) - aa.gelu(x, approximate="tanh")))
    assert 4e-4 < apart < 5e-4


def test_gelu_refuses_an_unknown_approximation() -> None:
    with pytest.raises(ValueError, match="`approximate` is 'erf', expected one of 'none', 'tanh'"):
        aa.gelu(X, approximate="erf")


def test_sigmoid_keeps_small_probabilities() -> None:
    assert aa.sigmoid(np.array(-700.0)) == pytest.approx(math.exp(-700.0), rel=1e-14)

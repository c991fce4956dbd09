"""The error function: accurate everywhere, special numbers, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnarray.ops.erf import erf


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf_is_accurate_everywhere(dtype: str) -> None:
    grid = [np.linspace(-6.5, 6.5, 20001), np.linspace(0.46, 0.48, 2001), np.geomspace(1e-30, 1.0, 2001)]
    x = np.concatenate([*grid, [0.0, -6.0, 6.0, 5.5, -5.9, 40.0, -1e30]]).astype(dtype)
    expected = np.array([math.erf(number) for number in x])
    # A dozen roundings, of which only the last ones have full effect.
    np.testing.assert_allclose(erf(x), expected, rtol=4 * np.finfo(dtype).eps, atol=0)


def test_erf_of_special_numbers() -> None:
    smallest = 5e-324
    out = erf(np.array([0.0, -0.0, smallest, math.inf, -math.inf, math.nan]))
    np.testing.assert_array_equal(out, [0.0, -0.0, smallest, 1.0, -1.0, math.nan])
    assert np.signbit(out[1])


def test_erf_of_no_and_of_one_number() -> None:
    assert erf(np.zeros((0, 3))).shape == (0, 3)
    assert erf(np.array(-7.0)) == -1.0


def test_erf_refuses_integers() -> None:
    with pytest.raises(TypeError, match="`x` has dtype int64"):
        erf(np.array([1]))

"""Properties of `linear` beyond the contract: messages, empty sizes."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

import attnarray as aa

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])


def test_linear_says_which_shapes_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"as weight.T. Shapes: x \(2, 3\), weight \(3, 4\)"):
        aa.linear(X, np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"Shapes: x \(\), weight \(4, 3\)"):
        aa.linear(np.array(1.0), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`bias` has shape \(3,\), expected \(4,\): .* has shape \(4, 3\)"):
        aa.linear(X, np.ones((4, 3)), np.ones(3))


def test_linear_refuses_mixed_dtypes_and_libraries() -> None:
    with pytest.raises(TypeError, match="different dtypes: x float64, weight float32"):
        aa.linear(X, np.ones((4, 3), np.float32))
    with pytest.raises(TypeError, match="different libraries: array_api_strict, numpy"):
        aa.linear(X, array_api_strict.ones((4, 3)))


def test_linear_of_empty_arrays() -> None:
    np.testing.assert_array_equal(aa.linear(np.zeros((2, 0)), np.zeros((3, 0)), np.arange(3.0)), [[0, 1, 2]] * 2)
    out, pullback = aa.vjp(aa.linear, np.zeros((0, 3)), np.ones((4, 3)))
    np.testing.assert_array_equal(pullback(out).weight, np.zeros((4, 3)))

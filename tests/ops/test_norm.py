"""Properties of the norms beyond the contract: closed forms, empty sizes, messages."""

from __future__ import annotations

import numpy as np
import pytest

import attnarray as aa

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])


def test_layer_norm_of_a_constant_vector_is_the_bias() -> None:
    out = aa.layer_norm(np.full((2, 3), 7.0), np.full(3, 5.0), np.arange(3.0))
    np.testing.assert_array_equal(out, [[0.0, 1.0, 2.0]] * 2)


def test_layer_norm_is_invariant_to_shift_and_scale() -> None:
    # 1e-12: eps moves the result by its ratio to the variance, here above 1.
    np.testing.assert_allclose(aa.layer_norm(3 * X + 7, eps=1e-13), aa.layer_norm(X, eps=1e-13), atol=1e-12)


def test_layer_norm_gradient_is_orthogonal_to_shift_and_scale() -> None:
    out, pullback = aa.vjp(aa.layer_norm, X, eps=1e-13)
    dx = pullback(np.array([[1.0, 2.0, -4.0], [0.5, 3.0, 1.0]])).x
    np.testing.assert_allclose(np.sum(dx, axis=-1), 0, atol=1e-12)  # eps again
    np.testing.assert_allclose(np.sum(dx * out, axis=-1), 0, atol=1e-12)


def test_rms_norm_is_layer_norm_without_the_mean() -> None:
    centred = X - np.mean(X, axis=-1, keepdims=True)
    weight = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(aa.rms_norm(centred, weight, eps=1e-5), aa.layer_norm(X, weight), rtol=1e-14)
    assert aa.rms_norm(np.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_refuse_bad_input(name: str) -> None:
    f = getattr(aa, name)
    with pytest.raises(ValueError, match=r"`weight` has shape \(2,\), expected \(3,\): .* has shape \(2, 3\)"):
        f(X, np.ones(2))
    with pytest.raises(ValueError, match="`eps` is 0, expected a finite number above 0"):
        f(X, eps=0)
    with pytest.raises(ValueError, match=r"no axis to normalize, expected \(..., E\)"):
        f(np.array(1.0))
    with pytest.raises(TypeError, match="different dtypes: x float64, weight float32"):
        f(X, np.ones(3, np.float32))


def test_layer_norm_names_a_bad_bias() -> None:
    with pytest.raises(ValueError, match=r"`bias` has shape \(4,\), expected \(3,\)"):
        aa.layer_norm(X, bias=np.ones(4))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_norms_of_empty_arrays(shape: tuple[int, ...]) -> None:
    for f in (aa.layer_norm, aa.rms_norm):
        out, pullback = aa.vjp(f, np.zeros(shape), np.ones(shape[-1]))
        grads = pullback(out)
        assert out.shape == grads.x.shape == shape
        np.testing.assert_array_equal(grads.weight, np.zeros(shape[-1]))

"""Properties of the cross-entropy beyond the contract: closed forms, huge logits, ignored rows, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

import attnarray as aa

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes(label_smoothing: float) -> None:
    losses = aa.cross_entropy(
        np.full((2, 7), -3.0), np.array([0, 6]), label_smoothing=label_smoothing, reduction="none"
    )
    np.testing.assert_allclose(losses, math.log(7), rtol=1e-15)


def test_cross_entropy_reductions_belong_together() -> None:
    targets = np.array([[2, -100], [0, 1]])
    logits = np.arange(12.0).reshape(2, 2, 3) ** 1.5
    each = aa.cross_entropy(logits, targets, reduction="none")
    total = aa.cross_entropy(logits, targets, reduction="sum")
    mean = aa.cross_entropy(logits, targets)
    assert each.shape == (2, 2)
    assert type(total) is type(mean) is np.ndarray
    assert total.shape == mean.shape == ()
    assert total == pytest.approx(np.sum(each), rel=1e-15)
    assert mean == pytest.approx(np.sum(each) / 3, rel=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cross_entropy_of_huge_logits(dtype: str) -> None:
    logits = np.array([[1e4, 0.0, -1e4], [-math.inf, 5e3, 5e3]], dtype)
    loss, pullback = aa.vjp(aa.cross_entropy, logits, np.array([1, 2]), reduction="none")
    np.testing.assert_allclose(loss, [1e4, math.log(2)], rtol=1e-6)  # float32's rounding; exact but for log 2
    np.testing.assert_array_equal(pullback(np.ones(2, dtype)).logits, [[1, -1, 0], [0, 0.5, -0.5]])


def test_cross_entropy_gradient_of_a_row_sums_to_zero() -> None:
    _, pullback = aa.vjp(aa.cross_entropy, X, np.array([2, 0]), label_smoothing=0.1)
    np.testing.assert_allclose(np.sum(pullback(np.array(1.0)).logits, axis=-1), 0, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_does_not_look_at_ignored_rows(reduction: str, label_smoothing: float) -> None:
    options = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": 1}
    targets = np.array([2, 1, 0])
    clean = np.array([[0.5, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]])
    dirty = clean.copy()
    dirty[1] = math.nan, math.inf, -math.inf
    dout = np.array([1.0, math.nan, 2.0]) if reduction == "none" else np.array(1.0)
    expected, _ = aa.vjp(aa.cross_entropy, clean, targets, **options)
    out, pullback = aa.vjp(aa.cross_entropy, dirty, targets, **options)
    np.testing.assert_array_equal(out, expected)
    dlogits = pullback(dout).logits
    np.testing.assert_array_equal(dlogits[1], 0)
    assert np.all(np.isfinite(dlogits))


def test_cross_entropy_of_no_target_is_zero() -> None:
    out, pullback = aa.vjp(aa.cross_entropy, X, np.array([-100, -100]))
    assert out == 0
    np.testing.assert_array_equal(pullback(np.array(1.0)).logits, np.zeros_like(X))
    assert aa.cross_entropy(np.zeros((0, 3)), np.zeros(0, int)) == 0


def test_cross_entropy_refuses_bad_input() -> None:
    targets = np.array([0, 2])
    with pytest.raises(ValueError, match=r"`targets` holds 3 at position \(1,\), expected 0 to 2 .*or -100 to ignore"):
        aa.cross_entropy(X, np.array([0, 3]))
    with pytest.raises(ValueError, match=r"`targets` holds -100 at position \(0,\), expected 0 to 2 .*or -1 to ignore"):
        aa.cross_entropy(X, np.array([-100, -1]), ignore_index=-1)
    with pytest.raises(ValueError, match=r"`targets` has shape \(3,\), expected \(2,\): .* has shape \(2, 3\)"):
        aa.cross_entropy(X, np.array([0, 1, 2]))
    with pytest.raises(TypeError, match="`targets` has dtype float64, expected an integer dtype"):
        aa.cross_entropy(X, np.zeros(2))
    with pytest.raises(TypeError, match="`logits` has dtype int64"):
        aa.cross_entropy(np.zeros((2, 3), int), targets)
    with pytest.raises(TypeError, match=r"`ignore_index` is 0\.5, expected an integer"):
        aa.cross_entropy(X, targets, ignore_index=0.5)
    with pytest.raises(ValueError, match=r"`label_smoothing` is 1\.5, expected a probability"):
        aa.cross_entropy(X, targets, label_smoothing=1.5)
    with pytest.raises(ValueError, match="`reduction` is 'average', expected one of 'mean', 'sum', 'none'"):
        aa.cross_entropy(X, targets, reduction="average")
    with pytest.raises(ValueError, match=r"`logits` has no classes, expected \(..., V\) with V > 0"):
        aa.cross_entropy(np.zeros((2, 0)), targets)


def test_class_weights_of_one_change_nothing() -> None:
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((5, 4)), np.array([3, -100, 0, 0, 2])
    for options in ({}, {"label_smoothing": 0.3}, {"reduction": "sum"}, {"reduction": "none"}):
        out, pullback = aa.vjp(aa.cross_entropy, x, targets, **options)
        weighted, its_pullback = aa.vjp(aa.cross_entropy, x, targets, np.ones(4), **options)
        np.testing.assert_allclose(weighted, out, rtol=1e-14)
        np.testing.assert_allclose(its_pullback(out).logits, pullback(out).logits, rtol=1e-13, atol=1e-15)


def test_a_class_weight_counts_its_rows_that_often() -> None:
    x, targets = np.random.default_rng(1).standard_normal((3, 4)), np.array([3, 0, 1])
    twice = aa.cross_entropy(x[[0, 1, 2, 2]], targets[[0, 1, 2, 2]])
    np.testing.assert_allclose(aa.cross_entropy(x, targets, np.array([1.0, 2.0, 9.0, 1.0])), twice, rtol=1e-14)


def test_class_weights_say_what_is_wrong() -> None:
    x, targets = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(ValueError, match=r"`weight` has shape \(2,\), expected \(3,\): one number for each class"):
        aa.cross_entropy(x, targets, np.ones(2))
    with pytest.raises(TypeError, match="different dtypes: logits float64, weight float32"):
        aa.cross_entropy(x, targets, np.ones(3, "f4"))

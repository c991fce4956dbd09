"""Properties of convolutions beyond the contract: causality, blocks, dilation, padding, empty sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.ops import correlate
from tests.support.libraries import Library, assert_trees_close

ROUNDING = 1e-13  # sums of a few dozen products in another order


def dout_of(result: Any) -> Any:
    """Cotangents that differ everywhere."""
    return tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), result)


def convolved(x: np.ndarray, weight: np.ndarray, **options: Any) -> Any:
    """Output and gradients."""
    out, pullback = aa.vjp(aa.conv1d, x, weight, **options)
    return out, pullback(dout_of(out))


X = np.random.default_rng(0).standard_normal((2, 9, 3))


WEIGHT = np.random.default_rng(1).standard_normal((4, 3, 5))


@pytest.mark.parametrize("dilation", [1, 2, 11])
def test_a_causal_convolution_ignores_later_steps(dilation: int) -> None:
    later = np.concatenate([X[:, :6], np.full((2, 3, 3), np.nan)], axis=1)
    options = {"padding": "causal", "dilation": dilation}
    np.testing.assert_array_equal(aa.conv1d(later, WEIGHT, **options)[:, :6], aa.conv1d(X, WEIGHT, **options)[:, :6])
    out, pullback = aa.vjp(aa.conv1d, X, WEIGHT, **options)
    dx = pullback(np.where(np.arange(9)[:, None] == 5, np.ones_like(out), 0.0)).x
    np.testing.assert_array_equal(dx[:, 6:], 0)
    assert np.all(dx[:, 5] != 0)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_convolutions_in_blocks_of_sequences(inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((5, 9, inputs)), rng.standard_normal((outputs, inputs, 3))
    out, ctx = aa.conv1d_fwd(x, weight, dilation=2)
    grads = aa.conv1d_bwd(np.cos(out), ctx)
    monkeypatch.setattr(correlate, "BLOCK_SIZE", 2 * 9 * 3 * 5)  # two or three sequences at a time
    same, ctx = aa.conv1d_fwd(x, weight, dilation=2)
    np.testing.assert_allclose(same, out)
    for found, expected in zip(aa.conv1d_bwd(np.cos(out), ctx)[:2], grads[:2], strict=True):
        np.testing.assert_allclose(found, expected)


def test_width_one_is_a_linear_map() -> None:
    out, grads = convolved(X, WEIGHT[..., :1])
    expected, pullback = aa.vjp(aa.linear, X, WEIGHT[..., 0])
    linear = pullback(dout_of(expected))
    assert_trees_close([out, grads.x, grads.weight[..., 0]], [expected, linear.x, linear.weight], ROUNDING)


def test_a_dilated_convolution_is_one_with_zeros_between_the_taps() -> None:
    spread = np.zeros((4, 3, 13))
    spread[..., ::3] = WEIGHT
    for padding in ("same", "causal", 7):
        out, grads = convolved(X, WEIGHT, padding=padding, dilation=3)
        expected, its_grads = convolved(X, spread, padding=padding)
        assert_trees_close([out, grads.x, grads.weight], [expected, its_grads.x, its_grads.weight[..., ::3]], ROUNDING)


def test_paddings_belong_together() -> None:
    same = aa.conv1d(X, WEIGHT)
    np.testing.assert_array_equal(aa.conv1d(X, WEIGHT, padding=2), same)
    np.testing.assert_array_equal(aa.conv1d(X, WEIGHT, padding=0), aa.conv1d(X, WEIGHT, padding="valid"))
    assert_trees_close(aa.conv1d(X, WEIGHT, padding="valid"), same[:, 2:-2], ROUNDING)
    assert_trees_close(aa.conv1d(X, WEIGHT, padding="causal")[:, 2:], same[:, :-2], ROUNDING)
    assert_trees_close(aa.conv1d(X[:, :5], WEIGHT, padding="valid"), same[:, 2:3], ROUNDING)  # as wide as the sequence


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 9, 3), (2, 9, 0)])
def test_convolutions_of_empty_arrays(shape: tuple[int, ...], library: Library) -> None:
    weight, bias = np.ones((4, shape[-1], 5)), np.arange(4.0)
    for padding in ("same", "causal", 2):
        out, pullback = aa.vjp(aa.conv1d, *library.moved((np.ones(shape), weight, bias)), padding=padding)
        assert_trees_close(out, np.broadcast_to(bias, (*shape[:2], 4)), 0)
        assert_trees_close(pullback(out), (np.zeros(shape), np.zeros(weight.shape), bias * math.prod(shape[:2])), 0)

"""Convolution of images, and windows with strides, beyond the contract: equalities, patches, empty sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.ops.windows import Axis, fold, unfold
from tests.support.libraries import Library, assert_trees_close

ROUNDING = 1e-13  # sums of a few dozen products in another order
RNG = np.random.default_rng(0)
X, IMAGES = RNG.standard_normal((2, 9, 4)), RNG.standard_normal((2, 6, 8, 4))


def convolved(function: Any, x: np.ndarray, weight: np.ndarray, **options: Any) -> Any:
    """Output and gradients, of a cotangent that differs everywhere."""
    out, pullback = aa.vjp(function, x, weight, **options)
    return out, pullback(np.cos(np.arange(out.size)).reshape(out.shape))


@pytest.mark.parametrize("stride", [2, 3, 10])
@pytest.mark.parametrize("options", [{}, {"padding": "causal", "dilation": 2}, {"padding": 4}], ids=str)
def test_a_stride_leaves_out_steps(stride: int, options: dict[str, Any]) -> None:
    weight = RNG.standard_normal((6, 4, 3))
    out, grads = convolved(aa.conv1d, X, weight, stride=stride, **options)
    every, pullback = aa.vjp(aa.conv1d, X, weight, **options)
    dout = np.zeros_like(every)
    dout[:, ::stride] = np.cos(np.arange(out.size)).reshape(out.shape)
    expected = pullback(dout)
    assert_trees_close([out, grads.x, grads.weight], [every[:, ::stride], expected.x, expected.weight], ROUNDING)


def test_groups_are_convolutions_side_by_side() -> None:
    weight = RNG.standard_normal((6, 2, 3))
    out, grads = convolved(aa.conv1d, X, weight, groups=2)
    pulls = [aa.vjp(aa.conv1d, X[..., 2 * g : 2 * g + 2], weight[3 * g : 3 * g + 3]) for g in range(2)]
    assert_trees_close(out, np.concatenate([part for part, _ in pulls], axis=-1), ROUNDING)
    dout = np.cos(np.arange(out.size)).reshape(out.shape)
    parts = [pull(dout[..., 3 * g : 3 * g + 3]) for g, (_, pull) in enumerate(pulls)]
    assert_trees_close(grads.x, np.concatenate([part.x for part in parts], axis=-1), ROUNDING)
    assert_trees_close(grads.weight, np.concatenate([part.weight for part in parts]), ROUNDING)


def test_a_group_for_each_channel_is_the_causal_convolution() -> None:
    weight = RNG.standard_normal((4, 3))
    expected = aa.causal_conv1d(X, weight).out
    assert_trees_close(aa.conv1d(X, weight[:, None], padding="causal", groups=4), expected, ROUNDING)


def test_images_of_one_row_are_sequences() -> None:
    weight = RNG.standard_normal((6, 4, 3))
    out, grads = convolved(aa.conv2d, X[:, None], weight[:, :, None], stride=(1, 2), padding=("same", 1))
    expected, its = convolved(aa.conv1d, X, weight, stride=2, padding=1)
    assert_trees_close([out[:, 0], grads.x[:, 0], grads.weight[:, :, 0]], [expected, its.x, its.weight], ROUNDING)


def test_patches_are_a_linear_map_of_blocks() -> None:
    weight = RNG.standard_normal((5, 4, 2, 2))
    out, grads = convolved(aa.conv2d, IMAGES, weight, stride=2, padding="valid")
    blocks = IMAGES.reshape(2, 3, 2, 4, 2, 4).transpose(0, 1, 3, 5, 2, 4).reshape(2, 3, 4, 16)
    expected, its = convolved(aa.linear, blocks, weight.reshape(5, 16))
    dx = its.x.reshape(2, 3, 4, 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(IMAGES.shape)
    assert_trees_close([out, grads.x, grads.weight.reshape(5, 16)], [expected, dx, its.weight], ROUNDING)


@pytest.mark.parametrize("along", [Axis(3, 2, 1, 1, 1), Axis(2, 3, 2, 0, 0), Axis(4, 1, 2, 6, 0), Axis(2, 5, 1, 0, 3)])
@pytest.mark.parametrize("size", [0, 3, 8])
def test_fold_is_the_adjoint_of_unfold(along: Axis, size: int) -> None:
    x = RNG.standard_normal((2, size, 3))
    windows = unfold(x, 1, along)
    assert windows.shape == (2, along.steps(size), along.width, 3)
    dwindows = RNG.standard_normal(windows.shape)
    np.testing.assert_allclose(np.sum(fold(dwindows, 1, along, size) * x), np.sum(windows * dwindows), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 0, 8, 3), (0, 6, 8, 3), (2, 6, 8, 0)])
def test_convolutions_of_empty_images(shape: tuple[int, ...], library: Library) -> None:
    weight, bias = np.ones((4, shape[-1], 3, 3)), np.arange(4.0)
    out, pullback = aa.vjp(aa.conv2d, *library.moved((np.ones(shape), weight, bias)), stride=2)
    expected = np.broadcast_to(bias, (shape[0], (shape[1] + 1) // 2, 4, 4))
    assert_trees_close(out, expected, 0)
    assert_trees_close(pullback(out), (np.zeros(shape), np.zeros(weight.shape), expected.sum((0, 1, 2))), 0)


def test_a_stride_of_16_bit_numbers_is_summed_in_32() -> None:
    ones = np.ones((1, 3000, 1), "f2")  # in float16, 2048 + 1 is 2048
    assert aa.conv1d(ones, np.ones((1, 1, 3000), "f2"), padding="valid", stride=2) == 3000

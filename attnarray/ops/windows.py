"""Windows along an axis and their adjoint, and the convolution made of them: for strides, groups and images.

All arrays are of one dtype, that of the sums. What a convolution needs not, such as a stride of 1, costs nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.backend import Array, device_of, namespace_of


class Axis(NamedTuple):
    """How windows lie along an axis."""

    width: int
    stride: int
    dilation: int
    before: int  # zeros before and after
    after: int

    @property
    def reach(self) -> int:
        """The distance between the first and the last tap."""
        return (self.width - 1) * self.dilation

    def steps(self, size: int) -> int:
        """The number of windows along an axis of `size` numbers."""
        return max(0, (size + self.before + self.after - self.reach - 1) // self.stride + 1)


def pad(x: Array, axis: int, before: int, after: int) -> Any:
    """X with zeros before and after it along an axis."""
    if not (before or after):
        return x
    xp, shape = namespace_of(x), x.shape
    zeros = [
        xp.zeros((*shape[:axis], count, *shape[axis + 1 :]), dtype=x.dtype, device=device_of(x))
        for count in (before, after)
    ]
    return xp.concat([zeros[0], x, zeros[1]], axis=axis)


def unfold(x: Array, axis: int, along: Axis) -> Any:
    """The windows along an axis: (..., S, ...) -> (..., T, K, ...)."""
    padded, steps = pad(x, axis, along.before, along.after), along.steps(x.shape[axis])
    past = along.stride * (steps - 1) + 1
    taps = [
        _part(padded, axis, slice(k * along.dilation, k * along.dilation + past, along.stride) if steps else slice(0))
        for k in range(along.width)
    ]
    return namespace_of(x).stack(taps, axis=axis + 1)


def fold(windows: Array, axis: int, along: Axis, size: int) -> Any:
    """The adjoint of `unfold`: each number of the axis is the sum over its windows, (..., T, K, ...) -> (..., S, ...).

    A tap lies at one remainder of the stride, so the sums of each remainder are sums of shifted arrays.
    """
    xp, stride, steps = namespace_of(windows), along.stride, windows.shape[axis]
    length = -(-(size + along.before + along.after) // stride)
    shape = (*windows.shape[:axis], length, *windows.shape[axis + 2 :])
    sums: list[Any] = [None] * stride
    for k in range(along.width):
        shift, remainder = divmod(k * along.dilation, stride)
        tap = _part(windows, axis + 1, k)
        tap = pad(tap, axis, min(shift, length - steps), length - steps - min(shift, length - steps))
        sums[remainder] = tap if sums[remainder] is None else sums[remainder] + tap
    zeros = xp.zeros(shape, dtype=windows.dtype, device=device_of(windows))
    out = xp.stack([zeros if part is None else part for part in sums], axis=axis + 1)  # (..., length, stride, ...)
    out = xp.reshape(out, (*shape[:axis], length * stride, *shape[axis + 1 :]))
    return _part(out, axis, slice(along.before, along.before + size))


def convolve(x: Array, weight: Array, bias: Array | None, axes: tuple[Axis, Axis], groups: int) -> Any:
    """The convolution (N, H', W', O) of images (N, H, W, C), with a weight (O, C / groups, K, L)."""
    xp = namespace_of(x)
    columns, shape = _columns(x, axes, groups)
    out = xp.matmul(columns, _by_column(weight, groups).mT)  # (G, N H' W', O / G)
    out = xp.reshape(xp.permute_dims(out, (1, 0, 2)), (*shape, weight.shape[0]))
    return out if bias is None else out + bias


def convolve_backward(
    dy: Array, x: Array, weight: Array, axes: tuple[Axis, Axis], groups: int
) -> tuple[Array, Array, Array]:
    """The gradients of images, weight and bias, with rows of windows X and of cotangents dY in each group.

    dX = dY W, dW = dY^T X, db = sum of dY, and the windows of dX are added where they overlap.
    """
    xp, (outputs, _, K, L) = namespace_of(x), weight.shape
    columns, (N, down, across) = _columns(x, axes, groups)
    rows = xp.permute_dims(
        xp.reshape(dy, (N * down * across, groups, outputs // groups)), (1, 0, 2)
    )  # (G, N H' W', O / G)
    dcolumns = xp.matmul(rows, _by_column(weight, groups))  # (G, N H' W', K L C / G)
    dcolumns = xp.reshape(dcolumns, (groups, N, down, across, K, L, x.shape[3] // groups))
    dcolumns = xp.permute_dims(dcolumns, (1, 2, 4, 3, 5, 0, 6))  # (N, H', K, W', L, G, C / G)
    dcolumns = xp.reshape(dcolumns, (N, down, K, across, L, x.shape[3]))
    dx = fold(fold(dcolumns, 3, axes[1], x.shape[2]), 1, axes[0], x.shape[1])  # (N, H, W, C)
    dweight = xp.reshape(xp.matmul(rows.mT, columns), (outputs, K, L, x.shape[3] // groups))
    return dx, xp.permute_dims(dweight, (0, 3, 1, 2)), xp.sum(dy, axis=(0, 1, 2))


def _columns(x: Array, axes: tuple[Axis, Axis], groups: int) -> tuple[Any, tuple[int, int, int]]:
    """The windows of images as rows (G, N H' W', K L C / G), and (N, H', W')."""
    xp = namespace_of(x)
    windows = unfold(unfold(x, 1, axes[0]), 3, axes[1])  # (N, H', K, W', L, C)
    N, down, K, across, L, C = windows.shape
    windows = xp.reshape(windows, (N, down, K, across, L, groups, C // groups))
    windows = xp.permute_dims(windows, (5, 0, 1, 3, 2, 4, 6))  # (G, N, H', W', K, L, C / G)
    return xp.reshape(windows, (groups, N * down * across, K * L * (C // groups))), (N, down, across)


def _by_column(weight: Array, groups: int) -> Any:
    """(O, C / G, K, L) -> (G, O / G, K L C / G)"""
    xp, outputs = namespace_of(weight), weight.shape[0]
    return xp.reshape(xp.permute_dims(weight, (0, 2, 3, 1)), (groups, outputs // groups, math.prod(weight.shape[1:])))


def _part(x: Array, axis: int, index: int | slice) -> Any:
    return x[(*(slice(None),) * axis, index, ...)]

"""Convolution over images with channels last."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.ops.conv1d import Padding, axis_windows, check_arrays, wide
from attnarray.ops.windows import Axis, convolve, convolve_backward


class Conv2dContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    has_bias: bool
    axes: tuple[Axis, Axis]  # along height and width
    groups: int


class Conv2dGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    bias: ArrayT | None


def conv2d(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    padding: Padding | int | tuple[int, int] = "same",
    dilation: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
) -> ArrayT:
    r"""Convolution over images with channels last; as in PyTorch a cross-correlation, the weight is not flipped.

    .. math:: y_{ijo} = b_o + \sum_{kl} \sum_c W_{ockl}\, x_{i s - p + k d,\; j s - p + l d,\; c}

    with stride s, dilation d, p zeros on each side, and x = 0 outside of the image. With G groups, the first C_out / G
    outputs take the first C_in / G channels, and so on. Patches of size P are embedded by a weight (E, C_in, P, P) with
    stride P and padding "valid".

    Parameters
    ----------
    x : (*batch, H, W, C_in) floating
        16-bit types are computed in float32.
    weight : (C_out, C_in / groups, height, width) of the same dtype
    bias : (C_out,) of the same dtype, optional
    padding : {"same", "causal", "valid"}, int >= 0 or two of them
        For height and width, as in `conv1d`.
    dilation, stride : int >= 1, or two of them
        For height and width: the distance between the taps, and between the windows.
    groups : int >= 1
        Must divide C_in and C_out; with C_in groups each channel is convolved by itself.

    Returns
    -------
    (*batch, H', W', C_out) array of the same dtype
        The sizes follow from those of x as in `conv1d`.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together, the image is smaller than a window, or an option is unknown.

    References
    ----------
    LeCun et al., "Backpropagation applied to handwritten zip code recognition", Neural Computation 1, 1989; groups of
    single channels: Chollet, "Xception: deep learning with depthwise separable convolutions", 2016, arXiv:1610.02357.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.arange(16.0).reshape(4, 4, 1)
    >>> aa.conv2d(x, np.ones((1, 1, 2, 2)), stride=2, padding="valid")[..., 0].tolist()
    [[10.0, 18.0], [42.0, 50.0]]
    """
    return conv2d_fwd(x, weight, bias, padding=padding, dilation=dilation, stride=stride, groups=groups)[0]


def conv2d_fwd(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    padding: Padding | int | tuple[int, int] = "same",
    dilation: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[ArrayT, Conv2dContext[ArrayT]]:
    """`conv2d` and the context for `conv2d_bwd`: x and the weight."""
    check_arrays(x, weight, bias, groups, ("H", "W"))
    options = zip(*(_pair(name, option) for name, option in
                    (("stride", stride), ("dilation", dilation), ("padding", padding))), strict=True)  # fmt: skip
    along = [axis_windows(what, x.shape[n - 3], weight.shape[n + 2], *given)
             for n, (what, given) in enumerate(zip(("rows", "columns"), options, strict=True))]  # fmt: skip
    axes, xp = (along[0], along[1]), namespace_of(x)
    out = convolve(_images(x), wide(weight), None if bias is None else wide(bias), axes, int(groups))
    out = xp.reshape(xp.astype(out, x.dtype, copy=False), (*x.shape[:-3], *out.shape[1:]))
    return out, Conv2dContext(x, weight, bias is not None, axes, int(groups))


def conv2d_bwd(dout: Array, ctx: Conv2dContext[ArrayT]) -> Conv2dGrads[ArrayT]:
    r"""The gradient of the convolution, with n over all batch axes.

    .. math::
        dx_{nrqc} = \sum_{klo} W_{ockl} \sum_{(i, j)} dy_{nijo}, \qquad
        dW_{ockl} = \sum_{nij} dy_{nijo}\, x_{n,\, i s - p + k d,\, j s - p + l d,\, c}, \qquad
        db_o = \sum_{nij} dy_{nijo}

    where the inner sum is over windows of which tap (k, l) lies at (r, q): i s - p + k d = r and j s - p + l d = q. In
    groups, o and c are of the same one.
    """
    checks.context("ctx", ctx, Conv2dContext)
    x, weight = ctx.x, ctx.weight
    down, across = (along.steps(size) for along, size in zip(ctx.axes, x.shape[-3:-1], strict=True))
    xp = checks.cotangent(dout, (*x.shape[:-3], down, across, weight.shape[0]), x)
    dx, dweight, dbias = convolve_backward(_images(dout), _images(x), wide(weight), ctx.axes, ctx.groups)
    dx = xp.reshape(xp.astype(dx, x.dtype, copy=False), x.shape)
    bias = xp.astype(dbias, x.dtype, copy=False) if ctx.has_bias else None
    return Conv2dGrads(dx, xp.astype(dweight, x.dtype, copy=False), bias)


def _images(x: Array) -> Any:
    """(*batch, H, W, C) -> (N, H, W, C) in the dtype of the sums."""
    return namespace_of(x).reshape(wide(x), (math.prod(x.shape[:-3]), *x.shape[-3:]))


def _pair(name: str, option: Any) -> tuple[Any, Any]:
    """An option of height and width."""
    if not isinstance(option, tuple | list):
        return option, option
    if len(option) != 2:
        raise ValueError(f"`{name}` is {checks.shown(option)}, expected one value, or two: of height and width.")
    return option[0], option[1]

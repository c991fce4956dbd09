"""Convolution over a sequence with channels last."""

from __future__ import annotations

import math
from typing import Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, namespace_of
from attnarray.ops.correlate import correlate, correlate_weight_gradient
from attnarray.ops.windows import Axis, convolve, convolve_backward, pad

Padding = Literal["same", "causal", "valid"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)
POINT = Axis(1, 1, 1, 0, 0)  # windows of one number


class Conv1dContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    has_bias: bool
    along: Axis
    groups: int


class Conv1dGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    bias: ArrayT | None


def conv1d(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    padding: Padding | int = "same",
    dilation: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> ArrayT:
    r"""Convolution over a sequence with channels last; as in PyTorch a cross-correlation, the weight is not flipped.

    .. math:: y_{to} = b_o + \sum_{k=0}^{K-1} \sum_c W_{ock}\, x_{t s - p + k d,\, c}

    with width K, stride s, dilation d, p zeros before the sequence, and x = 0 outside of it. With G groups, the first
    C_out / G outputs take the first C_in / G channels, and so on.

    Parameters
    ----------
    x : (*batch, T, C_in) floating
        16-bit types are computed in float32.
    weight : (C_out, C_in / groups, width) of the same dtype
    bias : (C_out,) of the same dtype, optional
        Added to the output of every step.
    padding : {"same", "causal", "valid"} or int >= 0
        "same": windows are centered at their step, for odd widths. "causal": that of step t is
        x[t - (width - 1) dilation] to x[t]. "valid": no zeros. An integer: the number of zeros on both sides.
    dilation : int >= 1
        The distance between the taps.
    stride : int >= 1
        The distance between the windows; outputs are those of steps 0, stride, 2 stride, ... of stride 1.
    groups : int >= 1
        Must divide C_in and C_out; with C_in groups each channel is convolved by itself.

    Returns
    -------
    (*batch, T', C_out) array of the same dtype
        T' = ceil(T / stride) for "same" and "causal", else floor((T + 2 padding - (width - 1) dilation - 1) / stride)
        + 1, with padding 0 for "valid".

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together, the sequence is shorter than a window, or an option is unknown.

    References
    ----------
    Waibel et al., "Phoneme recognition using time-delay neural networks", 1989; causal and dilated: van den Oord et
    al., "WaveNet: a generative model for raw audio", 2016, arXiv:1609.03499.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, weight = np.array([[1.0], [2.0], [4.0]]), np.array([[[1.0, 1.0, 1.0]]])
    >>> aa.conv1d(x, weight).tolist(), aa.conv1d(x, weight, padding="causal").tolist()
    ([[3.0], [7.0], [6.0]], [[1.0], [3.0], [7.0]])
    """
    return conv1d_fwd(x, weight, bias, padding=padding, dilation=dilation, stride=stride, groups=groups)[0]


def conv1d_fwd(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    padding: Padding | int = "same",
    dilation: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> tuple[ArrayT, Conv1dContext[ArrayT]]:
    """`conv1d` and the context for `conv1d_bwd`: x and the weight."""
    check_arrays(x, weight, bias, groups, ("T",))
    along = axis_windows("steps", x.shape[-2], weight.shape[2], stride, dilation, padding)
    xp, sequences, wide_weight = namespace_of(x), _sequences(x), wide(weight)
    wide_bias = None if bias is None else wide(bias)
    if _is_plain(along, groups):
        padded = pad(sequences, 1, along.before, along.after)
        out = correlate(padded, wide_weight, wide_bias, along.dilation)  # (N, T', C_out)
    else:
        out = convolve(*_as_images(sequences, wide_weight), wide_bias, (POINT, along), groups)[:, 0, :, :]
    out = xp.reshape(xp.astype(out, x.dtype, copy=False), (*x.shape[:-2], *out.shape[1:]))  # (*batch, T', C_out)
    return out, Conv1dContext(x, weight, bias is not None, along, int(groups))


def conv1d_bwd(dout: Array, ctx: Conv1dContext[ArrayT]) -> Conv1dGrads[ArrayT]:
    r"""The gradient of the convolution, with n over all batch axes.

    .. math::
        dx_{nrc} = \sum_{ko} W_{ock} \sum_{t:\, t s - p + k d = r} dy_{nto}, \qquad
        dW_{ock} = \sum_{nt} dy_{nto}\, x_{n,\, t s - p + k d,\, c}, \qquad db_o = \sum_{nt} dy_{nto}

    The first is, for stride 1, a convolution of dy with the flipped weight. In groups, o and c are of the same one.
    """
    checks.context("ctx", ctx, Conv1dContext)
    x, weight, along = ctx.x, ctx.weight, ctx.along
    T, width = x.shape[-2], weight.shape[2]
    xp = checks.cotangent(dout, (*x.shape[:-2], along.steps(T), weight.shape[0]), x)
    dy, sequences = _sequences(dout), _sequences(x)  # (N, T', C_out) and (N, T, C_in)
    if _is_plain(along, ctx.groups):
        flipped = xp.permute_dims(xp.flip(wide(weight), axis=2), (1, 0, 2))  # (C_in, C_out, width)
        dpadded = correlate(pad(dy, 1, along.reach, along.reach), flipped, None, along.dilation)
        dx = dpadded[:, along.before : along.before + T, :]  # (N, T, C_in)
        padded = pad(sequences, 1, along.before, along.after)
        dweight = correlate_weight_gradient(dy, padded, width, along.dilation)  # (C_out, C_in, width)
        dbias = xp.sum(dy, axis=(0, 1))
    else:
        images = _as_images(sequences, wide(weight))
        dx, dweight, dbias = convolve_backward(dy[:, None, :, :], *images, (POINT, along), ctx.groups)
        dx, dweight = dx[:, 0, :, :], dweight[:, :, 0, :]
    dx = xp.reshape(xp.astype(dx, x.dtype, copy=False), x.shape)
    dbias = xp.astype(dbias, x.dtype, copy=False) if ctx.has_bias else None
    return Conv1dGrads(dx, xp.astype(dweight, x.dtype, copy=False), dbias)


def _is_plain(along: Axis, groups: int) -> bool:
    """Whether the convolution is one correlation, which has kernels."""
    return along.stride == 1 and groups == 1


def _as_images(x: Array, weight: Array) -> tuple[Array, Array]:
    """Sequences (N, T, C) and their weight as images of height 1."""
    return x[:, None, :, :], weight[:, :, None, :]


def _sequences(x: Array) -> Array:
    """(*batch, T, C) -> (N, T, C) in the dtype of the sums."""
    return namespace_of(x).reshape(wide(x), (math.prod(x.shape[:-2]), *x.shape[-2:]))


def wide(array: Array) -> Array:
    """`array` in the dtype of the sums."""
    xp = namespace_of(array)
    return xp.astype(array, accumulator_dtype(xp, array.dtype), copy=False)


def check_arrays(x: Array, weight: Array, bias: Array | None, groups: int, axes: tuple[str, ...]) -> None:
    """Check the arrays and groups of a convolution along `axes`, ("T",) or ("H", "W")."""
    checks.required(x=x, weight=weight)
    checks.namespace(x=x, weight=weight, bias=bias)
    checks.floating(x=x, weight=weight, bias=bias)
    count = checks.whole("groups", groups, 1, 2**31, "the groups of channels")
    shapes = checks.shapes(x=x, weight=weight)
    widths, inputs = "width" if len(axes) == 1 else "height, width", "C_in" if count == 1 else f"C_in / {count}"
    of_x, of_weight = f"(*batch, {', '.join(axes)}, C_in), channels last, and", f"(C_out, {inputs}, {widths})"
    if x.ndim < len(axes) + 1 or weight.ndim != len(axes) + 2:
        raise ValueError(
            f"`x` and `weight` have {x.ndim} and {weight.ndim} axes, expected {of_x} {of_weight}. {shapes}"
        )
    if x.shape[-1] != weight.shape[1] * count:
        raise ValueError(
            f"`x` has {x.shape[-1]} channels but `weight` takes {weight.shape[1] * count}; they must match. "
            f"`x` is {of_x} `weight` {of_weight}. {shapes}"
        )
    if weight.shape[0] % count:
        raise ValueError(f"`groups` ({count}) must divide the {weight.shape[0]} outputs of `weight`. {shapes}")
    if 0 in weight.shape[2:]:
        raise ValueError(f"`weight` has no taps, expected {of_weight} with at least one. {shapes}")
    if bias is not None:
        because = f"one number per output channel of `weight`, which has shape {tuple(weight.shape)}"
        checks.shape("bias", bias, (weight.shape[0],), because)


def axis_windows(what: str, size: int, width: int, stride: int, dilation: int, padding: Padding | int) -> Axis:
    """The windows along an axis of `size` steps, rows or columns."""
    dilation = checks.whole("dilation", dilation, 1, 2**31, "the distance between the taps")
    stride = checks.whole("stride", stride, 1, 2**31, "the distance between the windows")
    reach = (width - 1) * dilation
    number = checks.integral(padding)
    if number is None and (not isinstance(padding, str) or padding not in PADDINGS):
        raise ValueError(
            f"`padding` is {checks.shown(padding)}, expected 'same', 'causal', 'valid' or an integer >= 0: the zeros "
            "on both sides."
        )
    if number is not None and number < 0:
        raise ValueError(f"`padding` is {number}, expected an integer >= 0: the zeros on both sides.")
    if padding == "same" and width % 2 == 0:
        raise ValueError(
            f"`padding` is 'same', but a `weight` of even width ({width}) has no center. Use an odd width, "
            "padding='causal', or an integer: the zeros on both sides."
        )
    named = {"same": (reach // 2, reach // 2), "causal": (reach, 0), "valid": (0, 0)}
    before, after = (number, number) if number is not None else named[str(padding)]
    if size + before + after - reach < min(size, 1):
        raise ValueError(
            f"`x` has {size} {what} and {before + after} zeros around them, but the windows of `weight` have "
            f"{reach + 1} {what} ((width - 1) dilation + 1). Use padding='same' or 'causal', or a larger `x`."
        )
    return Axis(width, stride, dilation, before, after)

"""Convolution over a sequence with channels last."""

from __future__ import annotations

import math
from typing import Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.ops.correlate import correlate, correlate_weight_gradient

Padding = Literal["same", "causal", "valid"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)


class Conv1dContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    has_bias: bool
    zeros: tuple[int, int]  # before and after the sequence
    dilation: int


class Conv1dGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    bias: ArrayT | None


def conv1d(
    x: ArrayT, weight: ArrayT, bias: ArrayT | None = None, *, padding: Padding | int = "same", dilation: int = 1
) -> ArrayT:
    r"""Convolution over a sequence with channels last; as in PyTorch a cross-correlation, the weight is not flipped.

    .. math:: y_{to} = b_o + \sum_{k=0}^{K-1} \sum_c W_{ock}\, x_{t - p + k d,\, c}

    with width K, dilation d, p zeros before the sequence, and x = 0 outside of it.

    Parameters
    ----------
    x : (*batch, T, C_in) floating
        16-bit types are computed in float32.
    weight : (C_out, C_in, width) of the same dtype
    bias : (C_out,) of the same dtype, optional
        Added to the output of every step.
    padding : {"same", "causal", "valid"} or int >= 0
        "same": windows are centered at their step, for odd widths. "causal": that of step t is
        x[t - (width - 1) dilation] to x[t]. "valid": no zeros. An integer: the number of zeros on both sides.
    dilation : int >= 1
        The distance between the taps.

    Returns
    -------
    (*batch, T', C_out) array of the same dtype
        T' = T for "same" and "causal", else T + 2 padding - (width - 1) dilation, with padding 0 for "valid".

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
    return conv1d_fwd(x, weight, bias, padding=padding, dilation=dilation)[0]


def conv1d_fwd(
    x: ArrayT, weight: ArrayT, bias: ArrayT | None = None, *, padding: Padding | int = "same", dilation: int = 1
) -> tuple[ArrayT, Conv1dContext[ArrayT]]:
    """`conv1d` and the context for `conv1d_bwd`: x and the weight."""
    _check_arrays(x, weight, bias)
    dilation = _distance(dilation)
    before, after = _zeros(padding, x, weight, dilation)
    xp = namespace_of(x)
    wide_bias = None if bias is None else _wide(bias)
    out = correlate(_padded(_sequences(x), before, after), _wide(weight), wide_bias, dilation)  # (N, T', C_out)
    out = xp.reshape(xp.astype(out, x.dtype, copy=False), (*x.shape[:-2], *out.shape[1:]))  # (*batch, T', C_out)
    return out, Conv1dContext(x, weight, bias is not None, (before, after), dilation)


def conv1d_bwd(dout: Array, ctx: Conv1dContext[ArrayT]) -> Conv1dGrads[ArrayT]:
    r"""The gradient of the convolution, with n over all batch axes.

    .. math::
        dx_{nsc} = \sum_{ko} W_{ock}\, dy_{n,\, s + p - k d,\, o}, \qquad
        dW_{ock} = \sum_{nt} dy_{nto}\, x_{n,\, t - p + k d,\, c}, \qquad db_o = \sum_{nt} dy_{nto}

    The first is a convolution of dy with the flipped weight.
    """
    checks.context("ctx", ctx, Conv1dContext)
    x, weight, d = ctx.x, ctx.weight, ctx.dilation
    T, width = x.shape[-2], weight.shape[2]
    reach = (width - 1) * d
    steps = T + sum(ctx.zeros) - reach
    xp = checks.cotangent(dout, (*x.shape[:-2], steps, weight.shape[0]), x)
    dy = _sequences(dout)  # (N, T', C_out)
    flipped = xp.permute_dims(xp.flip(_wide(weight), axis=2), (1, 0, 2))  # (C_in, C_out, width)
    dpadded = correlate(_padded(dy, reach, reach), flipped, None, d)
    dx = dpadded[:, ctx.zeros[0] : ctx.zeros[0] + T, :]  # (N, T, C_in)
    dweight = correlate_weight_gradient(dy, _padded(_sequences(x), *ctx.zeros), width, d)  # (C_out, C_in, width)
    dbias = xp.astype(xp.sum(dy, axis=(0, 1)), x.dtype, copy=False) if ctx.has_bias else None
    dx = xp.reshape(xp.astype(dx, x.dtype, copy=False), x.shape)
    return Conv1dGrads(dx, xp.astype(dweight, x.dtype, copy=False), dbias)


def _padded(x: Array, before: int, after: int) -> Array:
    """(N, T, C) with zeros before and after the sequence."""
    xp = namespace_of(x)
    N, _, C = x.shape
    parts = [xp.zeros((N, zeros, C), dtype=x.dtype, device=device_of(x)) for zeros in (before, after)]
    return xp.concat([parts[0], x, parts[1]], axis=1) if before or after else x


def _sequences(x: Array) -> Array:
    """(*batch, T, C) -> (N, T, C) in the dtype of the sums."""
    xp = namespace_of(x)
    return xp.reshape(_wide(x), (math.prod(x.shape[:-2]), *x.shape[-2:]))


def _wide(array: Array) -> Array:
    xp = namespace_of(array)
    return xp.astype(array, accumulator_dtype(xp, array.dtype), copy=False)


def _check_arrays(x: Array, weight: Array, bias: Array | None) -> None:
    checks.required(x=x, weight=weight)
    checks.namespace(x=x, weight=weight, bias=bias)
    checks.floating(x=x, weight=weight, bias=bias)
    shapes = checks.shapes(x=x, weight=weight)
    if x.ndim < 2 or weight.ndim != 3:
        raise ValueError(
            f"`x` and `weight` have {x.ndim} and {weight.ndim} axes, expected (*batch, T, C_in) and "
            f"(C_out, C_in, width). {shapes}"
        )
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"`x` has {x.shape[-1]} channels but `weight` takes {weight.shape[1]}; they must match. "
            f"`x` is (*batch, T, C_in), channels last, and `weight` (C_out, C_in, width). {shapes}"
        )
    if weight.shape[2] == 0:
        raise ValueError(f"`weight` has width 0, expected (C_out, C_in, width) with at least one tap. {shapes}")
    if bias is not None:
        because = f"one number per output channel of `weight`, which has shape {tuple(weight.shape)}"
        checks.shape("bias", bias, (weight.shape[0],), because)


def _distance(dilation: int) -> int:
    number = checks.integral(dilation)
    if number is None or number < 1:
        raise ValueError(
            f"`dilation` is {checks.shown(dilation)}, expected an integer >= 1: the distance between the taps."
        )
    return number


def _zeros(padding: Padding | int, x: Array, weight: Array, dilation: int) -> tuple[int, int]:
    """The numbers of zeros before and after the sequence."""
    T, width = x.shape[-2], weight.shape[2]
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
    if T + before + after - reach < min(T, 1):
        raise ValueError(
            f"`x` has {T} steps and {before + after} zeros around them, but the windows of `weight` have "
            f"{reach + 1} steps ((width - 1) dilation + 1). Use padding='same' or 'causal', or a longer sequence. "
            f"{checks.shapes(x=x, weight=weight)}"
        )
    return before, after

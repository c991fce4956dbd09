"""Shifted window attention (Swin): each window of a line, an image or a volume is a sequence of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.spatial.axes import check_grid, count, each_axis
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.segments import sum_segments


class Windows(NamedTuple):
    """The windows of a grid, a number for each axis of positions."""

    size: tuple[int, ...]
    window_size: tuple[int, ...]
    shift: tuple[int, ...]


class ShiftedWindowContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: that of the attention in the windows, the windows, and the shape of the bias."""

    attention: SDPAContext[ArrayT]
    windows: Windows
    out_shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None


class ShiftedWindowGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    relative_bias: ArrayT | None


def shifted_window_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    window_size: int | Sequence[int],
    relative_bias: ArrayT | None = None,
    *,
    shift: int | Sequence[int] = 0,
    scale: float | None = None,
) -> ArrayT:
    r"""Attention within windows that do not overlap, and that are shifted in every other layer.

    .. math::
        o_i = \sum_{j \in w(i)} p_{ij} v_j, \qquad
        p_i = \mathrm{softmax}_{j \in w(i)}(\mathrm{scale}\; q_i \cdot k_j + b_{i - j})

    where w(i) are the positions of the window of i. Shifted windows begin `shift` later; what is left over at both ends
    of an axis are smaller windows, which the paper computes together as one of full size with a mask ("cyclic shift").

    Parameters
    ----------
    query : (B, T, heads, D), (B, H, W, heads, D) or (B, Z, H, W, heads, D) floating
        The 16-bit types are computed in float32.
    key : the shape of query
    value : (B, *size, heads, Dv)
    window_size : int or one for each axis
        M, which divides the size of the axis.
    relative_bias : (heads, 2 M - 1, ...), optional
        b: entry query - key + M - 1 along each axis is added to the score. Of a published table ((2 M - 1)^2, heads) it
        is `table.T.reshape(heads, 2 * M - 1, 2 * M - 1)`.
    shift : int or one for each axis
        From 0 to M - 1; M // 2 in the paper. An axis that is one window is not shifted.
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (B, *size, heads, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit, a window does not divide its axis, or a shift is not below it.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Liu et al., "Swin transformer", 2021, arXiv:2103.14030.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> line = np.eye(6)[None, :, None, :]  # position i has the value e_i: the output shows the weights
    >>> aa.shifted_window_attention(0 * line, line, line, 3, shift=1)[0, :, 0].round(2)
    array([[1.  , 0.  , 0.  , 0.  , 0.  , 0.  ],
           [0.  , 0.33, 0.33, 0.33, 0.  , 0.  ],
           [0.  , 0.33, 0.33, 0.33, 0.  , 0.  ],
           [0.  , 0.33, 0.33, 0.33, 0.  , 0.  ],
           [0.  , 0.  , 0.  , 0.  , 0.5 , 0.5 ],
           [0.  , 0.  , 0.  , 0.  , 0.5 , 0.5 ]])
    """
    return writable(
        shifted_window_attention_fwd(query, key, value, window_size, relative_bias, shift=shift, scale=scale)[0]
    )


@ignoring_fp_errors
def shifted_window_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    window_size: int | Sequence[int],
    relative_bias: ArrayT | None = None,
    *,
    shift: int | Sequence[int] = 0,
    scale: float | None = None,
) -> tuple[ArrayT, ShiftedWindowContext[ArrayT]]:
    """`shifted_window_attention`, with the same options, and the context for its backward."""
    size = check_grid(query, key, value, relative_bias=relative_bias)
    windows = _checked(size, window_size, shift)
    bias, T = None, math.prod(windows.window_size)
    if relative_bias is not None:
        expected = (query.shape[-2], *(2 * width - 1 for width in windows.window_size))
        checks.shape("relative_bias", relative_bias, expected, "(heads, 2 window_size - 1 of each axis)")
        xp = namespace_of(relative_bias)
        flat = xp.reshape(relative_bias, (expected[0], math.prod(expected[1:])))
        bias = xp.reshape(xp.take(flat, _relative(windows, query), axis=1), (expected[0], T, T))
    q, k, v = (_split(x, windows) for x in (query, key, value))  # (B, windows, T, heads, D)
    mask = _mask(windows, query)
    out, attention = scaled_dot_product_attention_fwd(q, k, v, mask, bias=bias, scale=scale, layout="BTHD")
    bias_shape = None if relative_bias is None else tuple(relative_bias.shape)
    ctx = ShiftedWindowContext(attention, windows, tuple(value.shape), bias_shape)
    return read_only(_joined(out, windows)), ctx


@ignoring_fp_errors
def shifted_window_attention_bwd(dout: Array, ctx: ShiftedWindowContext[ArrayT]) -> ShiftedWindowGrads[ArrayT]:
    r"""The gradients of shifted window attention: those of each window, moved back.

    .. math::
        ds_{ij} = p_{ij} (do_i \cdot v_j - do_i \cdot o_i), \qquad dq_i = \mathrm{scale} \sum_{j \in w(i)} ds_{ij} k_j,
        \qquad dk_j = \mathrm{scale} \sum_{i \in w(j)} ds_{ij} q_i

    .. math:: dv_j = \sum_{i \in w(j)} p_{ij}\, do_i, \qquad db_\delta = \sum_{i - j = \delta} ds_{ij}

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : ShiftedWindowContext

    Returns
    -------
    ShiftedWindowGrads
        query, key, value, relative_bias (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> line = np.random.default_rng(0).standard_normal((1, 6, 2, 4))
    >>> out, ctx = aa.shifted_window_attention_fwd(line, line, line, 3, np.zeros((2, 5)), shift=1)
    >>> aa.shifted_window_attention_bwd(np.ones_like(out), ctx).relative_bias.shape
    (2, 5)
    """
    checks.context("ctx", ctx, ShiftedWindowContext)
    attention, windows, out_shape, bias_shape = ctx
    checks.cotangent(dout, out_shape, attention.q)
    *grads, dpairs, _ = scaled_dot_product_attention_bwd(_split(dout, windows), attention)
    dq, dk, dv = (_joined(grad, windows) for grad in grads)
    return ShiftedWindowGrads(dq, dk, dv, None if bias_shape is None else _sum_pairs(dpairs, windows, bias_shape))


def _sum_pairs(dpairs: Any, windows: Windows, shape: tuple[int, ...]) -> Any:
    """The gradient of the relative bias from that of all pairs (heads, T, T)."""
    xp, count = namespace_of(dpairs), math.prod(shape[1:])
    pairs = xp.reshape(dpairs, (shape[0], dpairs.shape[1] * dpairs.shape[2], 1))
    return xp.reshape(sum_segments(pairs, _relative(windows, dpairs), count), shape)


def _split(x: Array, windows: Windows) -> Any:
    """(B, *size, heads, D), rolled so that windows begin at 0, as (B, windows, T, heads, D)."""
    xp, n = namespace_of(x), len(windows.size)
    x = xp.roll(x, tuple(-step for step in windows.shift), axis=tuple(range(1, n + 1)))
    pairs = [number for size, width in zip(*windows[:2], strict=True) for number in (size // width, width)]
    x = xp.reshape(x, (x.shape[0], *pairs, *x.shape[-2:]))
    x = xp.permute_dims(x, (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1, 2 * n + 2))
    T = math.prod(windows.window_size)
    return xp.reshape(x, (x.shape[0], math.prod(windows.size) // T, T, *x.shape[-2:]))


def _joined(x: Array, windows: Windows) -> Any:
    """The inverse of `_split`."""
    xp, n = namespace_of(x), len(windows.size)
    numbers = (size // width for size, width in zip(*windows[:2], strict=True))
    x = xp.reshape(x, (x.shape[0], *numbers, *windows.window_size, *x.shape[-2:]))
    axes = [axis for number in range(1, n + 1) for axis in (number, n + number)]
    x = xp.permute_dims(x, (0, *axes, 2 * n + 1, 2 * n + 2))
    x = xp.reshape(x, (x.shape[0], *windows.size, *x.shape[-2:]))
    return xp.roll(x, windows.shift, axis=tuple(range(1, n + 1)))


def _mask(windows: Windows, like: Array) -> Any:
    """Which pairs of a window are of one window before the cyclic shift: (windows, 1, T, T); None if all are."""
    if not any(windows.shift):
        return None
    xp = namespace_of(like)
    dtype, device = index_dtype(xp, like), device_of(like)
    labels = xp.zeros((1,) * (len(windows.size) + 3), dtype=dtype, device=device)
    for axis, (size, shift) in enumerate(zip(windows.size, windows.shift, strict=True)):
        # The last `shift` positions of the rolled axis were at its beginning.
        label = xp.astype(xp.arange(size, dtype=dtype, device=device) >= size - shift, dtype)
        labels = 2 * labels + xp.reshape(label, tuple(size if n == axis + 1 else 1 for n in range(labels.ndim)))
    labels = _split(labels, windows._replace(shift=(0,) * len(windows.size)))[0, :, :, 0, 0]
    return (labels[:, :, None] == labels[:, None, :])[:, None, :, :]


def _relative(windows: Windows, like: Array) -> Any:
    """For each pair of positions of a window, in row-major order, its entry of the flat bias."""
    xp = namespace_of(like)
    dtype, device = index_dtype(xp, like), device_of(like)
    own, stride = xp.arange(math.prod(windows.window_size), dtype=dtype, device=device), math.prod(windows.window_size)
    entries = xp.zeros((stride, stride), dtype=dtype, device=device)
    for width in windows.window_size:
        stride //= width
        along = own // stride % width
        entries = (2 * width - 1) * entries + along[:, None] - along[None, :] + width - 1
    return xp.reshape(entries, (-1,))


def _checked(size: tuple[int, ...], window_size: Any, shift: Any) -> Windows:
    widths = each_axis("window_size", window_size, size, count("the positions of a window along an axis"))
    shifts = each_axis("shift", shift, size, count("the positions that windows are moved by", 0))
    for axis, (positions, width, step) in enumerate(zip(size, widths, shifts, strict=True)):
        if width > positions or positions % width:
            raise ValueError(
                f"`window_size` ({width}) must divide the {positions} positions along axis {axis} of {size}. Pad the "
                "arrays, or use another window."
            )
        if step >= width:
            raise ValueError(
                f"`shift` ({step}) must be less than `window_size` ({width}) along axis {axis}: a shift by a whole "
                "window changes nothing."
            )
    one = zip(size, widths, shifts, strict=True)
    return Windows(size, widths, tuple(0 if width == positions else step for positions, width, step in one))

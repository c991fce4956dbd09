"""Softmax and log-softmax over one axis, with a mask that says which entries exist."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import read_only


class SoftmaxContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT
    axis: int


class SoftmaxGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def softmax(x: ArrayT, axis: int = -1, *, mask: Array | None = None) -> ArrayT:
    r"""Softmax over `axis`.

    .. math:: y_i = \frac{m_i e^{x_i}}{\sum_j m_j e^{x_j}}

    Parameters
    ----------
    x : (..., N, ...) floating
        Logits. 16-bit types are computed in float32.
    axis : int
        The axis that sums to 1.
    mask : bool, broadcastable to x, optional
        True where an entry exists. Entries that do not exist get 0, whatever x holds there; rows without any are 0.

    Returns
    -------
    array
        The shape and dtype of `x`. A row in which an entry that exists is NaN is NaN.

    Raises
    ------
    TypeError
        If `x` is not floating or `mask` not boolean.
    ValueError
        If `axis` is out of range or `mask` does not broadcast.

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.softmax(np.array([0.0, 0.0, 9.0]), mask=np.array([True, True, False])).tolist()
    [0.5, 0.5, 0.0]
    """
    return _softmax(x, mask, _check(x, axis, mask))


def softmax_fwd(x: ArrayT, axis: int = -1, *, mask: Array | None = None) -> tuple[ArrayT, SoftmaxContext[ArrayT]]:
    """`softmax` and the context for `softmax_bwd`: the output alone."""
    axis = _check(x, axis, mask)
    out = _softmax(x, mask, axis)
    return read_only(out), SoftmaxContext(out, axis)


def softmax_bwd(dout: Array, ctx: SoftmaxContext[ArrayT]) -> SoftmaxGrads[ArrayT]:
    r"""The gradient of softmax.

    .. math:: dx_i = y_i \Bigl(dy_i - \sum_j y_j\, dy_j\Bigr)

    Entries with y = 0 (masked) get 0, and their dy is ignored, even if it is NaN.
    """
    checks.context("ctx", ctx, SoftmaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return SoftmaxGrads(_softmax_backward(dout, ctx.out, ctx.axis))


@accelerated
def _softmax(x: ArrayT, mask: Array | None, axis: int) -> ArrayT:
    """`softmax` of arrays that are checked, with the axis counted from 0."""
    xp = namespace_of(x, mask)
    logits = _masked(x, mask)
    exps = xp.exp(logits - _finite_max(logits, axis))
    row_sum = xp.sum(exps, axis=axis, keepdims=True)
    return xp.astype(exps / xp.where(row_sum == 0, 1.0, row_sum), x.dtype)


@accelerated
def _softmax_backward(dout: Array, out: ArrayT, axis: int) -> ArrayT:
    """The gradient of `softmax`, from its output."""
    xp = namespace_of(dout, out)
    wide = accumulator_dtype(xp, out.dtype)
    y, dy = xp.astype(out, wide, copy=False), xp.astype(dout, wide, copy=False)
    hidden = y == 0
    dy = xp.where(hidden, 0.0, dy)
    dx = xp.where(hidden, 0.0, y * (dy - xp.sum(y * dy, axis=axis, keepdims=True)))  # also where the sum is NaN
    return xp.astype(dx, out.dtype)


class LogSoftmaxContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT
    axis: int


class LogSoftmaxGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def log_softmax(x: ArrayT, axis: int = -1, *, mask: Array | None = None) -> ArrayT:
    r"""Logarithm of the softmax over `axis`, computed without the probabilities, which may underflow.

    .. math:: y_i = x_i - \log \sum_j m_j e^{x_j}

    Parameters
    ----------
    x : (..., N, ...) floating
        Logits. 16-bit types are computed in float32.
    axis : int
        The axis whose exponentials sum to 1.
    mask : bool, broadcastable to x, optional
        True where an entry exists. Entries that do not exist get -inf.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating or `mask` not boolean.
    ValueError
        If `axis` is out of range or `mask` does not broadcast.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.log_softmax(np.array([0.0, 0.0])).round(4).tolist()
    [-0.6931, -0.6931]
    """
    return _log_softmax(x, mask, _check(x, axis, mask))


def log_softmax_fwd(
    x: ArrayT, axis: int = -1, *, mask: Array | None = None
) -> tuple[ArrayT, LogSoftmaxContext[ArrayT]]:
    """`log_softmax` and the context for `log_softmax_bwd`: the output alone."""
    axis = _check(x, axis, mask)
    out = _log_softmax(x, mask, axis)
    return read_only(out), LogSoftmaxContext(out, axis)


def log_softmax_bwd(dout: Array, ctx: LogSoftmaxContext[ArrayT]) -> LogSoftmaxGrads[ArrayT]:
    r"""The gradient of log-softmax.

    .. math:: dx_i = dy_i - e^{y_i} \sum_j dy_j

    Masked entries (y = -inf) get 0, and their dy is ignored.
    """
    checks.context("ctx", ctx, LogSoftmaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return LogSoftmaxGrads(_log_softmax_backward(dout, ctx.out, ctx.axis))


@accelerated
def _log_softmax(x: ArrayT, mask: Array | None, axis: int) -> ArrayT:
    """`log_softmax` of arrays that are checked, with the axis counted from 0."""
    xp = namespace_of(x, mask)
    logits = _masked(x, mask)
    shifted = logits - _finite_max(logits, axis)
    row_sum = xp.sum(xp.exp(shifted), axis=axis, keepdims=True)
    return xp.astype(shifted - xp.log(xp.where(row_sum == 0, 1.0, row_sum)), x.dtype)


@accelerated
def _log_softmax_backward(dout: Array, out: ArrayT, axis: int) -> ArrayT:
    """The gradient of `log_softmax`, from its output."""
    xp = namespace_of(dout, out)
    wide = accumulator_dtype(xp, out.dtype)
    y, dy = xp.astype(out, wide, copy=False), xp.astype(dout, wide, copy=False)
    hidden = y == -math.inf
    dy = xp.where(hidden, 0.0, dy)
    dx = xp.where(hidden, 0.0, dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True))
    return xp.astype(dx, out.dtype)


def _check(x: Array, axis: int, mask: Array | None) -> int:
    namespace_of(x, mask)
    checks.floating(x=x)
    if mask is not None:
        checks.boolean("mask", mask)
        checks.broadcasts("mask", mask, tuple(x.shape), "the shape of x")
    return checks.axis("axis", axis, x.ndim)


def _masked(x: Array, mask: Array | None) -> Array:
    xp = namespace_of(x)
    wide = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    return wide if mask is None else xp.where(mask, wide, -math.inf)


def _finite_max(logits: Array, axis: int) -> Array:
    """The maximum of each row; 0 for rows that are empty or fully masked, so that it can be subtracted."""
    xp = namespace_of(logits)
    if logits.shape[axis] == 0:
        return xp.zeros((1,), dtype=logits.dtype, device=device_of(logits))
    row_max = xp.max(logits, axis=axis, keepdims=True)
    return xp.where(row_max == -math.inf, 0.0, row_max)

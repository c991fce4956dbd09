"""Element-wise activation functions: relu, silu, tanh, sigmoid. None overflows; infinities give the limit."""

from __future__ import annotations

from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, Namespace, accumulator_dtype, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import read_only

# The logistic function is 0 or 1 in float64 beyond this; x is clipped to it, so that 0 * infinity does not occur.
SILU_REACH = 1000.0


class ReLUContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT


class ReLUGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def relu(x: ArrayT) -> ArrayT:
    r"""Rectified linear unit.

    .. math:: y = \max(x, 0)

    Parameters
    ----------
    x : (...) floating

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating.

    References
    ----------
    Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.relu(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    _check(x)
    return _relu(x)


def relu_fwd(x: ArrayT) -> tuple[ArrayT, ReLUContext[ArrayT]]:
    """`relu` and the context for `relu_bwd`: the output alone."""
    _check(x)
    out = _relu(x)
    return read_only(out), ReLUContext(out)


def relu_bwd(dout: Array, ctx: ReLUContext[ArrayT]) -> ReLUGrads[ArrayT]:
    r"""The gradient of ReLU; at the kink, x = 0, it is 0.

    .. math:: dx = dy\, [x > 0]
    """
    checks.context("ctx", ctx, ReLUContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return ReLUGrads(_relu_backward(dout, ctx.out))


@accelerated
def _relu(x: ArrayT) -> ArrayT:
    """`relu` of a validated array."""
    xp = namespace_of(x)
    return _narrow(xp.clip(_wide(x), 0.0, None), x)


@accelerated
def _relu_backward(dout: Array, out: ArrayT) -> ArrayT:
    """The gradient of `relu`, from its output."""
    xp = namespace_of(dout, out)
    return _narrow(xp.where(out > 0, dout, 0.0), out)


class SiLUContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT


class SiLUGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def silu(x: ArrayT) -> ArrayT:
    r"""Sigmoid linear unit, also called swish.

    .. math:: y = x\, \sigma(x) = \frac{x}{1 + e^{-x}}

    Parameters
    ----------
    x : (...) floating
        16-bit types are computed in float32.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", 2016, arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.silu(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.2689, 0.0, 0.7311]
    """
    return silu_fwd(x)[0]


def silu_fwd(x: ArrayT) -> tuple[ArrayT, SiLUContext[ArrayT]]:
    """`silu` and the context for `silu_bwd`: x alone."""
    _check(x)
    return _silu(x), SiLUContext(x)


def silu_bwd(dout: Array, ctx: SiLUContext[ArrayT]) -> SiLUGrads[ArrayT]:
    r"""The gradient of SiLU.

    .. math:: dx = dy\, \sigma(x) \bigl(1 + x\, (1 - \sigma(x))\bigr)
    """
    checks.context("ctx", ctx, SiLUContext)
    checks.cotangent(dout, tuple(ctx.x.shape), ctx.x)
    return SiLUGrads(_silu_backward(dout, ctx.x))


@accelerated
def _silu(x: ArrayT) -> ArrayT:
    """`silu` of a validated array."""
    xp = namespace_of(x)
    clipped = xp.clip(_wide(x), -SILU_REACH, None)
    return _narrow(clipped * _logistic(xp, clipped), x)


@accelerated
def _silu_backward(dout: Array, x: ArrayT) -> ArrayT:
    """The gradient of `silu`, from its input."""
    xp = namespace_of(dout, x)
    clipped = xp.clip(_wide(x), -SILU_REACH, SILU_REACH)
    s = _logistic(xp, clipped)
    return _narrow(s * (1.0 + clipped * (1.0 - s)) * _wide(dout), x)


class TanhContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT


class TanhGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def tanh(x: ArrayT) -> ArrayT:
    r"""Hyperbolic tangent.

    .. math:: y = \frac{e^x - e^{-x}}{e^x + e^{-x}}

    Parameters
    ----------
    x : (...) floating
        16-bit types are computed in float32.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.tanh(np.array([-1.0, 0.0, 1000.0])).round(4).tolist()
    [-0.7616, 0.0, 1.0]
    """
    _check(x)
    return _tanh(x)


def tanh_fwd(x: ArrayT) -> tuple[ArrayT, TanhContext[ArrayT]]:
    """`tanh` and the context for `tanh_bwd`: the output alone."""
    _check(x)
    out = _tanh(x)
    return read_only(out), TanhContext(out)


def tanh_bwd(dout: Array, ctx: TanhContext[ArrayT]) -> TanhGrads[ArrayT]:
    r"""The gradient of the hyperbolic tangent.

    .. math:: dx = dy\, (1 - y^2)
    """
    checks.context("ctx", ctx, TanhContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return TanhGrads(_tanh_backward(dout, ctx.out))


@accelerated
def _tanh(x: ArrayT) -> ArrayT:
    """`tanh` of a validated array."""
    xp = namespace_of(x)
    return _narrow(xp.tanh(_wide(x)), x)


@accelerated
def _tanh_backward(dout: Array, out: ArrayT) -> ArrayT:
    """The gradient of `tanh`, from its output."""
    y = _wide(out)
    return _narrow((1.0 - y * y) * _wide(dout), out)


class SigmoidContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT


class SigmoidGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def sigmoid(x: ArrayT) -> ArrayT:
    r"""Logistic function.

    .. math:: y = \sigma(x) = \frac{1}{1 + e^{-x}}

    Parameters
    ----------
    x : (...) floating
        16-bit types are computed in float32.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.sigmoid(np.array([-1000.0, 0.0, 1.0])).round(4).tolist()
    [0.0, 0.5, 0.7311]
    """
    _check(x)
    return _sigmoid(x)


def sigmoid_fwd(x: ArrayT) -> tuple[ArrayT, SigmoidContext[ArrayT]]:
    """`sigmoid` and the context for `sigmoid_bwd`: the output alone."""
    _check(x)
    out = _sigmoid(x)
    return read_only(out), SigmoidContext(out)


def sigmoid_bwd(dout: Array, ctx: SigmoidContext[ArrayT]) -> SigmoidGrads[ArrayT]:
    r"""The gradient of the logistic function.

    .. math:: dx = dy\, y\, (1 - y)
    """
    checks.context("ctx", ctx, SigmoidContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return SigmoidGrads(_sigmoid_backward(dout, ctx.out))


@accelerated
def _sigmoid(x: ArrayT) -> ArrayT:
    """`sigmoid` of a validated array."""
    xp = namespace_of(x)
    return _narrow(_logistic(xp, _wide(x)), x)


@accelerated
def _sigmoid_backward(dout: Array, out: ArrayT) -> ArrayT:
    """The gradient of `sigmoid`, from its output."""
    y = _wide(out)
    return _narrow(y * (1.0 - y) * _wide(dout), out)


def _check(x: Array) -> None:
    namespace_of(x)
    checks.floating(x=x)


def _wide(x: Array) -> Array:
    """`x` in the accumulator's dtype, as an array, also where NumPy has made a scalar of a 0-d array."""
    xp = namespace_of(x)
    return xp.astype(xp.asarray(x), accumulator_dtype(xp, x.dtype), copy=False)


def _narrow(value: Array, x: ArrayT) -> ArrayT:
    xp = namespace_of(x)
    return xp.astype(xp.asarray(value), x.dtype, copy=False)


def _logistic(xp: Namespace, x: Array) -> Array:
    small = xp.exp(-xp.abs(x))  # at most 1, whatever the sign of x
    return xp.where(x >= 0, 1.0, small) / (1.0 + small)

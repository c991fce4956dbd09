"""The linear map of the last axis: y = x W^T + b."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, namespace_of


class LinearContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    has_bias: bool


class LinearGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    bias: ArrayT | None


def linear(x: ArrayT, weight: ArrayT, bias: ArrayT | None = None) -> ArrayT:
    r"""Linear map of the last axis.

    .. math:: y_o = \sum_e W_{oe}\, x_e + b_o

    Parameters
    ----------
    x : (..., E_in) floating
        16-bit types are computed in float32.
    weight : (E_out, E_in) of the same dtype
        One row per output, as in PyTorch.
    bias : (E_out,) of the same dtype, optional
        Added to every output vector.

    Returns
    -------
    (..., E_out) array of the same dtype

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.linear(np.array([1.0, 2.0]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.5, 0.0])).tolist()
    [3.5, 6.0]
    """
    return linear_fwd(x, weight, bias)[0]


def linear_fwd(x: ArrayT, weight: ArrayT, bias: ArrayT | None = None) -> tuple[ArrayT, LinearContext[ArrayT]]:
    """`linear` and the context for `linear_bwd`: x and the weight."""
    _check(x, weight, bias)
    xp = namespace_of(x, weight, bias)
    wide = accumulator_dtype(xp, x.dtype)
    out = xp.matmul(_rows(x), xp.astype(weight, wide, copy=False).mT)  # (N, E_out)
    if bias is not None:
        out += xp.astype(bias, wide, copy=False)
    out = xp.reshape(xp.astype(out, x.dtype, copy=False), (*x.shape[:-1], weight.shape[0]))  # (..., E_out)
    return out, LinearContext(x, weight, bias is not None)


def linear_bwd(dout: Array, ctx: LinearContext[ArrayT]) -> LinearGrads[ArrayT]:
    r"""The gradient of the linear map, with n over all leading axes.

    .. math:: dx_{ne} = \sum_o dy_{no} W_{oe}, \qquad dW_{oe} = \sum_n dy_{no}\, x_{ne}, \qquad db_o = \sum_n dy_{no}
    """
    checks.context("ctx", ctx, LinearContext)
    xp = checks.cotangent(dout, (*ctx.x.shape[:-1], ctx.weight.shape[0]), ctx.x)
    x, weight = ctx.x, ctx.weight
    dy = _rows(dout)  # (N, E_out)
    dx = xp.matmul(dy, xp.astype(weight, dy.dtype, copy=False))  # (N, E_in)
    dweight = xp.matmul(dy.mT, _rows(x))  # (E_out, E_in)
    dbias = xp.astype(xp.sum(dy, axis=0), weight.dtype, copy=False) if ctx.has_bias else None  # (E_out,)
    dx = xp.reshape(xp.astype(dx, x.dtype, copy=False), x.shape)
    return LinearGrads(dx, xp.astype(dweight, weight.dtype, copy=False), dbias)


def _rows(x: Array) -> Array:
    """(..., E) -> (N, E) in the accumulator's dtype, for one large matrix product."""
    xp = namespace_of(x)
    flat = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))  # (N, E)
    return xp.astype(flat, accumulator_dtype(xp, x.dtype), copy=False)


def _check(x: Array, weight: Array, bias: Array | None) -> None:
    namespace_of(x, weight, bias)
    checks.floating(x=x, weight=weight, bias=bias)
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "`x` (..., E_in) and `weight` (E_out, E_in) do not fit together: the last size of each must be the same. "
            f"Pass a weight of shape (E_in, E_out) as weight.T. {checks.shapes(x=x, weight=weight)}"
        )
    if bias is not None:
        because = f"one number per row of `weight`, which has shape {tuple(weight.shape)}"
        checks.shape("bias", bias, (weight.shape[0],), because)

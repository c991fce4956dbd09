"""Normalization of the last axis: layer norm and RMS norm."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, namespace_of
from attnarray.dispatch import accelerated
from attnarray.magnitude import check_number, row_scales


class LayerNormContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    mean: ArrayT
    inverse_deviation: ArrayT
    weight: ArrayT | None
    has_bias: bool


class LayerNormGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT | None
    bias: ArrayT | None


def layer_norm(x: ArrayT, weight: ArrayT | None = None, bias: ArrayT | None = None, *, eps: float = 1e-5) -> ArrayT:
    r"""Layer normalization: normalize each vector to mean 0 and variance 1, then scale and shift each feature.

    .. math::
        y_e = w_e \hat{x}_e + b_e, \qquad \hat{x}_e = \frac{x_e - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
        \mu = \frac{1}{E} \sum_e x_e, \quad \sigma^2 = \frac{1}{E} \sum_e (x_e - \mu)^2

    Parameters
    ----------
    x : (..., E) floating
        16-bit types are computed in float32.
    weight, bias : (E,) of the same dtype, optional
        Scale w and shift b per feature; 1 and 0 by default.
    eps : float
        Added to the variance, so that a constant vector gives b.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together or `eps` is not positive.

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.layer_norm(np.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
    """
    return layer_norm_fwd(x, weight, bias, eps=eps)[0]


def layer_norm_fwd(
    x: ArrayT, weight: ArrayT | None = None, bias: ArrayT | None = None, *, eps: float = 1e-5
) -> tuple[ArrayT, LayerNormContext[ArrayT]]:
    """`layer_norm` and the context for `layer_norm_bwd`: x, and per vector its mean and 1 / deviation."""
    eps = _check(x, eps, weight=weight, bias=bias)
    out, mean, inverse_deviation = _layer_norm(x, weight, bias, eps)
    return out, LayerNormContext(x, mean, inverse_deviation, weight, bias is not None)


def layer_norm_bwd(dout: Array, ctx: LayerNormContext[ArrayT]) -> LayerNormGrads[ArrayT]:
    r"""The gradient of layer normalization, with n over all leading axes and the mean over e.

    .. math::
        dx_e = \frac{g_e - \operatorname{mean}(g) - \hat{x}_e \operatorname{mean}(g\, \hat{x})}
        {\sqrt{\sigma^2 + \epsilon}}, \quad g_e = w_e\, dy_e; \qquad
        dw_e = \sum_n dy_{ne}\, \hat{x}_{ne}, \qquad db_e = \sum_n dy_{ne}
    """
    checks.context("ctx", ctx, LayerNormContext)
    checks.cotangent(dout, tuple(ctx.x.shape), ctx.x)
    grads = _layer_norm_backward(dout, ctx.x, ctx.mean, ctx.inverse_deviation, ctx.weight, ctx.has_bias)
    return LayerNormGrads(*grads)


@accelerated
def _layer_norm(x: ArrayT, weight: ArrayT | None, bias: ArrayT | None, eps: float) -> tuple[ArrayT, ArrayT, ArrayT]:
    """`layer_norm` of validated arrays; also means and 1 / deviations (..., 1) in the accumulator's dtype."""
    xp = namespace_of(x, weight, bias)
    wide, shrink = _shrunk(_wide(x, x))
    mean = _mean(wide)  # (..., 1)
    out = wide - mean
    inverse_deviation = _inverse_root(_mean(out * out), eps, shrink)  # (..., 1)
    out *= inverse_deviation
    if shrink is not None:
        mean, inverse_deviation = mean / shrink, inverse_deviation * shrink
    if weight is not None:
        out *= _wide(weight, x)
    if bias is not None:
        out += _wide(bias, x)
    return xp.astype(out, x.dtype, copy=False), mean, inverse_deviation


@accelerated
def _layer_norm_backward(
    dout: Array, x: ArrayT, mean: ArrayT, inverse_deviation: ArrayT, weight: ArrayT | None, has_bias: bool
) -> tuple[ArrayT, ArrayT | None, ArrayT | None]:
    """The gradients of `layer_norm`: of x, of the weight if there is one, and of the bias if there was one."""
    xp = namespace_of(dout, x, weight)
    dy = _wide(dout, x)
    normal = 0.5 * _wide(x, x)  # halved, so that the difference of two large numbers is finite
    normal -= 0.5 * mean
    normal *= 2.0 * inverse_deviation
    g = dy if weight is None else dy * _wide(weight, x)
    dx = g - _mean(g)
    dx -= normal * _mean(g * normal)
    dx *= inverse_deviation
    dweight = None if weight is None else _sum_over_rows(dy * normal, x.dtype)
    dbias = _sum_over_rows(dy, x.dtype) if has_bias else None
    return xp.astype(dx, x.dtype, copy=False), dweight, dbias


class RMSNormContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    inverse_rms: ArrayT
    weight: ArrayT | None


class RMSNormGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT | None


def rms_norm(x: ArrayT, weight: ArrayT | None = None, *, eps: float = 1e-6) -> ArrayT:
    r"""Root-mean-square normalization: layer normalization without the mean and the shift.

    .. math:: y_e = w_e \hat{x}_e, \qquad \hat{x}_e = \frac{x_e}{\sqrt{\frac{1}{E} \sum_e x_e^2 + \epsilon}}

    Parameters
    ----------
    x : (..., E) floating
        16-bit types are computed in float32.
    weight : (E,) of the same dtype, optional
        Scale w per feature; 1 by default.
    eps : float
        Added to the mean square, so that a zero vector gives 0.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together or `eps` is not positive.

    References
    ----------
    Zhang and Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.rms_norm(np.array([1.0, 7.0])).round(3).tolist()
    [0.2, 1.4]
    """
    return rms_norm_fwd(x, weight, eps=eps)[0]


def rms_norm_fwd(
    x: ArrayT, weight: ArrayT | None = None, *, eps: float = 1e-6
) -> tuple[ArrayT, RMSNormContext[ArrayT]]:
    """`rms_norm` and the context for `rms_norm_bwd`: x, and per vector 1 / root mean square."""
    eps = _check(x, eps, weight=weight)
    out, inverse_rms = _rms_norm(x, weight, eps)
    return out, RMSNormContext(x, inverse_rms, weight)


def rms_norm_bwd(dout: Array, ctx: RMSNormContext[ArrayT]) -> RMSNormGrads[ArrayT]:
    r"""The gradient of root-mean-square normalization, with n over all leading axes and the mean over e.

    .. math::
        dx_e = \frac{g_e - \hat{x}_e \operatorname{mean}(g\, \hat{x})}{\operatorname{rms}(x)}, \quad g_e = w_e\, dy_e;
        \qquad dw_e = \sum_n dy_{ne}\, \hat{x}_{ne}
    """
    checks.context("ctx", ctx, RMSNormContext)
    checks.cotangent(dout, tuple(ctx.x.shape), ctx.x)
    return RMSNormGrads(*_rms_norm_backward(dout, ctx.x, ctx.inverse_rms, ctx.weight))


@accelerated
def _rms_norm(x: ArrayT, weight: ArrayT | None, eps: float) -> tuple[ArrayT, ArrayT]:
    """`rms_norm` of validated arrays; also 1 / root mean square (..., 1) in the accumulator's dtype."""
    xp = namespace_of(x, weight)
    wide, shrink = _shrunk(_wide(x, x))
    inverse_rms = _inverse_root(_mean(wide * wide), eps, shrink)  # (..., 1)
    out = wide * inverse_rms
    if shrink is not None:
        inverse_rms = inverse_rms * shrink
    if weight is not None:
        out *= _wide(weight, x)
    return xp.astype(out, x.dtype, copy=False), inverse_rms


@accelerated
def _rms_norm_backward(
    dout: Array, x: ArrayT, inverse_rms: ArrayT, weight: ArrayT | None
) -> tuple[ArrayT, ArrayT | None]:
    """The gradients of `rms_norm`: of x, and of the weight if there is one."""
    xp = namespace_of(dout, x, weight)
    dy = _wide(dout, x)
    normal = _wide(x, x) * inverse_rms
    g = dy if weight is None else dy * _wide(weight, x)
    dx = g - normal * _mean(g * normal)
    dx *= inverse_rms
    dweight = None if weight is None else _sum_over_rows(dy * normal, x.dtype)
    return xp.astype(dx, x.dtype, copy=False), dweight


def _check(x: Array, eps: float, **per_feature: Array | None) -> float:
    """Check the arguments; return `eps` as a float, as NumPy scalars would change the dtype of results."""
    namespace_of(x, *per_feature.values())
    dtype = checks.floating(x=x, **per_feature)
    eps = check_number("eps", checks.positive("eps", eps), dtype)
    if x.ndim < 1:
        raise ValueError(f"`x` has no axis to normalize, expected (..., E). {checks.shapes(x=x)}")
    for name, array in per_feature.items():
        if array is not None:
            because = f"one number per feature of `x`, which has shape {tuple(x.shape)}"
            checks.shape(name, array, (x.shape[-1],), because)
    return eps


def _wide(array: Array, x: Array) -> Array:
    """`array` in the accumulator's dtype of `x`."""
    xp = namespace_of(x)
    return xp.astype(array, accumulator_dtype(xp, x.dtype), copy=False)


def _shrunk(x: Array) -> tuple[Array, Array | None]:
    """x with rows scaled by powers of two where squares would overflow, and these powers (..., 1), or None."""
    shrink = row_scales(x)
    return (x, None) if shrink is None else (x * shrink, shrink)


def _inverse_root(variance: Array, eps: float, shrink: Array | None) -> Any:
    """1 / sqrt(variance + eps) for rows that were scaled by `shrink`."""
    xp = namespace_of(variance)
    if shrink is None:
        return 1.0 / xp.sqrt(variance + eps)
    root = xp.sqrt(variance + eps * shrink * shrink)
    return 1.0 / xp.maximum(root, math.sqrt(eps) * shrink)  # eps scaled twice may be 0


def _mean(x: Array) -> Any:
    """The mean over the last axis, kept with size 1; 0 for no features."""
    xp = namespace_of(x)
    return xp.sum(x, axis=-1, keepdims=True) / max(x.shape[-1], 1)


def _sum_over_rows(x: Array, dtype: object) -> Any:
    """(..., E) -> (E,) in `dtype`."""
    xp = namespace_of(x)
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))  # (N, E)
    return xp.astype(xp.sum(rows, axis=0), dtype, copy=False)

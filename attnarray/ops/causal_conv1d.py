"""Short causal convolution of each channel, with the last steps as its state."""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.ops.activations import silu_bwd, silu_fwd

ConvActivation = Literal["silu"]
ACTIVATIONS: tuple[ConvActivation | None, ...] = (None, *get_args(ConvActivation))


class CausalConv1dResult(NamedTuple, Generic[ArrayT]):
    """The output of every step, and the last steps of the input, with which the next call goes on.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> result = aa.causal_conv1d(np.ones((2, 5, 3)), np.ones((3, 4)))
    >>> result.out.shape, result.state.shape
    ((2, 5, 3), (2, 3, 3))
    """

    out: ArrayT  # (*batch, T, C)
    state: ArrayT | Any  # (*batch, width - 1, C); None in a cotangent that is 0


class CausalConv1dContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    has_bias: bool
    initial_state: ArrayT | None
    activation: Any  # the context of the activation, or None


class CausalConv1dGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight: ArrayT
    bias: ArrayT | None
    initial_state: ArrayT | None


def causal_conv1d(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    initial_state: ArrayT | None = None,
    activation: ConvActivation | None = None,
) -> CausalConv1dResult[ArrayT]:
    r"""Causal convolution of each channel by itself, as linear attention has it before its keys, queries and values.

    .. math:: y_{tc} = \phi\Bigl(b_c + \sum_{k=0}^{K-1} W_{ck}\, x_{t - K + 1 + k,\, c}\Bigr)

    with width K; steps before the first one are those of the state, or 0. `conv1d` has a weight for each pair of
    channels instead.

    Parameters
    ----------
    x : (*batch, T, C) floating
        16-bit types are computed in float32.
    weight : (C, width) of the same dtype
        The last column is that of the step itself.
    bias : (C,) of the same dtype, optional
    initial_state : (*batch, width - 1, C) of the same dtype, optional
        The steps before the first one; 0 by default. Two calls, the second with the state of the first, are as one.
    activation : {"silu"}, optional
        phi; none by default.

    Returns
    -------
    CausalConv1dResult
        out (*batch, T, C) and the state (*batch, width - 1, C): the last steps of x, or of the initial state.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library.
    ValueError
        If the shapes do not fit together, or the activation is unknown.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, arXiv:2312.00752. ONNX's
    CausalConvWithState is this with channels first.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x, weight = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0, 10.0]])
    >>> whole, first = aa.causal_conv1d(x, weight), aa.causal_conv1d(x[:2], weight)
    >>> whole.out.tolist(), aa.causal_conv1d(x[2:], weight, initial_state=first.state).out.tolist()
    ([[10.0], [21.0], [42.0]], [[42.0]])
    """
    return causal_conv1d_fwd(x, weight, bias, initial_state=initial_state, activation=activation)[0]


def causal_conv1d_fwd(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    initial_state: ArrayT | None = None,
    activation: ConvActivation | None = None,
) -> tuple[CausalConv1dResult[ArrayT], CausalConv1dContext[ArrayT]]:
    """`causal_conv1d` and the context for `causal_conv1d_bwd`: the arguments."""
    _check(x, weight, bias, initial_state)
    checks.choice("activation", activation, ACTIVATIONS)
    xp, T, width = namespace_of(x), x.shape[-2], weight.shape[1]
    padded = _padded(x, initial_state, width)  # (*batch, T + width - 1, C)
    wide = _wide(padded)
    out = sum(wide[..., k : k + T, :] * _wide(weight)[:, k] for k in range(width))
    out = out if bias is None else out + _wide(bias)
    activation_ctx = None
    if activation == "silu":
        out, activation_ctx = silu_fwd(out)
        out = xp.asarray(out, copy=True) if out.dtype == x.dtype else out  # the context holds it
    state = xp.asarray(padded[..., T:, :], copy=True)
    result = CausalConv1dResult(xp.astype(out, x.dtype, copy=False), state)
    return result, CausalConv1dContext(x, weight, bias is not None, initial_state, activation_ctx)


def causal_conv1d_bwd(
    dout: CausalConv1dResult | Array, ctx: CausalConv1dContext[ArrayT], dstate: Array | None = None
) -> CausalConv1dGrads[ArrayT]:
    r"""The gradient of the convolution, with n over all batch axes and da that of the sum before the activation.

    .. math::
        dx_{nsc} = \sum_k W_{ck}\, da_{n,\, s + K - 1 - k,\, c} + d\mathrm{state}, \qquad
        dW_{ck} = \sum_{nt} da_{ntc}\, x_{n,\, t - K + 1 + k,\, c}, \qquad db_c = \sum_{nt} da_{ntc}

    Steps s before the first one are those of the initial state.

    Parameters
    ----------
    dout : CausalConv1dResult
        The cotangents of out and state, None for one that does not count; or that of out alone, an array.
    ctx : CausalConv1dContext
    dstate : (*batch, width - 1, C), optional
        The cotangent of the state, if `dout` is an array.
    """
    checks.context("ctx", ctx, CausalConv1dContext)
    x, weight = ctx.x, ctx.weight
    T, (C, width) = x.shape[-2], weight.shape
    da, dlast = _cotangents(dout, dstate, x, (*x.shape[:-2], width - 1, C))
    if ctx.activation is not None:
        da = silu_bwd(da, ctx.activation).x
    xp, wide = namespace_of(x), _wide(_padded(x, ctx.initial_state, width))
    parts = [_shifted(da * _wide(weight)[:, k], k, width) for k in range(width)]
    dpadded = sum(parts, start=_shifted(dlast, T, T + 1))
    rows = _rows(da)  # (N T, C)
    dweight = xp.stack([xp.sum(rows * _rows(wide[..., k : k + T, :]), axis=0) for k in range(width)], axis=1)
    dbias = xp.astype(xp.sum(rows, axis=0), x.dtype, copy=False) if ctx.has_bias else None
    dinitial = None if ctx.initial_state is None else xp.astype(dpadded[..., : width - 1, :], x.dtype)
    dx = xp.astype(dpadded[..., width - 1 :, :], x.dtype)
    return CausalConv1dGrads(dx, xp.astype(dweight, x.dtype, copy=False), dbias, dinitial)


def _padded(x: Array, initial_state: Array | None, width: int) -> Any:
    """The steps before the first one, and x: (*batch, width - 1 + T, C)."""
    xp = namespace_of(x)
    if initial_state is None:
        shape = (*x.shape[:-2], width - 1, x.shape[-1])
        initial_state = xp.zeros(shape, dtype=x.dtype, device=device_of(x))
    return xp.concat([initial_state, x], axis=-2)


def _shifted(x: Array, before: int, width: int) -> Any:
    """x (*batch, T, C) with `before` zeros before it and width - 1 in all."""
    xp = namespace_of(x)
    zeros = [xp.zeros((*x.shape[:-2], n, x.shape[-1]), dtype=x.dtype, device=device_of(x))
             for n in (before, width - 1 - before)]  # fmt: skip
    return xp.concat([zeros[0], x, zeros[1]], axis=-2)


def _rows(x: Array) -> Any:
    """(*batch, T, C) -> (N T, C)"""
    return namespace_of(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _wide(x: Array) -> Any:
    xp = namespace_of(x)
    return xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)


def _cotangents(dout: Any, dstate: Any, x: Array, state: tuple[int, ...]) -> list[Any]:
    """The cotangents of out and state in the dtype of sums; 0 for None."""
    if not checks.is_array(dout):
        if not isinstance(dout, tuple | list) or len(dout) != 2:
            raise TypeError(f"`dout` is {checks.shown(dout)}, expected CausalConv1dResult(out, state) or an array.")
        if dstate is not None:
            raise ValueError("`dstate` is given, but `dout` is no array: give CausalConv1dResult(dout, dstate) alone.")
        dout, dstate = dout
    xp, found = checks.namespace(**{"dout.out": dout, "dout.state": dstate, "x": x}), []
    for name, array, shape in (("dout.out", dout, tuple(x.shape)), ("dout.state", dstate, state)):
        if array is None:
            array = xp.zeros(shape, dtype=x.dtype, device=device_of(x))
        checks.shape(name, array, shape, "the shape of that result")
        checks.floating(**{name: array, "x": x})
        found.append(_wide(array))
    return found


def _check(x: Array, weight: Array, bias: Array | None, initial_state: Array | None) -> None:
    checks.required(x=x, weight=weight)
    checks.namespace(x=x, weight=weight, bias=bias, initial_state=initial_state)
    checks.floating(x=x, weight=weight, bias=bias, initial_state=initial_state)
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[0] or weight.shape[1] == 0:
        raise ValueError(
            f"`x` and `weight` do not fit, expected (*batch, T, C), channels last, and (C, width) with at least one "
            f"tap. {checks.shapes(x=x, weight=weight)}"
        )
    if bias is not None:
        checks.shape("bias", bias, (x.shape[-1],), f"one number for each of the {x.shape[-1]} channels of `x`")
    if initial_state is not None:
        expected = (*x.shape[:-2], weight.shape[1] - 1, x.shape[-1])
        checks.shape("initial_state", initial_state, expected, "(*batch, width - 1, C), the steps before the first one")

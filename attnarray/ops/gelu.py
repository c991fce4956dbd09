"""The Gaussian error linear unit, with the error function or its tanh approximation."""

from __future__ import annotations

import math
from typing import Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.erf import erf

CUBIC = 0.044715  # the coefficient of x^3 in the approximation
REACH = 40.0  # the gate is 0 or 1 in float64 beyond this; x is clipped to it, so that its square does not overflow


Approximation = Literal["none", "tanh"]
APPROXIMATIONS: tuple[Approximation, ...] = get_args(Approximation)


class GELUContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    approximate: Approximation


class GELUGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def gelu(x: ArrayT, *, approximate: Approximation = "none") -> ArrayT:
    r"""Gaussian error linear unit: x times the standard normal distribution function.

    .. math::
        y = x\, \Phi(x), \qquad \Phi(x) = \tfrac{1}{2} \bigl(1 + \operatorname{erf}(x / \sqrt 2)\bigr)
        \approx \tfrac{1}{2} \Bigl(1 + \tanh\bigl(\sqrt{2 / \pi}\, (x + 0.044715\, x^3)\bigr)\Bigr)

    Parameters
    ----------
    x : (...) floating
        16-bit types are computed in float32.
    approximate : {"none", "tanh"}
        "none" for the error function, "tanh" for the approximation, as in GPT-2.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating.
    ValueError
        If `approximate` is unknown.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", 2016, arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.gelu(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.1587, 0.0, 0.8413]
    """
    return gelu_fwd(x, approximate=approximate)[0]


def gelu_fwd(x: ArrayT, *, approximate: Approximation = "none") -> tuple[ArrayT, GELUContext[ArrayT]]:
    """`gelu` and the context for `gelu_bwd`: x alone."""
    namespace_of(x)
    checks.floating(x=x)
    checks.choice("approximate", approximate, APPROXIMATIONS)
    return _gelu(x, approximate), GELUContext(x, approximate)


def gelu_bwd(dout: Array, ctx: GELUContext[ArrayT]) -> GELUGrads[ArrayT]:
    r"""The gradient of GELU; with "tanh", t stands for the hyperbolic tangent.

    .. math::
        dx = dy\, \Bigl(\Phi(x) + \frac{x}{\sqrt{2\pi}} e^{-x^2 / 2}\Bigr), \qquad
        dx \approx dy\, \Bigl(\tfrac{1 + t}{2}
        + \tfrac{x}{2} (1 - t^2) \sqrt{2 / \pi}\, (1 + 3 \cdot 0.044715\, x^2)\Bigr)
    """
    checks.context("ctx", ctx, GELUContext)
    checks.cotangent(dout, tuple(ctx.x.shape), ctx.x)
    return GELUGrads(_gelu_backward(dout, ctx.x, ctx.approximate))


@accelerated
def _gelu(x: ArrayT, approximate: Approximation) -> ArrayT:
    """`gelu` of validated arguments."""
    xp = namespace_of(x)
    wide = xp.astype(xp.asarray(x), accumulator_dtype(xp, x.dtype), copy=False)
    gate = _gate(xp.clip(wide, -REACH, REACH), approximate)
    gate *= xp.clip(wide, -REACH, None)
    return xp.astype(xp.asarray(gate), x.dtype, copy=False)


@accelerated
def _gelu_backward(dout: Array, x: ArrayT, approximate: Approximation) -> ArrayT:
    """The gradient of `gelu`, from its input."""
    xp = namespace_of(dout, x)
    dtype, wide = x.dtype, accumulator_dtype(xp, x.dtype)
    x = xp.clip(xp.astype(xp.asarray(x), wide, copy=False), -REACH, REACH)
    gate = _gate(x, approximate)
    if approximate == "none":
        slope = gate + x * xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    else:  # with t = 2 gate - 1, (1 - t^2) / 2 is 2 gate (1 - gate)
        slope = gate + x * (2.0 * gate * (1.0 - gate)) * math.sqrt(2 / math.pi) * (1.0 + 3 * CUBIC * x * x)
    dx = slope * xp.astype(xp.asarray(dout), wide, copy=False)
    return xp.astype(xp.asarray(dx), dtype, copy=False)


def _gate(x: Array, approximate: Approximation) -> Array:
    """The standard normal distribution function of x."""
    xp = namespace_of(x)
    if approximate == "none":
        return 0.5 + 0.5 * erf(x / math.sqrt(2))
    return 0.5 + 0.5 * xp.tanh(math.sqrt(2 / math.pi) * (x + CUBIC * x * x * x))

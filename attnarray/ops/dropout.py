"""Dropout of elements, by counter-based random bits or by an explicit mask."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import read_only
from attnarray.random import Philox, as_seed, keep_mask


class DropoutContext(NamedTuple, Generic[ArrayT]):
    shape: tuple[int, ...]
    p: float
    seed: int | None
    mask: Array | None


class DropoutGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def dropout(x: ArrayT, p: float, *, rng: Philox | int | None = None, mask: Array | None = None) -> ArrayT:
    r"""Set elements to 0 with probability p and divide the others by 1 - p.

    .. math:: y_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    Parameters
    ----------
    x : (...) floating
    p : float
        Probability from 0 to 1. At inference do not call it, or give 0.
    rng : Philox or int, optional
        The seed; the same seed gives the same mask on every backend. Needed when p > 0 and no mask is given.
    mask : bool, broadcastable to x, optional
        True = keep, instead of `rng`.

    Returns
    -------
    array
        The shape and dtype of `x`.

    Raises
    ------
    ValueError
        If `p` is not a probability, or p > 0 with neither `rng` nor `mask`.
    TypeError
        If `x` is not floating or `mask` not boolean.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.dropout(np.ones(4), 0.5, mask=np.array([True, False, True, True])).tolist()
    [2.0, 0.0, 2.0, 2.0]
    """
    out, ctx = dropout_fwd(x, p, rng=rng, mask=mask)
    return out if _drops(ctx) else namespace_of(x).asarray(x, copy=True)


def dropout_fwd(
    x: ArrayT, p: float, *, rng: Philox | int | None = None, mask: Array | None = None
) -> tuple[ArrayT, DropoutContext[ArrayT]]:
    """`dropout` and the context for `dropout_bwd`: the seed alone, or the mask that was given.

    For p = 0 the output is a read-only view of `x`, and the gradient one of `dout`.
    """
    checks.namespace(x=x, mask=mask)
    checks.floating(x=x)
    p, seed = checks.probability("p", p), None if rng is None else as_seed(rng)
    if mask is not None:
        checks.boolean("mask", mask)
        checks.broadcasts("mask", mask, tuple(x.shape), "the shape of x")
    elif p > 0 and seed is None:
        raise ValueError(f"`p` is {p} but neither `rng` nor `mask` is given. Pass rng=attnarray.Philox(seed).")
    ctx = DropoutContext(tuple(x.shape), p, seed if mask is None else None, mask)
    return _apply(x, ctx), ctx


def dropout_bwd(dout: Array, ctx: DropoutContext[ArrayT]) -> DropoutGrads[ArrayT]:
    r"""The gradient of dropout: the same mask and factor.

    .. math:: dx_i = \frac{m_i}{1 - p} dy_i
    """
    checks.context("ctx", ctx, DropoutContext)
    checks.namespace(dout=dout, mask=ctx.mask)
    checks.floating(dout=dout)
    checks.shape("dout", dout, ctx.shape, "the shape of the output")
    return DropoutGrads(_apply(dout, ctx))


@accelerated
def _dropout(x: ArrayT, p: float, seed: int | None, mask: Array | None) -> ArrayT:
    """`dropout` of validated arguments, and its gradient; elements are kept by `mask` or by the seed."""
    xp = namespace_of(x, mask)
    keep = mask
    if keep is None:
        assert seed is not None, "the caller has one of them"
        keep = keep_mask(seed, p, tuple(x.shape), xp, device_of(x))
    wide = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    factor = 1.0 / (1.0 - p) if p < 1 else 0.0
    return xp.astype(xp.where(keep, wide * factor, 0.0), x.dtype, copy=False)


def _apply(x: Array, ctx: DropoutContext) -> Any:
    return _dropout(x, ctx.p, ctx.seed, ctx.mask) if _drops(ctx) else read_only(x)


def _drops(ctx: DropoutContext) -> bool:
    """Whether elements can be dropped; if not, the output is the input."""
    return ctx.mask is not None or (ctx.seed is not None and ctx.p > 0)

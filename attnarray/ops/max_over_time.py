"""The maximum of each feature over the steps of a sequence."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of


class MaxOverTimeContext(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    steps: Array  # (N, C), where the maxima are; -1 without a step


class MaxOverTimeGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def max_over_time(x: ArrayT, *, lengths: int | Array | None = None) -> ArrayT:
    r"""Max-over-time pooling: the maximum of each feature over the steps of a sequence.

    .. math:: y_c = \max_{t < \ell} x_{tc}

    Parameters
    ----------
    x : (*batch, T, C) floating
    lengths : int or (*batch,) integer, optional
        The number of steps of each sequence, from 0 to T; all by default. What x holds after them has no effect.

    Returns
    -------
    (*batch, C) array of the same dtype
        0 for sequences without a step.

    Raises
    ------
    TypeError
        If `x` is not floating, or `lengths` not integer.
    ValueError
        If the shapes do not fit together, or a length is out of range.

    References
    ----------
    Collobert et al., "Natural language processing (almost) from scratch", 2011, arXiv:1103.0398; Kim, "Convolutional
    neural networks for sentence classification", 2014, arXiv:1408.5882.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.array([[1.0, -5.0], [3.0, -7.0], [9.0, 9.0]])
    >>> aa.max_over_time(x).tolist(), aa.max_over_time(x, lengths=2).tolist()
    ([9.0, 9.0], [3.0, -5.0])
    """
    return max_over_time_fwd(x, lengths=lengths)[0]


def max_over_time_fwd(x: ArrayT, *, lengths: int | Array | None = None) -> tuple[ArrayT, MaxOverTimeContext[ArrayT]]:
    """`max_over_time` and the context for `max_over_time_bwd`: the steps of the maxima."""
    checks.required(x=x)
    xp = checks.namespace(x=x)
    checks.floating(x=x)
    if x.ndim < 2:
        raise ValueError(f"`x` has {x.ndim} axes, expected (*batch, T, C). {checks.shapes(x=x)}")
    *batch, T, C = x.shape
    count, index = math.prod(batch), index_dtype(xp, x)
    rows, zeros = xp.reshape(x, (count, T, C)), xp.zeros((count, C), dtype=x.dtype, device=device_of(x))
    nothing = xp.full((count, C), -1, dtype=index, device=device_of(x))
    past = _past(x, lengths)
    if not T or not count or not C:
        return xp.reshape(zeros, (*batch, C)), MaxOverTimeContext(x, nothing)
    seen = rows if past is None else xp.where(past[:, :, None], -math.inf, rows)
    steps = xp.astype(xp.argmax(seen, axis=1), index, copy=False)  # (N, C)
    out = xp.take_along_axis(rows, steps[:, None, :], axis=1)[:, 0, :]
    if past is not None:
        none = past[:, :1]  # (N, 1): not even the first step exists
        out, steps = xp.where(none, zeros, out), xp.where(none, nothing, steps)
    return xp.reshape(out, (*batch, C)), MaxOverTimeContext(x, steps)


def max_over_time_bwd(dout: Array, ctx: MaxOverTimeContext[ArrayT]) -> MaxOverTimeGrads[ArrayT]:
    r"""The gradient of the maxima: it goes to the step of the maximum, of equal ones the first.

    .. math:: dx_{tc} = [t = \operatorname{argmax}_{t' < \ell} x_{t'c}]\; dy_c
    """
    checks.context("ctx", ctx, MaxOverTimeContext)
    x = ctx.x
    *batch, T, C = x.shape
    xp = checks.cotangent(dout, (*batch, C), x)
    every = xp.arange(T, dtype=ctx.steps.dtype, device=device_of(x))  # (T,)
    is_maximum = every[None, :, None] == ctx.steps[:, None, :]  # (N, T, C)
    rows = xp.reshape(dout, (math.prod(batch), 1, C))
    return MaxOverTimeGrads(xp.reshape(xp.where(is_maximum, rows, xp.zeros_like(rows)), x.shape))


def _past(x: Array, lengths: int | Array | None) -> Array | None:
    """Which steps (N, T) are none of the sequence."""
    if lengths is None:
        return None
    xp, (*batch, T, _) = namespace_of(x), x.shape
    given = checks.same_device("lengths", checks.integers("lengths", lengths), "x", x)
    if isinstance(given, int):
        given = xp.full(tuple(batch), given, dtype=index_dtype(xp, x), device=device_of(x))
    checks.shape(
        "lengths", given, tuple(batch), f"one length for each sequence of `x`, which has shape {tuple(x.shape)}"
    )
    given = checks.within("lengths", given, 0, T, "the steps of each sequence")
    every = xp.arange(T, dtype=given.dtype, device=device_of(x))
    return every[None, :] >= xp.reshape(given, (math.prod(batch), 1))

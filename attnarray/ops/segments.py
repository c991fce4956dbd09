"""Softmax and sum over segments: entries grouped by a number of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.embedding import check_range

MOST_SEGMENTS = 2**31
FEW = 2**16  # fewer segments are not renumbered: it saves too little


class SegmentSoftmaxContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT
    segments: Array
    segment_count: int


class SegmentSoftmaxGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def segment_softmax(x: ArrayT, segments: Array, count: int, *, mask: Array | None = None) -> ArrayT:
    r"""Softmax over the entries of each segment: for example of the edges that end in one node of a graph.

    .. math:: y_e = \frac{m_e e^{x_e}}{\sum_{e':\, s_{e'} = s_e} m_{e'} e^{x_{e'}}}

    Parameters
    ----------
    x : (*batch, E, H) floating
        Logits of E entries, with independent columns H. 16-bit types are computed in float32.
    segments : (E,) integer
        The segment s of each entry, from 0 to count - 1, in any order.
    count : int
        The number of segments; some may be empty, and many cost no memory.
    mask : bool, broadcastable to x, optional
        True where an entry exists. Entries that do not exist get 0, whatever x holds there.

    Returns
    -------
    array
        The shape and dtype of `x`. In every column, the entries of a segment sum to 1, or are 0 if none exists.

    Raises
    ------
    TypeError
        If `x` is not floating, `segments` not integer or `mask` not boolean.
    ValueError
        If shapes do not fit or a segment is out of range; the message names the first such entry.

    References
    ----------
    The softmax over neighbors in Veličković et al., "Graph attention networks", 2017, arXiv:1710.10903.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.array([[0.0], [5.0], [0.0]])
    >>> aa.segment_softmax(x, np.array([2, 0, 2]), count=3)[:, 0].tolist()
    [0.5, 1.0, 0.5]
    """
    return writable(segment_softmax_fwd(x, segments, count, mask=mask)[0])


def segment_softmax_fwd(
    x: ArrayT, segments: Array, count: int, *, mask: Array | None = None
) -> tuple[ArrayT, SegmentSoftmaxContext[ArrayT]]:
    """`segment_softmax` and the context for its backward: the output and the segments, renumbered if few."""
    count = _check(x, segments, count, mask)
    numbered, count = _numbered(checks.integer("segments", segments), count)
    out = _segment_softmax(x, numbered, count, mask)
    return read_only(out), SegmentSoftmaxContext(out, numbered, count)


def segment_softmax_bwd(dout: Array, ctx: SegmentSoftmaxContext[ArrayT]) -> SegmentSoftmaxGrads[ArrayT]:
    r"""The gradient of the segment softmax.

    .. math:: dx_e = y_e \Bigl(dy_e - \sum_{e':\, s_{e'} = s_e} y_{e'}\, dy_{e'}\Bigr)

    Entries with y = 0 (masked) get 0, and their dy is ignored, even if it is NaN.
    """
    checks.context("ctx", ctx, SegmentSoftmaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return SegmentSoftmaxGrads(_segment_softmax_backward(dout, ctx.out, ctx.segments, ctx.segment_count))


@accelerated
def _segment_softmax(x: ArrayT, segments: Array, count: int, mask: Array | None) -> ArrayT:
    """`segment_softmax` of arrays that are checked."""
    xp = namespace_of(x, segments, mask)
    logits = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    logits = logits if mask is None else xp.where(mask, logits, -math.inf)
    order = segment_order(segments, count)
    segment_max = reduced(logits, order, xp.maximum, -math.inf)  # (..., count, H)
    exps = xp.exp(logits - _gather(xp.where(segment_max == -math.inf, 0.0, segment_max), segments))
    segment_sum = reduced(exps, order, _add, 0.0)
    return xp.astype(exps / _gather(xp.where(segment_sum == 0, 1.0, segment_sum), segments), x.dtype)


@accelerated
def _segment_softmax_backward(dout: Array, out: ArrayT, segments: Array, count: int) -> ArrayT:
    """The gradient of `segment_softmax`, from its output."""
    xp = namespace_of(dout, out)
    wide = accumulator_dtype(xp, out.dtype)
    y, dy = xp.astype(out, wide, copy=False), xp.astype(dout, wide, copy=False)
    dy = xp.where(y == 0, 0.0, dy)
    segment_sum = reduced(y * dy, segment_order(segments, count), _add, 0.0)
    return xp.astype(xp.where(y == 0, 0.0, y * (dy - _gather(segment_sum, segments))), out.dtype)


@accelerated
def sum_segments(x: Array, segments: Array, count: int) -> Array:
    r"""The sums over the entries (*batch, E, N) of each segment: (*batch, count, N).

    .. math:: y_s = \sum_{e:\, s_e = s} x_e
    """
    xp = namespace_of(x, segments)
    wide = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    return xp.astype(reduced(wide, segment_order(segments, count), _add, 0.0), x.dtype, copy=False)


class Order(NamedTuple):
    """Entries sorted by their segments, so that those of a segment are consecutive."""

    indices: Array  # (E,): of the first entry, of the second, ...
    segments: Array  # (E,): its segment
    last: Array  # (count,): the index of the last entry of each segment after sorting; any index if empty
    is_empty: Array  # (count,)
    longest: int


def segment_order(segments: Array, count: int) -> Order:
    """The order of entries by their segments; stable."""
    xp = namespace_of(segments)
    indices = xp.argsort(segments, stable=True)
    ordered = xp.take(segments, indices, axis=0)
    numbers = xp.arange(count, dtype=segments.dtype, device=device_of(segments))
    first = xp.searchsorted(ordered, numbers, side="left")
    past = xp.searchsorted(ordered, numbers, side="right")
    longest = int(xp.max(past - first)) if count else 0
    return Order(indices, ordered, xp.where(first == past, 0, past - 1), first == past, longest)


def reduced(x: Array, order: Order, combine: Callable[[Array, Array], Array], start: float) -> Array:
    """The entries (..., E, N) of each segment combined to one: (..., count, N); `start` for an empty one.

    A parallel scan: each entry is combined with that 1, 2, 4, ... before it in its segment. Nothing crosses the border
    of a segment, not even NaN, and the rounding of a sum grows with the logarithm of its length.
    """
    xp = namespace_of(x)
    count = order.last.shape[0]
    if order.longest == 0:
        return xp.full((*x.shape[:-2], count, x.shape[-1]), start, dtype=x.dtype, device=device_of(x))
    x, step = xp.take(x, order.indices, axis=-2), 1
    while step < order.longest:
        same = (order.segments[step:] == order.segments[:-step])[:, None]  # (E - step, 1)
        before, here = x[..., :-step, :], x[..., step:, :]
        x = xp.concat([x[..., :step, :], xp.where(same, combine(before, here), here)], axis=-2)
        step *= 2
    return xp.where(order.is_empty[:, None], start, xp.take(x, order.last, axis=-2))


def _gather(x: Array, segments: Array) -> Array:
    """The values of the segment of each entry: (..., count, H) -> (..., E, H)."""
    return namespace_of(x).take(x, segments, axis=-2) if segments.shape[0] else x[..., :0, :]


def _add(first: Array, second: Array) -> Array:
    return first + second


def _numbered(segments: Array, count: int) -> tuple[Array, int]:
    """The same grouping, renumbered if there are far more segments than entries."""
    if count <= FEW + 4 * segments.shape[0]:
        return segments, count
    found = namespace_of(segments).unique_inverse(segments)
    return checks.integer("segments", found.inverse_indices), found.values.shape[0]


def _check(x: Array, segments: Array, count: int, mask: Array | None) -> int:
    checks.required(x=x, segments=segments)
    xp = checks.namespace(x=x, segments=segments, mask=mask)
    checks.floating(x=x)
    checks.integer("segments", segments)
    if x.ndim < 2:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}, expected at least two axes: (*batch, E, H), E entries with H columns. "
            "A single column is written x[:, None]."
        )
    checks.shape("segments", segments, (x.shape[-2],), f"one segment for each of the E entries of `x` {tuple(x.shape)}")
    count = checks.whole("count", count, 0, MOST_SEGMENTS, "the number of segments")
    if segments.shape[0] and not 0 <= int(xp.min(segments)) <= int(xp.max(segments)) < count:
        check_range("segments", segments, count, "the number of segments")  # names the entry
    if mask is not None:
        checks.boolean("mask", mask)
        checks.broadcasts("mask", mask, tuple(x.shape), "the shape of x")
    return count

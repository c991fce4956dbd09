"""Entmax: a family of sparse maps from logits to probabilities, with sparsemax at alpha = 2 and softmax in the limit 1.

With z = (alpha - 1) (x - max x), whose largest entry is 0, the threshold lies in [-1, 0).
"""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, dtype_name, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import read_only

SPARSEMAX, ENTMAX = 2.0, 1.5  # with a threshold in closed form, given the support
LARGEST_ALPHA = 10.0  # above it all probabilities of the support are nearly equal
MANTISSA = {"float64": 53, "float32": 24}


class EntmaxContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT
    axis: int
    alpha: float


class EntmaxGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def entmax(x: ArrayT, axis: int = -1, *, alpha: float = ENTMAX, mask: Array | None = None) -> ArrayT:
    r"""Sparse probabilities from logits, over `axis`.

    .. math::
        y = \arg\max_{p \ge 0,\, \sum p = 1} p \cdot x + H_\alpha(p) = [(\alpha - 1) x - \tau]_+^{1 / (\alpha - 1)},
        \qquad H_\alpha(p) = \frac{1}{\alpha (\alpha - 1)} \sum_i (p_i - p_i^\alpha)

    with the tau that makes the sum 1.

    Parameters
    ----------
    x : (..., N, ...) floating
        Logits. 16-bit types are computed in float32.
    axis : int
        The axis that sums to 1.
    alpha : float
        Above 1, where softmax is the limit, up to 10; 2 is sparsemax. The threshold is computed in closed form for 1.5
        and 2, with kernels for NumPy arrays, else by bisection. Above 2 the map is steep at the edge of the support,
        which magnifies the rounding of x; below 1.1 rounding is multiplied by about 1 / (alpha - 1).
    mask : bool, broadcastable to x, optional
        True where an entry exists. Entries that do not exist get 0, whatever x holds there; rows without any are 0.

    Returns
    -------
    array
        The shape and dtype of `x`. A row that holds NaN or +inf is NaN.

    Raises
    ------
    TypeError
        If `x` is not floating or `mask` not boolean.
    ValueError
        If `axis` or `alpha` is out of range or `mask` does not broadcast.

    References
    ----------
    Peters, Niculae and Martins, "Sparse sequence-to-sequence models", 2019, arXiv:1905.05702.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.entmax(np.array([1.0, 1.0, -2.0])).round(4).tolist()
    [0.5, 0.5, 0.0]
    """
    return _entmax(x, mask, check(x, axis, mask), check_alpha(alpha))


def entmax_fwd(
    x: ArrayT, axis: int = -1, *, alpha: float = ENTMAX, mask: Array | None = None
) -> tuple[ArrayT, EntmaxContext[ArrayT]]:
    """`entmax` and the context for `entmax_bwd`: the output alone."""
    axis, alpha = check(x, axis, mask), check_alpha(alpha)
    out = _entmax(x, mask, axis, alpha)
    return read_only(out), EntmaxContext(out, axis, alpha)


def entmax_bwd(dout: Array, ctx: EntmaxContext[ArrayT]) -> EntmaxGrads[ArrayT]:
    r"""The gradient of entmax: dout minus its mean over the support weighted by s, times s.

    .. math:: dx_i = s_i \Bigl(dy_i - \frac{\sum_j s_j\, dy_j}{\sum_j s_j}\Bigr), \qquad s_i = y_i^{2 - \alpha}

    and s = 0 where y = 0. Below alpha = 2 there is no kink: s goes to 0 at the edge of the support. From 2 on there is
    one, where the entry counts as outside. Values of dout outside the support are ignored.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> out, ctx = aa.entmax_fwd(np.array([1.0, 1.0, -2.0]))
    >>> aa.entmax_bwd(np.array([2.0, 0.0, 7.0]), ctx).x.round(4).tolist()
    [0.7071, -0.7071, 0.0]
    """
    checks.context("ctx", ctx, EntmaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return EntmaxGrads(_entmax_backward(dout, ctx.out, ctx.axis, ctx.alpha))


@accelerated
def _entmax(x: ArrayT, mask: Array | None, axis: int, alpha: float) -> ArrayT:
    r"""`entmax` of validated arrays, with a non-negative axis.

    .. math:: y_i = [z_i - \tau]_+^{1 / (\alpha - 1)}, \qquad \sum_i y_i = 1

    A row that holds NaN or +inf is NaN; one without any entry above -inf is 0.
    """
    xp = namespace_of(x, mask)
    logits = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    logits = logits if mask is None else xp.where(mask, logits, -math.inf)
    if x.shape[axis] == 0:
        return xp.zeros_like(x)
    row_max = xp.max(logits, axis=axis, keepdims=True)
    row_max = xp.where(row_max == -math.inf, 0.0, row_max)
    z = (alpha - 1.0) * (logits - row_max)
    tau = xp.where(xp.isfinite(row_max), threshold(z, axis, alpha), math.nan)
    return xp.astype(_power(z - tau, alpha), x.dtype)


@accelerated
def _entmax_backward(dout: Array, out: ArrayT, axis: int, alpha: float) -> ArrayT:
    r"""The gradient of `entmax`, from its output. Values of dout outside the support are ignored.

    .. math:: dx_i = s_i \Bigl(dy_i - \frac{\sum_j s_j\, dy_j}{\sum_j s_j}\Bigr), \qquad s_i = y_i^{2 - \alpha}, 0 for 0
    """
    xp = namespace_of(dout, out)
    wide = accumulator_dtype(xp, out.dtype)
    y, dy = xp.astype(out, wide, copy=False), xp.astype(dout, wide, copy=False)
    outside = y == 0
    slope = y / y if alpha == SPARSEMAX else xp.where(outside, 1.0, y) ** (2.0 - alpha)  # y / y is NaN where y is
    slope, dy = xp.where(outside, 0.0, slope), xp.where(outside, 0.0, dy)
    total = xp.sum(slope, axis=axis, keepdims=True)
    mean = xp.sum(slope * dy, axis=axis, keepdims=True) / xp.where(total == 0, 1.0, total)
    return xp.astype(xp.where(outside, 0.0, slope * (dy - mean)), out.dtype)


def check(x: Array, axis: int, mask: Array | None) -> int:
    """Check the arguments; return the axis as a non-negative number."""
    checks.namespace(x=x, mask=mask)
    checks.floating(x=x)
    if mask is not None:
        checks.boolean("mask", mask)
        checks.broadcasts("mask", mask, tuple(x.shape), "the shape of x")
    return checks.axis("axis", axis, x.ndim)


def check_alpha(alpha: Any) -> float:
    """Check for 1 < alpha <= 10."""
    if not 1 < checks.real(alpha) <= LARGEST_ALPHA:
        raise ValueError(
            f"`alpha` is {checks.shown(alpha)}, expected a number above 1 and up to {LARGEST_ALPHA:g}: 1.5, or 2 for "
            "sparsemax. The limit 1 is softmax."
        )
    return float(alpha)


def threshold(z: Array, axis: int, alpha: float) -> Array:
    """tau for logits z with maximum 0, with the axis kept; undefined for rows that hold NaN."""
    if alpha == SPARSEMAX:
        return _sparsemax_threshold(z, axis)
    return _entmax_threshold(z, axis) if alpha == ENTMAX else _threshold_by_bisection(z, axis, alpha)


def _sparsemax_threshold(z: Array, axis: int) -> Array:
    """tau = (sum of the support - 1) / size: the k largest, for every k with 1 + k z_(k) > z_(1) + .. + z_(k)."""
    xp = namespace_of(z)
    ordered, k = _descending(z, axis)
    inside = 1.0 + k * ordered > cumulative_sum(ordered, axis)
    count = _count(inside, axis, z)
    return (xp.sum(xp.where(inside, ordered, 0.0), axis=axis, keepdims=True) - 1.0) / count


def _entmax_threshold(z: Array, axis: int) -> Array:
    """tau = mean - sqrt((1 - sum of squared deviations) / size) of the support, the k largest where tau_k <= z_(k)."""
    xp = namespace_of(z)
    ordered, k = _descending(z, axis)
    total, squares = cumulative_sum(ordered, axis), cumulative_sum(ordered * ordered, axis)
    rest = (1.0 - (squares - total * total / k)) / k
    inside = total / k - xp.sqrt(xp.where(rest < 0, 0.0, rest)) <= ordered
    count = _count(inside, axis, z)
    # Again from the mean of the support, where there is no cancellation.
    mean = xp.sum(xp.where(inside, ordered, 0.0), axis=axis, keepdims=True) / count
    spread = xp.sum(xp.where(inside, ordered - mean, 0.0) ** 2, axis=axis, keepdims=True)
    return mean - xp.sqrt(xp.where(spread > 1, 0.0, 1.0 - spread) / count)


def _threshold_by_bisection(z: Array, axis: int, alpha: float) -> Array:
    """The sum of powers is >= 1 at tau = -1, where the largest entry alone gives 1, and <= 1 at -N^(1 - alpha)."""
    xp = namespace_of(z)
    bits = (alpha - 1.0) * math.log2(z.shape[axis])  # of the smallest |tau|
    low = xp.full_like(xp.sum(z, axis=axis, keepdims=True), -1.0)
    high = xp.full_like(low, -(2.0**-bits))
    for _ in range(MANTISSA[dtype_name(z.dtype)] + math.ceil(bits) + 2):
        middle = 0.5 * (low + high)
        enough = xp.sum(_power(z - middle, alpha), axis=axis, keepdims=True) >= 1.0
        low, high = xp.where(enough, middle, low), xp.where(enough, high, middle)
    return low


def _power(x: Array, alpha: float) -> Array:
    """[x]_+^(1 / (alpha - 1)); NaN stays NaN."""
    positive = namespace_of(x).where(x < 0, 0.0, x)
    if alpha == SPARSEMAX:
        return positive
    return positive * positive if alpha == ENTMAX else positive ** (1.0 / (alpha - 1.0))


def _descending(z: Array, axis: int) -> tuple[Array, Array]:
    """z in descending order, and the numbers 1 to N along that axis.

    Entries far outside the support, below -2, are clipped, so that no sum of squares overflows.
    """
    xp = namespace_of(z)
    z = xp.where((z < -2.0) & (z > -math.inf), -2.0, z)
    numbers = xp.arange(1, z.shape[axis] + 1, dtype=z.dtype, device=device_of(z))
    shape = [1] * z.ndim
    shape[axis] = z.shape[axis]
    return xp.flip(xp.sort(z, axis=axis), axis=axis), xp.reshape(numbers, tuple(shape))


def cumulative_sum(x: Array, axis: int) -> Array:
    """Return the sums up to each element of an axis."""
    xp = namespace_of(x)
    sums = xp.cumulative_sum if hasattr(xp, "cumulative_sum") else xp.cumsum  # NumPy 2.0 has the older name alone
    return sums(x, axis=axis)


def _count(inside: Array, axis: int, like: Array) -> Array:
    """The size of the support, but 1 for none: rows that are empty or hold NaN."""
    xp = namespace_of(inside)
    count = xp.sum(xp.astype(inside, like.dtype), axis=axis, keepdims=True)
    return xp.where(count == 0, 1.0, count)

"""Entmax: between softmax and sparsemax, and beyond. With alpha = 1.5 it is smooth and yet sparse."""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array
from attnarray.numpy_arrays import read_only
from attnarray.ops.entmax_core import ENTMAX, check, entmax_backward, entmax_forward

LARGEST_ALPHA = 10.0  # with more, all probabilities of the support are nearly equal


class EntmaxContext(NamedTuple):
    out: Array
    axis: int
    alpha: float


class EntmaxGrads(NamedTuple):
    x: Array


def entmax(x: Array, axis: int = -1, *, alpha: float = ENTMAX, mask: Array | None = None) -> Array:
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
        Above 1, where softmax is the limit, to 10; 2 is sparsemax. For 1.5 and 2 the threshold is found in closed form
        and kernels serve NumPy arrays; for others by bisection. Above 2 the map is so steep at the edge of the support
        that roundings of x show; below 1.1 roundings are multiplied by about 1 / (alpha - 1).
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
    return entmax_forward(x, mask, check(x, axis, mask), alpha_of(alpha))


def entmax_fwd(
    x: Array, axis: int = -1, *, alpha: float = ENTMAX, mask: Array | None = None
) -> tuple[Array, EntmaxContext]:
    """`entmax` and the context for `entmax_bwd`: the output alone."""
    axis, alpha = check(x, axis, mask), alpha_of(alpha)
    out = entmax_forward(x, mask, axis, alpha)
    return read_only(out), EntmaxContext(out, axis, alpha)


def entmax_bwd(dout: Array, ctx: EntmaxContext) -> EntmaxGrads:
    r"""The gradient of entmax: dout less its mean over the support, each entry with the weight s.

    .. math:: dx_i = s_i \Bigl(dy_i - \frac{\sum_j s_j\, dy_j}{\sum_j s_j}\Bigr), \qquad s_i = y_i^{2 - \alpha}

    and s = 0 where y = 0. Below alpha = 2 there is no kink: s goes to 0 at the edge of the support. From 2 on there is
    one, and the entry on it counts as outside. What dout holds outside the support does not matter.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> out, ctx = aa.entmax_fwd(np.array([1.0, 1.0, -2.0]))
    >>> aa.entmax_bwd(np.array([2.0, 0.0, 7.0]), ctx).x.round(4).tolist()
    [0.7071, -0.7071, 0.0]
    """
    checks.context("ctx", ctx, EntmaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return EntmaxGrads(entmax_backward(dout, ctx.out, ctx.axis, ctx.alpha))


def alpha_of(alpha: Any) -> float:
    """Check for 1 < alpha <= 10."""
    if not 1 < checks.real(alpha) <= LARGEST_ALPHA:
        raise ValueError(
            f"`alpha` is {checks.shown(alpha)}, expected a number above 1 and up to {LARGEST_ALPHA:g}: 1.5, or 2 for "
            "sparsemax. The limit 1 is softmax."
        )
    return float(alpha)

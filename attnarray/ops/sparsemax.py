"""Sparsemax: the Euclidean projection of logits onto the probability simplex."""

from __future__ import annotations

from typing import Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT
from attnarray.numpy_arrays import read_only
from attnarray.ops.entmax import SPARSEMAX, _entmax, _entmax_backward, check


class SparsemaxContext(NamedTuple, Generic[ArrayT]):
    out: ArrayT
    axis: int


class SparsemaxGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT


def sparsemax(x: ArrayT, axis: int = -1, *, mask: Array | None = None) -> ArrayT:
    r"""The Euclidean projection of logits onto the probability simplex, over `axis`.

    .. math::
        y = \arg\min_{p \ge 0,\, \sum p = 1} \lVert p - x \rVert^2 = [x - \tau]_+, \qquad \sum_i [x_i - \tau]_+ = 1

    Parameters
    ----------
    x : (..., N, ...) floating
        Logits. 16-bit types are computed in float32.
    axis : int
        The axis that sums to 1.
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
        If `axis` is out of range or `mask` does not broadcast.

    Notes
    -----
    Equal logits have equal probabilities. Only logits less than 1 below the maximum have probabilities above 0, so the
    scale of the logits matters. On NumPy arrays a kernel computes tau without sorting, see docs/kernels-cpu.md.

    References
    ----------
    Martins and Astudillo, "From softmax to sparsemax", 2016, arXiv:1602.02068.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.sparsemax(np.array([1.0, 0.5, -1.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    return _entmax(x, mask, check(x, axis, mask), SPARSEMAX)


def sparsemax_fwd(x: ArrayT, axis: int = -1, *, mask: Array | None = None) -> tuple[ArrayT, SparsemaxContext[ArrayT]]:
    """`sparsemax` and the context for `sparsemax_bwd`: the output alone."""
    axis = check(x, axis, mask)
    out = _entmax(x, mask, axis, SPARSEMAX)
    return read_only(out), SparsemaxContext(out, axis)


def sparsemax_bwd(dout: Array, ctx: SparsemaxContext[ArrayT]) -> SparsemaxGrads[ArrayT]:
    r"""The gradient of sparsemax: dout minus its mean over the support.

    .. math::
        dx_i = dy_i - \frac{1}{|S|} \sum_{j \in S} dy_j \quad \text{for } i \in S = \{i : y_i > 0\}, \text{ else } 0

    There is a kink where a logit equals tau: it counts as outside the support, which gives one of the two one-sided
    gradients. Values of dout outside the support are ignored.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> out, ctx = aa.sparsemax_fwd(np.array([1.0, 0.5, -1.0]))
    >>> aa.sparsemax_bwd(np.array([2.0, 0.0, 7.0]), ctx).x.tolist()
    [1.0, -1.0, 0.0]
    """
    checks.context("ctx", ctx, SparsemaxContext)
    checks.cotangent(dout, tuple(ctx.out.shape), ctx.out)
    return SparsemaxGrads(_entmax_backward(dout, ctx.out, ctx.axis, SPARSEMAX))

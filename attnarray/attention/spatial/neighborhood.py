"""Neighborhood attention: each position of a line, an image or a volume attends to the window around it.

The array code gathers the keys of each window, some queries at a time: cost and memory grow with the number of
positions times the size of a window.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.blocks import ranges
from attnarray.attention.engine import SOFTMAX
from attnarray.attention.layout import CANONICAL, Layout
from attnarray.attention.products import hiding_product
from attnarray.attention.sequences import narrow, wide
from attnarray.attention.spatial.axes import check_grid, count, each_axis
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.segments import sum_segments


class Neighborhood(NamedTuple):
    """The windows of a grid: a number for each axis of positions; the scores are multiplied by `scale`."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float


class NeighborhoodContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs, the output, and the lse (B, *size, heads)."""

    query: ArrayT
    key: ArrayT
    value: ArrayT
    relative_bias: ArrayT | None
    out: ArrayT
    lse: ArrayT
    neighborhood: Neighborhood
    layout: Layout = CANONICAL  # of the weights

    @property
    def q(self) -> Any:
        """The queries (B, heads, T, D)."""
        return namespace_of(self.query).permute_dims(_canonical(self.query), (0, 2, 1, 3))

    def weights_of_rows(self, rows: slice) -> Array:
        """The weights of some queries, in row-major order, to all positions: (B, heads, rows, T)."""
        xp, k = namespace_of(self.query), _canonical(wide(self.key))
        bias = _flat_bias(self.relative_bias, k.shape[2], self.neighborhood.kernel_size)
        near = _near(rows, k, self.neighborhood)
        queries, lse = _canonical(wide(self.query))[:, rows, ...], xp.reshape(self.lse, k.shape[:3])[:, rows, :]
        scores = _scores(
            queries, _gathered(k, near.keys), None if bias is None else wide(bias), near, self.neighborhood.scale
        )
        weights = xp.permute_dims(SOFTMAX.weights_again(scores, lse, rows), (0, 2, 1, 3))  # (B, heads, rows, N)
        positions = xp.arange(k.shape[1], dtype=near.keys.dtype, device=device_of(k))
        return xp.matmul(weights[..., None, :], xp.astype(near.keys[..., None] == positions, k.dtype))[..., 0, :]


class NeighborhoodGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    relative_bias: ArrayT | None


def neighborhood_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    kernel_size: int | Sequence[int],
    relative_bias: ArrayT | None = None,
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
) -> ArrayT:
    r"""Each position attends to its nearest neighbors: a window around it, moved inward at the edges of the grid.

    .. math::
        o_i = \sum_{j \in \rho(i)} p_{ij} v_j, \qquad
        p_i = \mathrm{softmax}_{j \in \rho(i)}(\mathrm{scale}\; q_i \cdot k_j + b_{j - i})

    where :math:`\rho(i)` are, along each axis, K neighboring positions. They begin K // 2 before i, but not before the
    first position, and end not after the last one: at an edge a window moves, and does not shrink. With a dilation d,
    neighbors are d apart, and an axis is d grids beside each other. A causal axis has the K positions up to i that
    exist. Time and memory grow with the number of positions times the size of a window.

    Parameters
    ----------
    query : (B, T, heads, D), (B, H, W, heads, D) or (B, Z, H, W, heads, D) floating
        NATTEN's layout, which is "BTHD" with one to three axes of positions. The 16-bit types are computed in float32.
    key : the shape of query
    value : (B, *size, heads, Dv)
    kernel_size : int or one for each axis
        K. Odd, but along a causal axis.
    relative_bias : (heads, 2 K - 1, ...), optional
        b: entry (key - query) / d + K - 1 along each axis is added to the score.
    dilation : int or one for each axis
        d; K d is at most the size of the axis.
    is_causal : bool or one for each axis
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (B, *size, heads, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit, a window is even or larger than its axis, or a dilation does not fit.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Hassani et al., "Neighborhood attention transformer", 2022, arXiv:2204.07143; dilation: Hassani and Shi, "Dilated
    neighborhood attention transformer", 2022, arXiv:2209.15001.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> image = np.random.default_rng(0).standard_normal((1, 8, 9, 2, 4))  # (B, H, W, heads, D)
    >>> aa.neighborhood_attention(image, image, image, 3).shape
    (1, 8, 9, 2, 4)
    >>> line = np.eye(5)[None, :, None, :]  # position i has the value e_i: the output shows the weights
    >>> aa.neighborhood_attention(0 * line, line, line, 3)[0, :, 0].round(2)
    array([[0.33, 0.33, 0.33, 0.  , 0.  ],
           [0.33, 0.33, 0.33, 0.  , 0.  ],
           [0.  , 0.33, 0.33, 0.33, 0.  ],
           [0.  , 0.  , 0.33, 0.33, 0.33],
           [0.  , 0.  , 0.33, 0.33, 0.33]])
    """
    return writable(neighborhood_attention_fwd(
        query, key, value, kernel_size, relative_bias, dilation=dilation, is_causal=is_causal, scale=scale
    )[0])  # fmt: skip


@ignoring_fp_errors
def neighborhood_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    kernel_size: int | Sequence[int],
    relative_bias: ArrayT | None = None,
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
) -> tuple[ArrayT, NeighborhoodContext[ArrayT]]:
    """`neighborhood_attention`, with the same options, and the context for its backward."""
    size = check_grid(query, key, value, relative_bias=relative_bias)
    scale = 1.0 / math.sqrt(query.shape[-1] or 1) if scale is None else checks.positive("scale", scale)
    neighborhood = _checked(size, kernel_size, dilation, is_causal, scale)
    bias = _flat_bias(relative_bias, query.shape[-2], neighborhood.kernel_size)
    q, k, v = (_canonical(wide(x)) for x in (query, key, value))
    canonical_out, lse = attend_to_neighbors(q, k, v, None if bias is None else wide(bias), neighborhood)
    xp = namespace_of(query)
    out = narrow(xp.reshape(canonical_out, value.shape), query)
    ctx = NeighborhoodContext(query, key, value, relative_bias, out, xp.reshape(lse, query.shape[:-1]), neighborhood)
    return read_only(out), ctx


@ignoring_fp_errors
def neighborhood_attention_bwd(
    dout: Array, ctx: NeighborhoodContext[ArrayT], dlse: Array | None = None
) -> NeighborhoodGrads[ArrayT]:
    r"""The gradients of neighborhood attention; the weights are computed again from the lse.

    .. math::
        ds_{ij} = p_{ij} (do_i \cdot v_j - do_i \cdot o_i + d\mathrm{lse}_i), \qquad
        dq_i = \mathrm{scale} \sum_{j \in \rho(i)} ds_{ij} k_j

    .. math::
        dk_j = \mathrm{scale} \sum_{i:\, j \in \rho(i)} ds_{ij} q_i, \qquad
        dv_j = \sum_{i:\, j \in \rho(i)} p_{ij}\, do_i, \qquad db_\delta = \sum_{j - i = \delta} ds_{ij}

    The positions i whose windows have j are a block of the grid, too: near an edge more than the size of a window.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : NeighborhoodContext
    dlse : (B, *size, heads), optional
        A cotangent of `ctx.lse`.

    Returns
    -------
    NeighborhoodGrads
        query, key, value, relative_bias (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> line = np.random.default_rng(0).standard_normal((1, 5, 1, 4))
    >>> out, ctx = aa.neighborhood_attention_fwd(0 * line, line, line, 3)
    >>> aa.neighborhood_attention_bwd(np.ones_like(out), ctx).value[0, :, 0, 0].round(2)  # the weights of each key
    array([0.67, 1.  , 1.67, 1.  , 0.67])
    """
    checks.context("ctx", ctx, NeighborhoodContext)
    query, key, value, relative_bias, out, lse, neighborhood, _ = ctx
    xp = checks.cotangent(dout, tuple(value.shape), query)
    bias = _flat_bias(relative_bias, query.shape[-2], neighborhood.kernel_size)
    delta = xp.sum(hiding_product(wide(out), wide(dout)), axis=-1)  # (B, *size, heads)
    if dlse is not None:
        checks.shape("dlse", dlse, tuple(lse.shape), "the shape of the lse")
        checks.namespace(dlse=dlse, query=query)
        checks.floating(dlse=dlse)
        delta = delta - xp.astype(dlse, delta.dtype, copy=False)
    do, q, k, v = (_canonical(wide(x)) for x in (dout, query, key, value))
    delta, lse = (xp.reshape(x, q.shape[:-1]) for x in (delta, lse))
    grads = attend_to_neighbors_backward(do, delta, q, k, v, None if bias is None else wide(bias), lse, neighborhood)
    pairs = zip(grads, (query, key, value, relative_bias), strict=True)
    dq, dk, dv, dbias = (None if x is None else narrow(xp.reshape(grad, x.shape), x) for grad, x in pairs)
    return NeighborhoodGrads(dq, dk, dv, dbias)


@accelerated
def attend_to_neighbors(
    q: Array, k: Array, v: Array, bias: Array | None, neighborhood: Neighborhood
) -> tuple[Array, Array]:
    r"""Attention of each position of a grid to the N neighbors of its window.

    .. math:: o_i = \sum_n p_{in} v_{j(i, n)}, \qquad s_{in} = \mathrm{scale}\; q_i \cdot k_{j(i, n)} + b_{r(i, n)}

    Parameters
    ----------
    q, k : (B, T, heads, D), v : (B, T, heads, Dv) float32 or float64
        T positions in row-major order.
    bias : (heads, R) or None
        For all relative positions in row-major order.
    neighborhood : Neighborhood

    Returns
    -------
    out : (B, T, heads, Dv), lse : (B, T, heads)
    """
    xp = namespace_of(q, k, v)
    outs, lses = [], []
    for rows, near in _blocks(q, v, neighborhood):
        scores = _scores(q[:, rows, ...], _gathered(k, near.keys), bias, near, neighborhood.scale)
        weights, lse = SOFTMAX.weights(scores, rows)
        outs.append(xp.matmul(weights[..., None, :], _gathered(v, near.keys))[..., 0, :])
        lses.append(lse)
    return xp.concat(outs, axis=1), xp.concat(lses, axis=1)


@accelerated
def attend_to_neighbors_backward(
    dout: Array, delta: Array, q: Array, k: Array, v: Array, bias: Array | None, lse: Array, neighborhood: Neighborhood
) -> tuple[Array, Array, Array, Any]:
    r"""The gradients of `attend_to_neighbors`.

    .. math:: ds_{in} = p_{in} (do_i \cdot v_{j(i, n)} - \delta_i), \qquad \delta_i = do_i \cdot o_i - d\mathrm{lse}_i

    Parameters
    ----------
    dout : (B, T, heads, Dv), delta, lse : (B, T, heads)
    q, k, v, bias, neighborhood
        As in `attend_to_neighbors`.

    Returns
    -------
    dq, dk, dv, dbias : the shapes of q, k, v, bias
    """
    xp = namespace_of(dout, q, k, v)
    dqs, dk, dv, dbias = [], xp.zeros_like(k), xp.zeros_like(v), None if bias is None else xp.zeros_like(bias)
    for rows, near in _blocks(q, v, neighborhood):
        queries, do, keys = q[:, rows, ...], dout[:, rows, ...], _gathered(k, near.keys)
        weights = SOFTMAX.weights_again(_scores(queries, keys, bias, near, neighborhood.scale), lse[:, rows, :], rows)
        dweights = xp.matmul(_gathered(v, near.keys), do[..., None])[..., 0]  # (B, rows, heads, N)
        dscores = xp.where(weights == 0, 0.0, weights * (dweights - delta[:, rows, :, None]))
        if dbias is not None:
            dbias = dbias + _sum_relative(dscores, near.relative, dbias.shape[1])
        dscores = neighborhood.scale * dscores
        dqs.append(xp.matmul(dscores[..., None, :], keys)[..., 0, :])
        dk = dk + _sum_over_queries(dscores, queries, near.keys, k.shape[1])
        dv = dv + _sum_over_queries(weights, do, near.keys, k.shape[1])
    return xp.concat(dqs, axis=1), dk, dv, dbias


class Near(NamedTuple):
    """The windows of some queries, as (rows, N): the keys, which of them exist, and their relative positions."""

    keys: Array
    exists: Array | None  # None if all do
    relative: Array


def _blocks(q: Array, v: Array, neighborhood: Neighborhood) -> Iterator[tuple[slice, Near]]:
    """Ranges of queries with their windows, so that the gathered keys and values of a range are held at a time."""
    each = q.shape[0] * q.shape[2] * (q.shape[3] + v.shape[3]) * math.prod(neighborhood.kernel_size)
    for rows in ranges(q.shape[1], each):
        yield rows, _near(rows, q, neighborhood)


def _near(rows: slice, like: Array, neighborhood: Neighborhood) -> Near:
    xp = namespace_of(like)
    dtype, device = index_dtype(xp, like), device_of(like)
    position = xp.arange(rows.start, rows.stop, dtype=dtype, device=device)
    keys = relative = xp.zeros((position.shape[0], 1), dtype=dtype, device=device)
    exists, stride = keys == 0, math.prod(neighborhood.size)
    for size, width, d, causal in zip(*neighborhood[:4], strict=True):
        stride //= size
        along = position // stride % size
        index, grid = along // d, along % d  # position `index` of one of the d grids
        first = index - width + 1
        if not causal:
            last = (size - grid + d - 1) // d - width
            first = xp.where(index < width // 2, 0, index - width // 2)
            first = xp.where(first > last, last, first)
        near = first[:, None] + xp.arange(width, dtype=dtype, device=device)  # (rows, width)
        exists = _pairs(exists, near >= 0, operator.and_)
        keys = _pairs(keys, stride * (xp.where(near < 0, 0, near) * d + grid[:, None]), operator.add)
        relative = _pairs((2 * width - 1) * relative, near - index[:, None] + width - 1, operator.add)
    return Near(keys, exists if any(neighborhood.is_causal) else None, relative)


def _pairs(x: Array, y: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """(rows, M) and (rows, N) -> (rows, M N)."""
    return namespace_of(x).reshape(combine(x[:, :, None], y[:, None, :]), (x.shape[0], x.shape[1] * y.shape[1]))


def _scores(q: Array, keys: Array, bias: Array | None, near: Near, scale: float) -> Array:
    """The scores (B, rows, heads, N) of queries (B, rows, heads, D) and gathered keys (B, rows, heads, N, D)."""
    xp = namespace_of(q)
    scores = scale * xp.matmul(keys, q[..., None])[..., 0]
    if bias is not None:
        each = xp.take(bias, xp.reshape(near.relative, (-1,)), axis=1)
        scores = scores + xp.permute_dims(xp.reshape(each, (bias.shape[0], *near.relative.shape)), (1, 0, 2))
    return scores if near.exists is None else xp.where(near.exists[:, None, :], scores, -math.inf)


def _gathered(x: Array, keys: Array) -> Array:
    """The rows of x (B, T, heads, D) with the indices (rows, N): (B, rows, heads, N, D)."""
    xp = namespace_of(x)
    found = xp.reshape(xp.take(x, xp.reshape(keys, (-1,)), axis=1), (x.shape[0], *keys.shape, *x.shape[2:]))
    return xp.permute_dims(found, (0, 1, 3, 2, 4))


def _sum_over_queries(factors: Array, rows: Array, keys: Array, positions: int) -> Array:
    """The sums (B, T, heads, D) over the windows that have a key of factor (B, rows, heads, N) times row."""
    xp = namespace_of(factors)
    B, R, heads, N = factors.shape
    terms = xp.permute_dims(factors[..., None] * rows[..., None, :], (0, 1, 3, 2, 4))
    total = sum_segments(xp.reshape(terms, (B, R * N, heads * rows.shape[3])), xp.reshape(keys, (-1,)), positions)
    return xp.reshape(total, (B, positions, heads, rows.shape[3]))


def _sum_relative(dscores: Array, relative: Array, count: int) -> Array:
    """The sums (heads, R) over all pairs of a relative position."""
    xp = namespace_of(dscores)
    terms = xp.permute_dims(xp.sum(dscores, axis=0), (1, 0, 2))  # (heads, rows, N)
    terms = xp.reshape(terms, (terms.shape[0], terms.shape[1] * terms.shape[2], 1))
    return sum_segments(terms, xp.reshape(relative, (-1,)), count)[..., 0]


def _canonical(x: Array) -> Array:
    """(B, *size, heads, D) -> (B, T, heads, D)."""
    return namespace_of(x).reshape(x, (x.shape[0], math.prod(x.shape[1:-2]), *x.shape[-2:]))


def _flat_bias(relative_bias: Array | None, heads: int, kernel_size: tuple[int, ...]) -> Array | None:
    """The bias as (heads, R), checked."""
    if relative_bias is None:
        return None
    expected = (heads, *(2 * width - 1 for width in kernel_size))
    checks.shape("relative_bias", relative_bias, expected, "(heads, 2 kernel_size - 1 of each axis)")
    return namespace_of(relative_bias).reshape(relative_bias, (heads, math.prod(expected[1:])))


def _checked(size: tuple[int, ...], kernel_size: Any, dilation: Any, is_causal: Any, scale: float) -> Neighborhood:
    widths = each_axis("kernel_size", kernel_size, size, count("the positions of a window along an axis"))
    dilations = each_axis("dilation", dilation, size, count("the distance of two neighbors"))
    causal = each_axis("is_causal", is_causal, size, checks.flag)
    for axis, (positions, width, d) in enumerate(zip(size, widths, dilations, strict=True)):
        if width % 2 == 0 and not causal[axis]:
            raise ValueError(
                f"`kernel_size` is {width} along axis {axis} of {size}, expected an odd number: a window has its query "
                f"in the middle. Use {width - 1} or {width + 1}."
            )
        if width * d > positions:
            given = f"`kernel_size` ({width}) times `dilation` ({d})" if d > 1 else "`kernel_size`"
            raise ValueError(
                f"{given} is {width * d}, larger than the {positions} positions along axis {axis} of {size}. Use a "
                f"smaller window{' or dilation' if d > 1 else ''}."
            )
    return Neighborhood(size, widths, dilations, causal, scale)

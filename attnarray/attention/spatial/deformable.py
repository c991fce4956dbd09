"""Deformable attention: each query samples a few points of images of several sizes, between their pixels.

The array code gathers the four pixels around each point, some queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.blocks import ranges
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.ops.segments import sum_segments

Shapes = tuple[tuple[int, int], ...]


class DeformableContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs."""

    value: ArrayT
    sampling_locations: ArrayT
    attention_weights: ArrayT
    spatial_shapes: Shapes


class DeformableGrads(NamedTuple, Generic[ArrayT]):
    value: ArrayT
    sampling_locations: ArrayT
    attention_weights: ArrayT


def deformable_attention(
    value: ArrayT,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: ArrayT,
    attention_weights: ArrayT,
) -> ArrayT:
    r"""The weighted sum of values that are sampled at given points of one or several levels of an image.

    .. math::
        o_t = \sum_{l, n} w_{tln} V_l(y_{tln}, x_{tln}), \qquad
        V(y, x) = \sum_{r, c} \max(0, 1 - |y - r|) \max(0, 1 - |x - c|)\, v_{rc}

    for each head, with x = W X - 1/2 and y = H Y - 1/2 for a location (X, Y). There are no scores of pairs: a query
    predicts both its points and their weights, usually by linear layers and a softmax over all points of a head.
    Beyond the border an image is 0.

    Parameters
    ----------
    value : (B, S, heads, D) floating
        The pixels of all levels, one level after the other, each in row-major order. The 16-bit types are computed in
        float32.
    spatial_shapes : sequence of (H, W)
        The sizes of the L levels, whose pixels sum to S.
    sampling_locations : (B, T, heads, L, points, 2)
        (X, Y): 0 is the left or upper border of the image, 1 the right or lower one.
    attention_weights : (B, T, heads, L, points)
        They need not sum to 1.

    Returns
    -------
    (B, T, heads, D) of the dtype of value

    Raises
    ------
    ValueError
        If shapes do not fit, or the levels do not sum to the number of values.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Where a point crosses a row or column of pixels, the gradient of its location jumps.

    References
    ----------
    Zhu et al., "Deformable DETR", 2020, arXiv:2010.04159.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> value = np.arange(6.0).reshape(1, 6, 1, 1)  # an image of 2 x 3 pixels
    >>> points = np.array([[0.5, 0.5], [1 / 6, 1 / 4], [1.0, 0.25]])  # its center, its first pixel, on its border
    >>> locations, weights = points.reshape(1, 3, 1, 1, 1, 2), np.ones((1, 3, 1, 1, 1))
    >>> aa.deformable_attention(value, [(2, 3)], locations, weights).ravel().round(12)
    array([2.5, 0. , 1. ])
    """
    return deformable_attention_fwd(value, spatial_shapes, sampling_locations, attention_weights)[0]


@ignoring_fp_errors
def deformable_attention_fwd(
    value: ArrayT,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: ArrayT,
    attention_weights: ArrayT,
) -> tuple[ArrayT, DeformableContext[ArrayT]]:
    """`deformable_attention`, with the same options, and the context for its backward."""
    shapes = _checked(value, spatial_shapes, sampling_locations, attention_weights)
    out = sample(wide(value), wide(sampling_locations), wide(attention_weights), shapes)
    return narrow(out, value), DeformableContext(value, sampling_locations, attention_weights, shapes)


@ignoring_fp_errors
def deformable_attention_bwd(dout: Array, ctx: DeformableContext[ArrayT]) -> DeformableGrads[ArrayT]:
    r"""The gradients of deformable attention.

    .. math::
        dw_{tln} = do_t \cdot V_l(y, x), \qquad
        dv_{rc} = \sum_{t, l, n} w_{tln} \max(0, 1 - |y - r|) \max(0, 1 - |x - c|)\, do_t

    .. math::
        dX_{tln} = W w_{tln} \sum_{r, c} \pm \max(0, 1 - |y - r|)\, do_t \cdot v_{rc}

    with + for the two pixels on the right of the point and - for those on its left; dY likewise with + below.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : DeformableContext

    Returns
    -------
    DeformableGrads
        value, sampling_locations, attention_weights.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> value = np.arange(6.0).reshape(1, 6, 1, 1)
    >>> locations, weights = np.full((1, 1, 1, 1, 1, 2), 0.45), np.ones((1, 1, 1, 1, 1))
    >>> out, ctx = aa.deformable_attention_fwd(value, [(2, 3)], locations, weights)
    >>> aa.deformable_attention_bwd(np.ones_like(out), ctx).sampling_locations.ravel()  # 3 pixels of 1, 2 of 3
    array([3., 6.])
    """
    checks.context("ctx", ctx, DeformableContext)
    value, locations, weights, shapes = ctx
    checks.cotangent(dout, (*weights.shape[:3], value.shape[3]), value)
    dvalue, dlocations, dweights = sample_backward(wide(dout), wide(value), wide(locations), wide(weights), shapes)
    return DeformableGrads(narrow(dvalue, value), narrow(dlocations, value), narrow(dweights, value))


@accelerated
def sample(v: Array, locations: Array, weights: Array, shapes: Shapes) -> Any:
    r"""The weighted sums of values at points between pixels.

    .. math:: o_t = \sum_n w_{tn} V(y_{tn}, x_{tn})

    Parameters
    ----------
    v : (B, S, heads, D), locations : (B, T, heads, L, points, 2), weights : (B, T, heads, L, points)
        float32 or float64
    shapes : the sizes of the levels

    Returns
    -------
    (B, T, heads, D)
    """
    xp = namespace_of(v, locations, weights)
    outs = []
    for rows, corners in _blocks(v, locations, shapes):
        factors = _flat_points(weights[:, rows, ...])
        total: Any = 0.0
        for corner in corners:
            share = factors * corner.factor
            total = total + xp.sum(share[..., None] * _pixels(v, corner), axis=3)
        outs.append(total)
    return xp.concat(outs, axis=1)


@accelerated
def sample_backward(dout: Array, v: Array, locations: Array, weights: Array, shapes: Shapes) -> tuple[Any, Any, Any]:
    r"""The gradients of `sample`.

    .. math::
        dw_{tn} = do_t \cdot V(y, x), \qquad dx_{tn} = w_{tn}\, do_t \cdot \partial_x V(y, x), \qquad
        dv_{rc} = \sum_{t, n} w_{tn} \max(0, 1 - |y - r|) \max(0, 1 - |x - c|)\, do_t

    Parameters
    ----------
    dout : (B, T, heads, D)
    v, locations, weights, shapes
        As in `sample`.

    Returns
    -------
    dv, dlocations, dweights : the shapes of v, locations, weights
    """
    xp = namespace_of(dout, v, locations, weights)
    B, S, heads, D = v.shape
    dv = xp.zeros((B * S * heads, D), dtype=v.dtype, device=device_of(v))
    dlocations, dweights = [], []
    for rows, corners in _blocks(v, locations, shapes):
        factors, do = _flat_points(weights[:, rows, ...]), dout[:, rows, :, None, :]  # (B, rows, heads, points)
        dweight: Any = 0.0
        dx: Any = 0.0
        dy: Any = 0.0
        for corner in corners:
            products = xp.sum(do * _pixels(v, corner), axis=-1)
            dweight, dx, dy = dweight + corner.factor * products, dx + corner.dx * products, dy + corner.dy * products
            terms = xp.where(corner.inside, factors * corner.factor, 0.0)[..., None] * do
            terms = xp.reshape(terms, (math.prod(terms.shape[:4]), D))
            dv = dv + sum_segments(terms, xp.reshape(corner.rows, (-1,)), B * S * heads)
        dlocations.append(xp.stack([factors * dx, factors * dy], axis=-1))
        dweights.append(dweight)
    dlocation, dweight = xp.concat(dlocations, axis=1), xp.concat(dweights, axis=1)
    return xp.reshape(dv, v.shape), xp.reshape(dlocation, locations.shape), xp.reshape(dweight, weights.shape)


class Corner(NamedTuple):
    """One of the four pixels around each point, as (B, rows, heads, points)."""

    rows: Array  # of the values as (B S heads, D); any row beyond the border
    inside: Array
    factor: Array
    dx: Array  # of the factor by X, and by Y
    dy: Array


def _blocks(v: Array, locations: Array, shapes: Shapes) -> Iterator[tuple[slice, list[Corner]]]:
    """Ranges of queries with the pixels around their points, so that the values of a range are held at a time."""
    each = math.prod(locations.shape[2:5]) * v.shape[0] * (v.shape[3] + 8)
    for rows in ranges(locations.shape[1], each):
        yield rows, _corners(v, locations[:, rows, ...], shapes)


def _corners(v: Array, locations: Array, shapes: Shapes) -> list[Corner]:
    xp = namespace_of(v)
    dtype, device, (B, S, heads, _) = index_dtype(xp, v), device_of(v), v.shape
    sizes = xp.asarray(shapes, dtype=dtype, device=device)  # (L, 2)
    levels = [sum(H * W for H, W in shapes[:level]) for level in range(len(shapes))]
    starts = xp.asarray(levels, dtype=dtype, device=device)[:, None]
    height, width = sizes[:, :1], sizes[:, 1:]
    x = locations[..., 0] * xp.astype(width, v.dtype) - 0.5  # (B, rows, heads, L, points)
    y = locations[..., 1] * xp.astype(height, v.dtype) - 0.5
    (left, right), (above, below) = _around(x, width, dtype), _around(y, height, dtype)
    b = xp.reshape(xp.arange(B, dtype=dtype, device=device), (B, 1, 1, 1, 1))
    h = xp.reshape(xp.arange(heads, dtype=dtype, device=device), (heads, 1, 1))
    corners = []
    for row, row_factor, row_sign in (above, below):
        for column, column_factor, column_sign in (left, right):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = xp.where(inside, starts + row * width + column, 0)
            parts = (
                (b * S + pixel) * heads + h, inside, row_factor * column_factor,
                column_sign * xp.astype(width, v.dtype) * row_factor,
                row_sign * xp.astype(height, v.dtype) * column_factor,
            )  # fmt: skip
            corners.append(Corner(*(_flat_points(part) for part in parts)))
    return corners


def _around(x: Array, size: Array, dtype: Any) -> tuple[tuple[Array, Array, float], tuple[Array, Array, float]]:
    """The pixels before and after x along an axis, their factors, and the signs of the derivatives of these by x."""
    xp = namespace_of(x)
    beyond = (x <= -1) | (x >= xp.astype(size, x.dtype))  # not NaN, which is to propagate
    x = xp.where(beyond, -2.0, x)
    before = xp.floor(xp.where(xp.isnan(x), 0.0, x))
    pixel, rest = xp.astype(before, dtype), x - before
    return (pixel, 1.0 - rest, -1.0), (pixel + 1, rest, 1.0)


def _pixels(v: Array, corner: Corner) -> Array:
    """The values of a corner, 0 beyond the border: (B, rows, heads, points, D)."""
    xp = namespace_of(v)
    flat = xp.reshape(v, (math.prod(v.shape[:3]), v.shape[3]))
    found = xp.reshape(xp.take(flat, xp.reshape(corner.rows, (-1,)), axis=0), (*corner.rows.shape, v.shape[3]))
    return xp.where(corner.inside[..., None], found, 0.0)


def _flat_points(x: Array) -> Array:
    """(B, rows, heads, L, points) -> (B, rows, heads, L points)."""
    return namespace_of(x).reshape(x, (*x.shape[:3], x.shape[3] * x.shape[4]))


def _checked(value: Array, spatial_shapes: Any, locations: Array, weights: Array) -> Shapes:
    named: Any = {"value": value, "sampling_locations": locations, "attention_weights": weights}
    checks.required(**named)
    checks.namespace(**named)
    checks.floating(**named)
    shown = checks.shapes(**named)
    if value.ndim != 4:
        raise ValueError(f"`value` has shape {tuple(value.shape)}, expected (B, S, heads, D). {shown}")
    shapes = _levels(spatial_shapes)
    pixels = sum(H * W for H, W in shapes)
    if pixels != value.shape[1]:
        raise ValueError(
            f"`spatial_shapes` {shapes} have {pixels} pixels, but `value` has {value.shape[1]}; they must be equal: "
            f"the pixels of all levels one after the other. {shown}"
        )
    B, _, heads, _ = value.shape
    T, points = (*locations.shape[1:2], 0)[0], (*locations.shape[4:5], 0)[0]
    expected = (B, T, heads, len(shapes), points, 2)
    checks.shape("sampling_locations", locations, expected, f"(B, T, heads, levels, points, 2). {shown}"[:-1])
    checks.shape("attention_weights", weights, expected[:-1], f"one for each sampling location. {shown}"[:-1])
    return shapes


def _levels(spatial_shapes: Any) -> Shapes:
    rows = spatial_shapes.tolist() if checks.is_array(spatial_shapes) else spatial_shapes
    if not isinstance(rows, tuple | list) or not rows:
        raise TypeError(f"`spatial_shapes` is {checks.shown(rows)}, expected a list of (H, W), one for each level.")
    found = []
    for level, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) != 2:
            raise ValueError(f"`spatial_shapes[{level}]` is {checks.shown(row)}, expected (H, W).")
        H, W = (checks.whole(f"spatial_shapes[{level}]", n, 1, 2**31 - 1, "a height or width in pixels") for n in row)
        found.append((H, W))
    return tuple(found)

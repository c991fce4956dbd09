"""Axial attention: along one axis of a line, an image or a volume, with the others as batch."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.options import ScoreOptions, known_options
from attnarray.attention.spatial.axes import LAYOUTS
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable


class AxialContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: that of the attention along the axis, and the axis."""

    attention: SDPAContext[ArrayT]
    axis: int


class AxialGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None


def axial_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    axis: int,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Attention along one axis: each position attends to those that differ from it in that coordinate alone.

    .. math::
        o_{xy} = \sum_{y'} p_{xyy'} v_{xy'}, \qquad
        p_{xy} = \mathrm{softmax}_{y'}(\mathrm{scale}\; q_{xy} \cdot k_{xy'})

    for the axis y of an image. Two layers, one along each axis, let every position reach every other one, in time
    H W (H + W) instead of (H W)^2.

    Parameters
    ----------
    query : (B, T, heads, D), (B, H, W, heads, D) or (B, Z, H, W, heads, D) floating
    key : (B, *size, Hkv, D)
        May have another size along `axis`.
    value : (B, *size, Hkv, Dv)
    axis : int
        The axis of the arrays to attend along, such as 1 for H and 2 for W of an image.
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask
        As in `scaled_dot_product_attention`, where the batch is (B, *other axes): a bias may be (heads, T, S).

    Returns
    -------
    (B, *size, heads, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit, or `axis` is none of positions.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Ho et al., "Axial attention in multidimensional transformers", 2019, arXiv:1912.12180.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> image = np.random.default_rng(0).standard_normal((1, 5, 6, 2, 4))  # (B, H, W, heads, D)
    >>> rows = aa.axial_attention(image, image, image, axis=2)
    >>> aa.axial_attention(rows, rows, rows, axis=1).shape
    (1, 5, 6, 2, 4)
    """
    return writable(axial_attention_fwd(query, key, value, axis, attn_mask, dropout_p, is_causal, **options)[0])


def axial_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    axis: int,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[ScoreOptions],
) -> tuple[ArrayT, AxialContext[ArrayT]]:
    """`axial_attention`, with the same options, and the context for its backward."""
    known_options(options, ScoreOptions)
    checks.required(query=query, key=key, value=value)
    checks.namespace(query=query, key=key, value=value)
    named = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim or not 4 <= query.ndim <= 6:
        raise ValueError(
            f"`query`, `key` and `value` have {query.ndim}, {key.ndim} and {value.ndim} axes; they must have equally "
            f"many: {LAYOUTS}. {named}"
        )
    along = checks.axis("axis", axis, query.ndim)
    if not 1 <= along <= query.ndim - 3:
        raise ValueError(
            f"`axis` is {axis}, expected an axis of positions, from 1 to {query.ndim - 3}: the first is the batch, the "
            f"last two are heads and dim. {named}"
        )
    q, k, v = (_last(x, along) for x in (query, key, value))
    given: dict[str, Any] = {**options, "layout": "BTHD"}
    out, attention = scaled_dot_product_attention_fwd(q, k, v, attn_mask, dropout_p, is_causal, **given)
    return _back(out, along), AxialContext(attention, along)


def axial_attention_bwd(
    dout: Array, ctx: AxialContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> AxialGrads[ArrayT]:
    r"""The gradients of axial attention: those of each sequence along the axis.

    .. math::
        ds_{xyy'} = p_{xyy'} (do_{xy} \cdot v_{xy'} - do_{xy} \cdot o_{xy}), \qquad
        dq_{xy} = \mathrm{scale} \sum_{y'} ds_{xyy'} k_{xy'}

    .. math::
        dk_{xy'} = \mathrm{scale} \sum_y ds_{xyy'} q_{xy}, \qquad dv_{xy'} = \sum_y p_{xyy'}\, do_{xy}

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : AxialContext
    dlse : (B, *other axes, heads, T), optional
        A cotangent of the lse along the axis.
    dweights : (B, *other axes, heads, T, T), optional
        A cotangent of the weights along the axis.

    Returns
    -------
    AxialGrads
        query, key, value, bias (None if it was not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> image = np.random.default_rng(0).standard_normal((1, 5, 6, 2, 4))
    >>> out, ctx = aa.axial_attention_fwd(image, image, image, axis=2, is_causal=True)
    >>> aa.axial_attention_bwd(np.ones_like(out), ctx).key.shape
    (1, 5, 6, 2, 4)
    """
    checks.context("ctx", ctx, AxialContext)
    expected = _moved(ctx.attention.out_shape, ctx.axis)
    checks.cotangent(dout, expected, ctx.attention.q)
    dq, dk, dv, dbias, _ = scaled_dot_product_attention_bwd(_last(dout, ctx.axis), ctx.attention, dlse, dweights)
    return AxialGrads(_back(dq, ctx.axis), _back(dk, ctx.axis), _back(dv, ctx.axis), dbias)


def _last(x: Array, axis: int) -> Any:
    """The axis as the last one of positions."""
    others = [n for n in range(x.ndim - 2) if n != axis]
    return namespace_of(x).permute_dims(x, (*others, axis, x.ndim - 2, x.ndim - 1))


def _back(x: Array, axis: int) -> Any:
    """The inverse of `_last`."""
    return namespace_of(x).permute_dims(x, _moved(tuple(range(x.ndim)), axis))


def _moved(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The last of the axes of positions at its place."""
    *others, last = axes[:-2]
    return (*others[:axis], last, *others[axis:], *axes[-2:])

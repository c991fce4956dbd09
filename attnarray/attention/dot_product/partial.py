"""Attention over a part of the keys, and the merge of the parts: the seam for split, ring and tree attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Unpack

import attnarray.attention.dot_product.scaled_dot_product as whole
from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT, attention
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import Options
from attnarray.attention.products import hiding_product
from attnarray.backend import Array, ArrayT, accumulator_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable


class Partial(NamedTuple, Generic[ArrayT]):
    """The result over a part of the keys: its own output and lse, which say how much it counts in the whole.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> part = aa.attention_partial(*np.zeros((3, 1, 2, 4, 8)))
    >>> part.out.shape, part.lse.shape
    ((1, 2, 4, 8), (1, 2, 4))
    """

    out: ArrayT  # (*batch, H, T, Dv)
    lse: ArrayT  # (*batch, H, T)


def attention_partial(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    kv_offset: int = 0,
    **options: Unpack[Options],
) -> Partial[ArrayT]:
    r"""Attention of all queries over some of the keys.

    .. math:: o_i = \sum_{j \in \mathrm{part}} e^{s_{ij} - \mathrm{lse}_i} v_j, \qquad
        \mathrm{lse}_i = \log \sum_{j \in \mathrm{part}} e^{s_{ij}}

    Parameters
    ----------
    query, key, value, attn_mask, dropout_p, is_causal, **options
        As in `scaled_dot_product_attention`. Arrays over keys (key, value, attn_mask, bias) hold the part only;
        positions and lengths (q_offset, kv_lengths, window, causal) count in the whole. Give `sinks` to one part only.
    kv_offset : int
        The position of the part's first key in the whole.

    Returns
    -------
    Partial
        out (*batch, H, T, Dv) and lse (*batch, H, T); queries that see no key of the part have 0 and -inf.

    Raises
    ------
    ValueError, TypeError
        As `scaled_dot_product_attention`; also for a negative `kv_offset`.

    References
    ----------
    Milakov and Gimelshein, arXiv:1805.02867; ring attention: Liu et al., arXiv:2310.01889.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 8))
    >>> parts = [aa.attention_partial(q, k[:, :, n : n + 3], v[:, :, n : n + 3], kv_offset=n) for n in (0, 3)]
    >>> bool(np.allclose(aa.merge_partials(parts).out, aa.scaled_dot_product_attention(q, k, v)))
    True
    """
    return writable(attention_partial_fwd(
        query, key, value, attn_mask, dropout_p, is_causal, kv_offset=kv_offset, **options
    )[0])  # fmt: skip


def attention_partial_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    kv_offset: int = 0,
    **options: Unpack[Options],
) -> tuple[Partial[ArrayT], whole.SDPAContext[ArrayT]]:
    """`attention_partial` and its context, which is that of `scaled_dot_product_attention`."""
    q, k, v, modifiers, layout, bias_shape = whole.attention_problem(
        query, key, value, attn_mask, dropout_p, is_causal, kv_offset=kv_offset, **options
    )
    out, lse = attention(q, k, v, modifiers)
    ctx = whole.SDPAContext(q, k, v, out, lse, DOT_PRODUCT, modifiers, Softmax(modifiers.sinks), layout, bias_shape)
    return Partial(read_only(layout.restore(out)), read_only(layout.restore_rows(lse))), ctx


def attention_partial_bwd(
    dout: Partial, ctx: whole.SDPAContext[ArrayT], merged: Partial | None = None
) -> whole.SDPAGrads[ArrayT]:
    r"""The gradients of a part.

    With :math:`\delta_i = do_i \cdot o_i - d\mathrm{lse}_i` all else is as in `scaled_dot_product_attention_bwd`.

    Parameters
    ----------
    dout : Partial
        The cotangents of out and lse (lse may be None).
    ctx : SDPAContext
    merged : Partial, optional
        The merged result of all parts. Then `dout` is the cotangent of that result, and the gradients are those of the
        whole with respect to this part: add those of the query over the parts. Saves `merge_partials_bwd`.
    """
    dout = _partial("dout", dout)
    checks.context("ctx", ctx, whole.SDPAContext)
    if merged is not None:
        merged = _partial("merged", merged)
        checks.shape("merged.lse", merged.lse, tuple(ctx.layout.restore_rows(ctx.lse).shape), "the shape of its lse")
        out = ctx.layout.canonical(merged.out)
        checks.shape("merged.out", out, tuple(ctx.out.shape), "the shape of this part's output")
        ctx = ctx._replace(out=out, kept=namespace_of(merged.lse).reshape(merged.lse, ctx.lse.shape))
    return whole.scaled_dot_product_attention_bwd(dout.out, ctx, dout.lse)


class MergeContext(NamedTuple, Generic[ArrayT]):
    partials: tuple[Partial, ...]
    weights: tuple[ArrayT, ...]  # (*batch, H, T) each
    out: ArrayT
    layout: checks.LayoutName


class MergeGrads(NamedTuple, Generic[ArrayT]):
    partials: tuple[Partial, ...]


def merge_partials(partials: Sequence[Partial[ArrayT]], *, layout: checks.LayoutName = "BHTD") -> Partial[ArrayT]:
    r"""The attention over all keys from the attention over parts of them.

    .. math:: \mathrm{lse} = \log \sum_n e^{\mathrm{lse}_n}, \qquad w_n = e^{\mathrm{lse}_n - \mathrm{lse}}, \qquad
        o = \sum_n w_n o_n

    Parameters
    ----------
    partials : sequence of Partial
        Equal shapes; at least one. The order does not matter beyond rounding.
    layout : {"BHTD", "BTHD"}
        That of the outputs.

    Returns
    -------
    Partial
        So that merges can be merged. Where all lse are -inf the output is 0.

    Raises
    ------
    ValueError
        If there is no part, or shapes differ.
    TypeError
        If the parts are not floating, differ in dtype or come from different libraries.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> part = aa.attention_partial(*np.ones((3, 1, 1, 2, 4)))
    >>> aa.merge_partials([part]).out.shape
    (1, 1, 2, 4)
    """
    return writable(merge_partials_fwd(partials, layout=layout)[0])


@ignoring_fp_errors
def merge_partials_fwd(
    partials: Sequence[Partial[ArrayT]], *, layout: checks.LayoutName = "BHTD"
) -> tuple[Partial[ArrayT], MergeContext[ArrayT]]:
    """`merge_partials` and the context for its backward."""
    checks.choice("layout", layout, checks.LAYOUTS)
    if isinstance(partials, Partial) or not isinstance(partials, Iterable):
        raise TypeError("`partials` must be a sequence of Partial(out, lse): merge_partials([part, ...]).")
    parts = tuple(_partial(f"partials[{n}]", part) for n, part in enumerate(partials))
    if not parts:
        raise ValueError("`partials` is empty, expected at least one Partial(out, lse).")
    rows = tuple(parts[0].out.shape[:-1])  # (*batch, H, T), or (*batch, T, H)
    rows = (*rows[:-2], rows[-1], rows[-2]) if layout == "BTHD" else rows
    checks.shape("partials[0].lse", parts[0].lse, rows, "one number for each row of its out")
    for part in parts[1:]:
        checks.shape("out", part.out, tuple(parts[0].out.shape), "all parts have the same shape")
        checks.shape("lse", part.lse, tuple(parts[0].lse.shape), "all parts have the same shape")
    xp = namespace_of(*(array for part in parts for array in part))
    checks.floating(**{f"partials[{n}].out": part.out for n, part in enumerate(parts)})
    checks.floating(**{f"partials[{n}].lse": part.lse for n, part in enumerate(parts)})
    lses = xp.stack([part.lse for part in parts])
    lses = xp.astype(lses, accumulator_dtype(xp, lses.dtype), copy=False)
    row_max = xp.max(lses, axis=0)
    row_max = xp.where(xp.isfinite(row_max), row_max, 0.0)
    exps = xp.exp(lses - row_max)
    row_sum = xp.sum(exps, axis=0)
    nonzero = xp.where(row_sum == 0, 1.0, row_sum)
    weights = tuple(exps[n, ...] / nonzero for n in range(len(parts)))
    out = _weighted(weights[0], parts[0].out, layout)
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        out = out + _weighted(weight, part.out, layout)
    lse = xp.where(row_sum == 0, lses[0, ...], row_max + xp.log(nonzero))
    merged = Partial(xp.astype(out, parts[0].out.dtype), lse)
    return merged._replace(out=read_only(merged.out)), MergeContext(parts, weights, merged.out, layout)


@ignoring_fp_errors
def merge_partials_bwd(dout: Partial, ctx: MergeContext[ArrayT]) -> MergeGrads[ArrayT]:
    r"""The gradients of the merge.

    .. math:: do_n = w_n\, do, \qquad d\mathrm{lse}_n = w_n \bigl(do \cdot (o_n - o) + d\mathrm{lse}\bigr)
    """
    checks.context("ctx", ctx, MergeContext)
    dout = _partial("dout", dout)
    checks.shape("dout.out", dout.out, tuple(ctx.out.shape), "the shape of the output")
    xp = checks.namespace(**{"dout.out": dout.out, "dout.lse": dout.lse, "out": ctx.out})
    checks.floating(**{"dout.out": dout.out, "out": ctx.out})
    if dout.lse is not None:
        checks.shape("dout.lse", dout.lse, tuple(ctx.weights[0].shape), "the shape of the lse")
        checks.floating(**{"dout.lse": dout.lse})
    grads = []
    for weight, part in zip(ctx.weights, ctx.partials, strict=True):
        wide = weight.dtype
        change = xp.astype(part.out, wide) - xp.astype(ctx.out, wide)
        dlse = xp.sum(xp.astype(dout.out, wide) * change, axis=-1)
        dlse = xp.matrix_transpose(dlse) if ctx.layout == "BTHD" else dlse  # (*batch, T, H) -> (*batch, H, T)
        dlse = hiding_product(weight, dlse if dout.lse is None else dlse + dout.lse)
        dout_n = _weighted(weight, dout.out, ctx.layout)
        grads.append(Partial(xp.astype(dout_n, part.out.dtype), xp.astype(dlse, part.lse.dtype)))
    return MergeGrads(tuple(grads))


def _partial(name: str, value: Any) -> Partial:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"`{name}` is {checks.shown(value)}, expected a Partial(out, lse).")
    return Partial(*value)


def _weighted(weight: Array, out: Array, layout: checks.LayoutName) -> Any:
    xp = namespace_of(out)
    weight = xp.matrix_transpose(weight) if layout == "BTHD" else weight
    return hiding_product(weight[..., None], xp.astype(out, weight.dtype))

"""Attention to the blocks of keys that score highest: MoBA; with compressed and window branches, sparse as in NSA."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.options import check_arrays, scale_or_default
from attnarray.attention.selection.top_k import choice_mask, top_k_indices
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Blocks
from attnarray.numpy_arrays import read_only, writable


class BlockTopKContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the contexts of the branches, their outputs being in them, and the gates."""

    selected: SDPAContext[ArrayT]
    compressed: SDPAContext[ArrayT] | None
    window: SDPAContext[ArrayT] | None
    gates: ArrayT | None
    block_size: int
    chosen: ArrayT  # (B, H, T or blocks of queries, blocks of keys) boolean

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output."""
        return self.selected.out_shape


class BlockTopKGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    gates: ArrayT | None


def block_topk_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    gates: ArrayT | None = None,
    *,
    top_k: int,
    block_size: int = 64,
    is_causal: bool = False,
    window: int | None = None,
    by_block: bool = False,
    scale: float | None = None,
) -> ArrayT:
    r"""Attention of each query to the keys of the `top_k` blocks whose mean key has the largest score with it.

    .. math::
        \bar k_J = \frac{1}{|J|} \sum_{j \in J} k_j, \qquad
        o_i^{\mathrm{sel}} = \mathrm{attention}\bigl(q_i; \{j \in J : J \in \mathrm{top}_k(q_i \cdot \bar k_J)\}\bigr)

    Block J has the keys from J `block_size` on. Without gates this is mixture of block attention (MoBA), and the output
    is :math:`o^{\mathrm{sel}}`. With gates g it is native sparse attention (NSA) with means as the compression, of
    three branches:

    .. math::
        o_i = g_{i0}\, \mathrm{attention}(q_i; \bar k, \bar v) + g_{i1}\, o_i^{\mathrm{sel}}
            + g_{i2}\, \mathrm{attention}(q_i; \text{window})

    and the heads of a group choose together, by the sum of their weights of the first branch. The choice has no
    gradient; the compressed branch has.

    Parameters
    ----------
    query : (B, H, T, D) floating
    key : (B, Hkv, S, D)
    value : (B, Hkv, S, Dv)
    gates : (B, H, T, 3), optional
        Of the compressed, the selected and the window branch, such as a sigmoid of a projection.
    top_k : int
        Blocks that a query attends to, at most; with `is_causal` its own block is always one of them.
    block_size : int
    is_causal : bool
        Query i, at position i, attends to no key after it, and chooses among blocks that begin at or before it; the
        compressed branch has the blocks that have ended. Needs as many queries as keys.
    window : int, optional
        With gates: the window branch has the keys at most so far from the query, without those after it if causal.
    by_block : bool
        Whether blocks of `block_size` queries choose together, by the mean of their scores: kernels then skip the
        blocks that are not chosen. By default each query chooses, and a mask of T x S bits is made.
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (B, H, T, Dv)

    Raises
    ------
    ValueError
        If shapes do not fit, an option is out of range, or `gates` and `window` are not given together.
    TypeError
        If dtypes are not floating or differ.

    References
    ----------
    Lu et al., "MoBA: mixture of block attention for long-context LLMs", 2025, arXiv:2502.13189. Yuan et al., "Native
    sparse attention", 2025, arXiv:2502.11089.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 12, 8))
    >>> aa.block_topk_attention(q, k, v, top_k=2, block_size=3, is_causal=True).shape
    (1, 2, 12, 8)
    >>> full = aa.block_topk_attention(q, k, v, top_k=4, block_size=3)
    >>> bool(np.allclose(full, aa.scaled_dot_product_attention(q, k, v)))
    True
    """
    return writable(block_topk_attention_fwd(
        query, key, value, gates, top_k=top_k, block_size=block_size, is_causal=is_causal, window=window,
        by_block=by_block, scale=scale,
    )[0])  # fmt: skip


@ignoring_fp_errors
def block_topk_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    gates: ArrayT | None = None,
    *,
    top_k: int,
    block_size: int = 64,
    is_causal: bool = False,
    window: int | None = None,
    by_block: bool = False,
    scale: float | None = None,
) -> tuple[ArrayT, BlockTopKContext[ArrayT]]:
    """`block_topk_attention`, with the same options, and the context for its backward."""
    top_k = checks.whole("top_k", top_k, 1, 2**31, "the number of blocks that a query attends to")
    block_size = checks.whole("block_size", block_size, 1, 2**31, "the keys of a block")
    is_causal, by_block = checks.flag("is_causal", is_causal), checks.flag("by_block", by_block)
    _check_arrays(query, key, value, gates, is_causal)
    if (gates is None) != (window is None):
        raise ValueError("`gates` and `window` belong together, but one of them is None. Give both, or neither.")
    scale = scale_or_default(scale, 1.0 / math.sqrt(query.shape[3] or 1))
    key_means = _block_means(key, block_size)
    compressed, own = None, None
    if is_causal:
        own = _causal_blocks(query, key_means.shape[2], block_size)
    if gates is not None:
        ended = None if own is None else own[1]
        means = key_means, _block_means(value, block_size)
        _, compressed = scaled_dot_product_attention_fwd(query, *means, ended, scale=scale)
    chosen = _choice(query, key_means, compressed, top_k, block_size, None if own is None else own[0], by_block, scale)
    if by_block:
        mask: Any = Blocks(chosen, block_size)
    else:
        mask = namespace_of(chosen).repeat(chosen, block_size, axis=3)[..., : key.shape[2]]
    out, selected = scaled_dot_product_attention_fwd(query, key, value, mask, is_causal=is_causal, scale=scale)
    if gates is None or window is None or compressed is None:
        return out, BlockTopKContext(selected, None, None, None, block_size, chosen)
    window = checks.whole("window", window, 0, 2**31, "the distance of the farthest key")
    limits = (window, 0 if is_causal else window)
    _, near = scaled_dot_product_attention_fwd(query, key, value, window=limits, scale=scale)
    g, outs = wide(gates), [wide(ctx.out) for ctx in (compressed, selected, near)]
    total = g[..., :1] * outs[0] + g[..., 1:2] * outs[1] + g[..., 2:] * outs[2]
    ctx = BlockTopKContext(selected, compressed, near, gates, block_size, chosen)
    return read_only(narrow(total, query)), ctx


@ignoring_fp_errors
def block_topk_attention_bwd(dout: Array, ctx: BlockTopKContext[ArrayT]) -> BlockTopKGrads[ArrayT]:
    r"""The gradients of attention to chosen blocks, for a choice that stays as it is.

    .. math:: dg_{in} = do_i \cdot o_i^{(n)}, \qquad do_i^{(n)} = g_{in}\, do_i

    and from do of each branch its dq, dk and dv, which add up; a mean passes its gradient on in equal parts:

    .. math:: dk_j = dk_j^{\mathrm{sel}} + dk_j^{\mathrm{win}} + \frac{1}{|J|} d\bar k_J, \qquad j \in J

    Without gates the selected branch is the only one, with the weight 1.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : BlockTopKContext

    Returns
    -------
    BlockTopKGrads
        query, key, value, gates; None for gates that were not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 12, 8))
    >>> out, ctx = aa.block_topk_attention_fwd(q, k, v, top_k=2, block_size=3)
    >>> aa.block_topk_attention_bwd(np.ones_like(out), ctx).key.shape
    (1, 2, 12, 8)
    """
    checks.context("ctx", ctx, BlockTopKContext)
    checks.shape("dout", dout, ctx.out_shape, "the shape of the output")
    checks.floating(dout=dout, query=ctx.selected.q)
    if ctx.gates is None or ctx.compressed is None or ctx.window is None:
        grads = scaled_dot_product_attention_bwd(dout, ctx.selected)
        return BlockTopKGrads(grads.query, grads.key, grads.value, None)
    xp, cotangent, g = namespace_of(dout, ctx.gates), wide(dout), wide(ctx.gates)
    totals, dgates = [0.0, 0.0, 0.0], []
    for n, branch in enumerate((ctx.compressed, ctx.selected, ctx.window)):
        dgates.append(xp.sum(cotangent * wide(branch.out), axis=-1))
        own = narrow(cotangent * g[..., n : n + 1], dout)
        grads = scaled_dot_product_attention_bwd(own, branch)
        parts: list[Any] = [wide(x) for x in (grads.query, grads.key, grads.value)]
        if branch is ctx.compressed:
            parts[1:] = [_block_means_backward(x, ctx.selected.k.shape[2], ctx.block_size) for x in parts[1:]]
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
    dq, dk, dv = (narrow(x, dout) for x in totals)  # type: ignore[arg-type]
    return BlockTopKGrads(dq, dk, dv, narrow(xp.stack(dgates, axis=-1), dout))


def _check_arrays(query: Any, key: Any, value: Any, gates: Any, is_causal: bool) -> None:
    checks.required(query=query, key=key, value=value)
    given = {"query": query, "key": key, "value": value}
    check_arrays(None, {}, **given, **({} if gates is None else {"gates": gates}))
    for name, array in given.items():
        if array.ndim != 4:
            raise ValueError(f"`{name}` has shape {tuple(array.shape)}, expected four axes: (B, H, positions, D).")
    if is_causal and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"`is_causal` needs as many queries as keys, but there are {query.shape[2]} and {key.shape[2]}."
        )
    if gates is not None:
        checks.shape("gates", gates, (*query.shape[:3], 3), "three gates for each query of each head")


def _sizes(blocks: int, positions: int, block_size: int, like: Any) -> Any:
    """The number of positions of each block (blocks, 1): the last may have fewer."""
    xp = namespace_of(like)
    counts = [min(block_size, positions - n * block_size) for n in range(blocks)]
    return xp.asarray(counts, dtype=like.dtype, device=device_of(like))[:, None]


def _block_means(x: Any, block_size: int) -> Any:
    """The mean of each block of rows of x (B, H, S, N)."""
    xp, (batch, heads, positions, features) = namespace_of(x), x.shape
    blocks = -(-positions // block_size)
    missing = xp.zeros((batch, heads, blocks * block_size - positions, features), dtype=x.dtype, device=device_of(x))
    full = xp.reshape(xp.concat([x, missing], axis=2), (batch, heads, blocks, block_size, features))
    total = xp.sum(wide(full), axis=3)
    return narrow(total / _sizes(blocks, positions, block_size, total), x)


def _block_means_backward(dmeans: Any, positions: int, block_size: int) -> Any:
    """Each row gets an equal part of the gradient of its block's mean."""
    each = dmeans / _sizes(dmeans.shape[2], positions, block_size, dmeans)
    return namespace_of(each).repeat(each, block_size, axis=2)[:, :, :positions, :]


def _causal_blocks(query: Any, blocks: int, block_size: int) -> tuple[Any, Any]:
    """For each query its own block (T, 1), and which blocks have ended (T, blocks)."""
    xp = namespace_of(query)
    kind = {"dtype": index_dtype(xp, query), "device": device_of(query)}
    positions, numbers = xp.arange(query.shape[2], **kind)[:, None], xp.arange(blocks, **kind)[None, :]
    return positions // block_size, (numbers + 1) * block_size - 1 <= positions


def _choice(
    query: Any, key_means: Any, compressed: Any, top_k: int, block_size: int, own: Any, by_block: bool, scale: float
) -> Any:
    """Which blocks each query, or block of queries, attends to: (B, H, T or blocks, blocks of keys) boolean."""
    xp, (batch, heads, queries, _) = namespace_of(query), query.shape
    kv_heads, blocks = key_means.shape[1:3]
    group = heads // max(kv_heads, 1)
    means = wide(xp.repeat(key_means, group, axis=1))
    scores = scale * xp.matmul(wide(query), means.mT)  # (B, H, T, blocks)
    if compressed is not None:
        # the weights of the compressed branch; a block that has not ended has none
        weights = xp.exp(scores - xp.where(compressed.lse == -math.inf, 0.0, compressed.lse)[..., None])
        mask = compressed.modifiers.mask
        weights = weights if mask is None else xp.where(mask, weights, 0.0)
        summed = xp.sum(xp.reshape(weights, (batch, kv_heads, group, queries, blocks)), axis=2)
        scores = xp.repeat(summed, group, axis=1)
    if by_block:
        scores = _block_means(scores, block_size)
        own = None if own is None else own[::block_size, :]
    numbers = xp.arange(blocks, dtype=index_dtype(xp, query), device=device_of(query))
    if own is not None:
        scores = xp.where(numbers > own, -math.inf, xp.where(numbers == own, math.inf, scores))
    if min(top_k, blocks) == blocks:
        chosen = xp.ones(scores.shape, dtype=xp.bool, device=device_of(query))
    else:
        chosen = choice_mask(top_k_indices(scores, min(top_k, blocks)), blocks)
    return chosen if own is None else chosen & (numbers <= own)

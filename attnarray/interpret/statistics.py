"""Statistics of attention weights, streamed: no array of all pairs of positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.attention.blocks import join, ranges
from attnarray.attention.engine import AttentionContext, DotProduct, attention
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import Softmax
from attnarray.attention.weights import canonical_weights, chosen_queries, innermost
from attnarray.backend import Array, accumulator_dtype, device_of, index_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors

HELD = 2**20  # weights that are held at a time


class AttentionStatistics(NamedTuple):
    """Statistics of the weights of each query: (*batch, H, T) arrays, without H where the mechanism has no heads."""

    entropy: Any
    distance: Any
    first: Any


class TopKeys(NamedTuple):
    """The keys with the largest weights, from the largest: (*batch, H, rows, k) arrays."""

    indices: Any
    weights: Any


@ignoring_fp_errors
def attention_statistics(ctx: Any, *, num_first: int = 1) -> AttentionStatistics:
    r"""Return entropy, mean distance and the weight of the first keys, for every query.

    .. math::
        H_i = -\sum_j p_{ij} \log p_{ij}, \qquad
        d_i = \sum_j p_{ij}\, |t_i - j|, \qquad
        f_i = \sum_{j < n} p_{ij}

    with t the positions of the queries. Entropy is in nats, 0 for attention to one key. The first keys are where many
    models send the weight that they do not need ("attention sinks").

    Parameters
    ----------
    ctx : context of an attention function
        See `attention_contexts` for those of a model.
    num_first : int
        n, the number of first keys.

    Returns
    -------
    AttentionStatistics

    Raises
    ------
    TypeError
        If `ctx` is not the context of an attention function, or is that of neighborhoods of an image or a volume.

    Notes
    -----
    Of softmax attention all three are linear in the weights p, as log p is s - lse with scores s = q' k:

    .. math:: H_i = \mathrm{lse}_i \sum_j p_{ij} - q'_i \cdot \sum_j p_{ij} k_j

    So where only masks change the scores, they are one call of the attention kernel, with keys and positions in place
    of values, and a second one for the distances if queries see later keys. Otherwise the weights are computed again,
    some rows at a time.

    References
    ----------
    Vig and Belinkov, 2019, arXiv:1906.04284 (distance, entropy). Xiao et al., 2023, arXiv:2309.17453 (sinks).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    >>> found = aa.interpret.attention_statistics(ctx)
    >>> found.entropy.shape, found.first[0, :, 0].round(6).tolist()
    ((1, 2, 4), [1.0, 1.0])
    """
    ctx = innermost(ctx)
    if not hasattr(ctx, "modifiers"):
        raise TypeError(
            f"`ctx` is a {type(ctx).__name__}, whose positions are not those of one sequence, so there are no "
            "distances; top_keys and attention_weights take it."
        )
    num_first = checks.whole("num_first", num_first, 0, 2**31, "the number of first keys")
    statistics = _by_attention if _is_linear(ctx) else _by_weights
    return AttentionStatistics(*(ctx.layout.restore_rows(x) for x in statistics(ctx, num_first)))


@ignoring_fp_errors
def top_keys(ctx: Any, k: int, *, queries: slice = slice(None)) -> TopKeys:
    """Return the k keys with the largest weights of each query, and these weights.

    Parameters
    ----------
    ctx : context of an attention function
    k : int
        At most the number of keys.
    queries : slice
        Which queries, by index, without a step.

    Returns
    -------
    TopKeys
        indices and weights, (*batch, H, rows, k) each, from the largest weight; of equal ones the first come first.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    >>> aa.interpret.top_keys(ctx, 2, queries=slice(0, 1)).indices[0, 0].tolist()
    [[0, 1]]
    """
    ctx = innermost(ctx)
    k = checks.whole("k", k, 1, num_keys(ctx), "the number of keys")

    found = []
    for _, weights in weight_blocks(ctx, queries):
        xp = namespace_of(weights)
        order = xp.argsort(-weights, axis=-1, stable=True)[..., :k]
        found.append((order, xp.take_along_axis(weights, order, axis=-1)))
    layout = ctx.layout._replace(order="BHTD")
    return TopKeys(*(layout.restore(join(blocks)) for blocks in zip(*found, strict=True)))


def num_keys(ctx: Any) -> int:
    """The number of keys of an attention."""
    return int(canonical_weights(ctx, slice(0, 0)).shape[3])


def weight_blocks(ctx: Any, queries: slice = slice(None)) -> Iterator[tuple[slice, Any]]:
    """Queries, some after the other, and their weights (B, H, rows, S)."""
    start, stop, _ = chosen_queries(ctx, queries).indices(ctx.q.shape[2])
    for rows in ranges(stop - start, ctx.q.shape[0] * ctx.q.shape[1] * num_keys(ctx), HELD):
        block = slice(start + rows.start, start + rows.stop)
        yield block, canonical_weights(ctx, block)


def _by_weights(ctx: Any, num_first: int) -> tuple[Array, ...]:
    """The statistics (B, H, T) from the weights."""
    found = []
    for rows, weights in weight_blocks(ctx):
        xp = namespace_of(weights)
        entropy = -xp.sum(weights * xp.log(xp.where(weights > 0, weights, 1.0)), axis=-1)
        offsets = _query_positions(ctx, weights, rows) - _positions(slice(0, weights.shape[3]), weights)
        distance = xp.sum(weights * xp.astype(xp.abs(offsets), weights.dtype), axis=-1)
        found.append((entropy, distance, xp.sum(weights[..., :num_first], axis=-1)))
    return tuple(join(blocks) for blocks in zip(*found, strict=True))


def _is_linear(ctx: Any) -> bool:
    """Whether the scores are scaled dot products, but for masks, and the weights their softmax."""
    if (
        not isinstance(ctx, AttentionContext)
        or type(ctx.scorer) is not DotProduct
        or type(ctx.normalizer) is not Softmax
    ):
        return False
    modifiers = ctx.modifiers
    return modifiers.softcap is None and modifiers.bias is None and not modifiers.custom


def _by_attention(ctx: AttentionContext, num_first: int) -> tuple[Array, ...]:
    """The statistics (B, H, T) by attention to keys, ones, positions and first keys, one group of heads at a time."""
    group = ctx.q.shape[1] // ctx.k.shape[1]
    heads = [_of_heads(ctx, slice(n * group, (n + 1) * group), n, num_first) for n in range(ctx.k.shape[1])]
    return tuple(namespace_of(ctx.q).concat(list(parts), axis=1) for parts in zip(*heads, strict=True))


def _of_heads(ctx: AttentionContext, heads: slice, kv_head: int, num_first: int) -> tuple[Array, ...]:
    """The statistics (B, group, T) of the query heads that share a head of keys."""
    xp, wide = namespace_of(ctx.q), accumulator_dtype(namespace_of(ctx.q), ctx.q.dtype)
    q, k = xp.astype(ctx.q[:, heads], wide, copy=False), xp.astype(ctx.k[:, kv_head : kv_head + 1], wide, copy=False)
    modifiers = _for_heads(ctx.modifiers._replace(dropout=None), heads)
    positions = xp.reshape(_positions(slice(0, k.shape[2]), k), (1, 1, -1, 1))
    columns = (xp.ones_like(k[..., :1]), xp.astype(positions, wide), xp.astype(positions < num_first, wide))
    values = xp.concat([k, *(xp.broadcast_to(column, (*k.shape[:3], 1)) for column in columns)], axis=3)
    out, lse = attention(q, k, values, modifiers)
    mean_key, total, mean_position, first = out[..., :-3], out[..., -3], out[..., -2], out[..., -1]
    # A fully masked row has an lse of -inf.
    entropy = xp.where(total > 0, lse * total, 0.0) - modifiers.scale * xp.sum(q * mean_key, axis=3)
    own = xp.astype(_query_positions(ctx, q, slice(0, q.shape[2]))[..., 0], wide)
    distance = own * total - mean_position
    if modifiers.right is None or modifiers.right > 0:
        # |t - j| = (j - t) + 2 (t - j) for the keys j before t, whose share of the weights is e^(lse' - lse).
        before, lse_before = attention(q, k, values[..., -3:-1], modifiers._replace(right=0))
        share = xp.where(lse_before == -xp.inf, 0.0, xp.exp(lse_before - lse))
        distance = 2.0 * share * (own * before[..., 0] - before[..., 1]) - distance
    return xp.where(entropy > 0, entropy, 0.0), distance, first


def _for_heads(modifiers: ScoreModifiers, heads: slice) -> ScoreModifiers:
    """The modifiers of some heads."""
    mask, sinks, tiles = modifiers.mask, modifiers.sinks, modifiers.tiles
    if mask is not None and mask.shape[1] > 1:
        mask = mask[:, heads]
    if tiles is not None and tiles.table.shape[1] > 1:
        tiles = tiles._replace(table=tiles.table[:, heads])
    return modifiers._replace(mask=mask, sinks=sinks if sinks is None else sinks[heads], tiles=tiles)


def _positions(rows: slice, like: Array) -> Array:
    xp = namespace_of(like)
    return xp.arange(rows.start, rows.stop, dtype=index_dtype(xp, like), device=device_of(like))


def _query_positions(ctx: Any, like: Array, rows: slice) -> Array:
    """The positions of some queries, as (B|1, 1, rows, 1)."""
    positions = namespace_of(like).reshape(_positions(rows, like), (1, 1, -1, 1))
    return positions + ctx.modifiers.broadcast_q_offset

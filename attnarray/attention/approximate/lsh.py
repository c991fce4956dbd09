"""LSH attention (Reformer): a query attends to the keys that a random hash puts into its bucket."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.dot_product.partial import MergeContext, Partial, merge_partials_bwd, merge_partials_fwd
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors


class LSHContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the attention in chunks, the merge of the rounds, and the order of each round."""

    attention: SDPAContext[ArrayT]
    merge: MergeContext[ArrayT]
    q: ArrayT  # (B, H, T, D)
    order: Array  # (B, H, rounds, T): the position of the first row after sorting, of the second, ...
    ranks: Array  # its inverse
    query: ArrayT
    layout: Layout


class LSHGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    value: ArrayT


def lsh_attention(
    query: ArrayT,
    value: ArrayT,
    rotations: Array,
    *,
    chunk_size: int,
    is_causal: bool = False,
    scale: float | None = None,
) -> ArrayT:
    r"""Attention to the keys of the same bucket of a locality-sensitive hash, in one or several rounds.

    .. math::
        o_i = \sum_{j \in P_i} p_{ij} v_j, \qquad
        p_i = \mathrm{softmax}_{j \in P_i}\Bigl(\mathrm{scale}\; q_i \cdot \frac{q_j}{|q_j|}\Bigr), \qquad
        P_i = \bigcup_r \{j : h_r(q_j) = h_r(q_i)\}

    .. math:: h_r(x) = \arg\max\, [x R_r;\; -x R_r]

    Keys are the queries with length 1. A round sorts the positions by their bucket and cuts them into chunks; a query
    attends to the keys of its bucket in its own chunk and the one before, so of a larger bucket not to all. A position
    attends to itself only if it has no other. The rounds are merged by their log-sum-exp, and a key that several of
    them find counts once. Scores grow with the number of
    rounds times T times `chunk_size`, and comparisons of buckets once more with the rounds.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        Also (B, T, D) and (T, D). The 16-bit types are computed in float32.
    value : (*batch, H, T, Dv)
    rotations : (rounds, D, buckets / 2)
        R, random normal numbers such as `Philox(0).normal((4, 64, 16))`. They have no gradient, as hashing has none.
    chunk_size : int
        Divides T; twice T / buckets in the paper.
    is_causal : bool
        Whether keys after the query are hidden.
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit, or the size of a chunk does not divide T.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Kitaev, Kaiser and Levskaya, "Reformer: the efficient transformer", 2020, arXiv:2001.04451.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, v = np.random.default_rng(0).standard_normal((2, 1, 2, 64, 8))
    >>> rotations = aa.Philox(0).normal((4, 8, 4), dtype="float64")  # 4 rounds, 8 buckets
    >>> aa.lsh_attention(q, v, rotations, chunk_size=16, is_causal=True).shape
    (1, 2, 64, 8)
    """
    return lsh_attention_fwd(query, value, rotations, chunk_size=chunk_size, is_causal=is_causal, scale=scale)[0]


@ignoring_fp_errors
def lsh_attention_fwd(
    query: ArrayT,
    value: ArrayT,
    rotations: Array,
    *,
    chunk_size: int,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[ArrayT, LSHContext[ArrayT]]:
    """`lsh_attention`, with the same options, and the context for its backward."""
    layout = _checked(query, value, rotations, chunk_size)
    q, v = (wide(layout.canonical(x)) for x in (query, value))
    xp = namespace_of(q, v)
    buckets = _buckets(q, wide(rotations))  # (B, H, rounds, T)
    positions = xp.arange(q.shape[2], dtype=buckets.dtype, device=device_of(q))
    order = xp.argsort(buckets * q.shape[2] + positions, axis=-1)
    ranks = xp.argsort(order, axis=-1)
    mask, counts = _pairs(buckets, order, ranks, chunk_size, checks.flag("is_causal", is_causal))
    bias = None if rotations.shape[0] == 1 else -xp.log(xp.astype(counts, q.dtype))
    sorted_q, sorted_k, sorted_v = (_chunks(_sorted(x, order), chunk_size) for x in (q, q * _inverse_norms(q), v))
    outs, attention = scaled_dot_product_attention_fwd(
        sorted_q, _with_previous(sorted_k), _with_previous(sorted_v), mask, scale=scale, bias=bias
    )
    outs = _reordered(xp.reshape(outs, (*order.shape, v.shape[3])), ranks)
    lses = xp.take_along_axis(xp.reshape(attention.lse, order.shape), ranks, axis=-1)
    parts = [Partial(outs[:, :, n, :, :], lses[:, :, n, :]) for n in range(order.shape[2])]
    merged, merge = merge_partials_fwd(parts)
    ctx = LSHContext(attention, merge, q, order, ranks, query, layout)
    return narrow(xp.asarray(layout.restore(merged.out), copy=True), query), ctx


@ignoring_fp_errors
def lsh_attention_bwd(dout: Array, ctx: LSHContext[ArrayT]) -> LSHGrads[ArrayT]:
    r"""The gradients of LSH attention: of the merge, of each round, and of keys of length 1.

    .. math::
        ds_{ij} = p_{ij} (do_i \cdot v_j - do_i \cdot o_i), \qquad dk_j = \mathrm{scale} \sum_i ds_{ij} q_i, \qquad
        dv_j = \sum_i p_{ij}\, do_i

    .. math::
        dq_i = \mathrm{scale} \sum_j ds_{ij} k_j + \frac{dk_i - k_i (k_i \cdot dk_i)}{|q_i|}, \qquad k_i = q_i / |q_i|

    Which keys a query attends to is constant.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : LSHContext

    Returns
    -------
    LSHGrads
        query, value.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, v = np.random.default_rng(0).standard_normal((2, 1, 2, 64, 8))
    >>> out, ctx = aa.lsh_attention_fwd(q, v, aa.Philox(0).normal((4, 8, 4), dtype="float64"), chunk_size=16)
    >>> aa.lsh_attention_bwd(np.ones_like(out), ctx).query.shape
    (1, 2, 64, 8)
    """
    checks.context("ctx", ctx, LSHContext)
    attention, merge, q, order, ranks, query, layout = ctx
    xp, chunk_size = namespace_of(q), attention.q.shape[2]
    checks.cotangent(dout, layout.restored_shape((*q.shape[:3], merge.out.shape[3])), query)
    parts = merge_partials_bwd(Partial(wide(layout.canonical(dout)), None), merge).partials
    douts = xp.stack([part.out for part in parts], axis=2)  # (B, H, rounds, T, Dv)
    dlses = xp.take_along_axis(xp.stack([part.lse for part in parts], axis=2), order, axis=-1)
    dsorted = _chunks(_reordered(douts, order), chunk_size)
    dq, dk, dv, *_ = scaled_dot_product_attention_bwd(dsorted, attention, xp.reshape(dlses, dsorted.shape[:-1]))
    dq, dk, dv = (
        xp.sum(_reordered(xp.reshape(x, (*order.shape, x.shape[-1])), ranks), axis=2)
        for x in (dq, _own_and_next(dk), _own_and_next(dv))
    )
    inverse = _inverse_norms(q)
    k = q * inverse
    dq = dq + inverse * (dk - k * xp.sum(k * dk, axis=-1, keepdims=True))
    return LSHGrads(narrow(layout.restore(dq), query), narrow(layout.restore(dv), query))


def _buckets(q: Array, rotations: Array) -> Any:
    """The bucket of each position in each round: (B, H, rounds, T)."""
    xp = namespace_of(q, rotations)
    rotated = xp.matmul(q[:, :, None, :, :], rotations)  # (B, H, rounds, T, buckets / 2)
    return xp.astype(xp.argmax(xp.concat([rotated, -rotated], axis=-1), axis=-1), index_dtype(xp, q))


def _pairs(buckets: Array, order: Array, ranks: Array, chunk_size: int, is_causal: bool) -> tuple[Any, Any]:
    """Which pairs of a chunk count, and how many rounds find each: (B, H, rounds, chunks, c, 2 c)."""
    xp, shape = namespace_of(buckets), order.shape

    def sides(x: Array) -> tuple[Any, Any]:
        """Numbers of sorted positions (B, H, rounds, T) as those of the queries and of the keys of each chunk."""
        own = _chunks(x[..., None], chunk_size)
        return own, _with_previous(own).mT

    def found(buckets: Array, ranks: Array) -> Any:
        """Whether a round with these buckets and ranks of sorted positions finds a pair."""
        (bucket_q, bucket_k), (chunk_q, chunk_k) = sides(buckets), sides(ranks // chunk_size)
        return (bucket_q == bucket_k) & ((chunk_q == chunk_k) | (chunk_q == chunk_k + 1))

    counts: Any = 0
    for n in range(shape[2]):
        of_round = (xp.broadcast_to(x[:, :, n : n + 1, :], shape) for x in (buckets, ranks))
        counts = counts + xp.astype(found(*(xp.take_along_axis(x, order, axis=-1) for x in of_round)), buckets.dtype)
    mask = found(*(xp.take_along_axis(x, order, axis=-1) for x in (buckets, ranks)))
    positions_q, positions_k = sides(order)
    # Before the first chunk lies the last one; where there is no other chunk, it would be found twice.
    chunks, keys = (xp.arange(n, device=device_of(order)) for n in (shape[3] // chunk_size, 2 * chunk_size))
    mask = mask & ((chunks[:, None, None] > 0) | (keys >= chunk_size))
    mask = mask & (positions_k <= positions_q) if is_causal else mask
    itself = positions_q == positions_k
    others = xp.reshape(xp.any(mask & ~itself, axis=-1), shape)
    others = xp.any(xp.take_along_axis(others, ranks, axis=-1), axis=2, keepdims=True)
    is_alone = _chunks(xp.take_along_axis(~xp.broadcast_to(others, shape), order, axis=-1)[..., None], chunk_size)
    return mask & (~itself | is_alone), xp.where(counts == 0, 1, counts)


def _sorted(x: Array, order: Array) -> Any:
    """(B, H, T, N) in the order of each round: (B, H, rounds, T, N)."""
    return _reordered(namespace_of(x).broadcast_to(x[:, :, None, :, :], (*order.shape, x.shape[3])), order)


def _reordered(x: Array, order: Array) -> Any:
    """(B, H, rounds, T, N) in another order of T."""
    xp = namespace_of(x)
    return xp.take_along_axis(x, xp.broadcast_to(order[..., None], x.shape), axis=3)


def _chunks(x: Array, chunk_size: int) -> Any:
    """(B, H, rounds, T, N) -> (B, H, rounds, chunks, c, N)."""
    return namespace_of(x).reshape(x, (*x.shape[:3], x.shape[3] // chunk_size, chunk_size, x.shape[4]))


def _with_previous(x: Array) -> Any:
    """Each chunk after the one before it: (B, H, rounds, chunks, 2 c, N)."""
    xp = namespace_of(x)
    return xp.concat([xp.roll(x, 1, axis=3), x], axis=4)


def _own_and_next(dx: Array) -> Any:
    """The gradient of a chunk from those of `_with_previous`."""
    xp, c = namespace_of(dx), dx.shape[4] // 2
    return dx[:, :, :, :, c:, :] + xp.roll(dx[:, :, :, :, :c, :], -1, axis=3)


def _inverse_norms(q: Array) -> Any:
    """1 / |q|, 0 for vectors of 0: (B, H, T, 1)."""
    xp = namespace_of(q)
    norms = xp.sqrt(xp.sum(q * q, axis=-1, keepdims=True))
    return xp.where(norms == 0, 0.0, 1.0 / xp.where(norms == 0, 1.0, norms))


def _checked(query: Array, value: Array, rotations: Array, chunk_size: int) -> Layout:
    given: Any = {"query": query, "value": value, "rotations": rotations}
    checks.required(**given)
    checks.namespace(**given)
    checks.floating(**given)
    named = checks.shapes(**given)
    if query.ndim < 2 or tuple(query.shape[:-1]) != tuple(value.shape[:-1]):
        raise ValueError(
            "`query` and `value` must be (*batch, H, T, dim) with the same batch, heads and positions: the queries are "
            f"the keys, too. {named}"
        )
    layout = attention_layout(query, query, value, "BHTD")
    if rotations.ndim != 3 or rotations.shape[1] != query.shape[-1] or not rotations.shape[0] * rotations.shape[2]:
        raise ValueError(
            f"`rotations` has shape {tuple(rotations.shape)}, expected (rounds, D, buckets / 2) with D = "
            f"{query.shape[-1]}. {named}"
        )
    T = query.shape[-2]
    if T % checks.whole("chunk_size", chunk_size, 1, 2**31 - 1, "the positions of a chunk"):
        raise ValueError(f"`chunk_size` ({chunk_size}) must divide the {T} positions. Pad them. {named}")
    return layout

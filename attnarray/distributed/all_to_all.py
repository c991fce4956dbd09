"""All-to-all attention (Ulysses): ranks exchange positions for heads, and each has whole sequences of some heads."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import SDPAGrads
from attnarray.attention.layout import Layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.options import Options
from attnarray.attention.products import sum_to_shape
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.distributed.communicator import Communicator, check_comm, everywhere
from attnarray.distributed.exchange import Heads, Rows, assign_heads, make_rows, summed, to_heads, to_rows
from attnarray.distributed.grid import Alone, Grid
from attnarray.distributed.masks import POSITIONAL, elements
from attnarray.distributed.problem import agreed_problem
from attnarray.distributed.ring import RingContext, canonical_cotangents, ring_backward, ring_forward, sinks_total
from attnarray.distributed.sequence import OrderName, Route, position_band
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable


class AllToAllContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: this rank's heads of whole sequences, and how they were exchanged."""

    grid: Grid
    ring: RingContext  # of this rank's heads
    heads: tuple[Heads, ...]
    queries: Rows
    keys: Rows
    out: ArrayT  # (B, H, T, Dv), of this rank's positions
    lse: ArrayT  # (B, H, T)
    modifiers: ScoreModifiers  # of this rank's positions
    layout: Layout
    bias_shape: tuple[int, ...] | None

    @property
    def q(self) -> ArrayT:
        """An array with the batch, heads and positions of the canonical query."""
        return self.out


def all_to_all_attention(
    comm: Communicator | Grid,
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    order: OrderName = "contiguous",
    **options: Unpack[Options],
) -> ArrayT:
    r"""Scaled dot-product attention of a sequence that is divided among ranks, which exchange positions for heads.

    .. math:: (B, H, T / n, D) \to (B, H / n, T, D) \to \mathrm{attention} \to (B, H / n, T, D_v) \to (B, H, T / n, D_v)

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, the communicator that `ThreadComm` gives, or Grid
        The ranks that exchange heads, at most as many as there are query heads. With a `Grid`, ranks of a row exchange
        heads, and those of a column are a ring: see `grid`.
    query, key, value, attn_mask, dropout_p, is_causal, order, **options
        As in `ring_attention`, for the ranks of a grid row by row.

    Returns
    -------
    (*batch, H, T, Dv)
        The output for this rank's queries.

    Raises
    ------
    ValueError, TypeError, RankError
        As `ring_attention`; also if there are more ranks than heads.

    Notes
    -----
    A rank receives less than in `ring_attention`: queries, keys, values and outputs of its heads, once. Where there are
    fewer key heads than ranks, several ranks receive the same keys.

    References
    ----------
    Jacobs et al., "DeepSpeed Ulysses", 2023, arXiv:2309.14509. Combined with a ring: Fang and Zhao, "USP", 2024,
    arXiv:2405.07719.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.distributed import ThreadComm, all_to_all_attention, join_sequence, split_sequence
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 4, 12, 4))
    >>> q, k, v = (split_sequence(array, 2) for array in x)
    >>> run = lambda comm: all_to_all_attention(comm, q[comm.rank], k[comm.rank], v[comm.rank])
    >>> bool(np.allclose(join_sequence(ThreadComm(2).run(run)), aa.scaled_dot_product_attention(*x)))
    True
    """
    return writable(
        all_to_all_attention_fwd(comm, query, key, value, attn_mask, dropout_p, is_causal, order=order, **options)[0]
    )


@ignoring_fp_errors
def all_to_all_attention_fwd(
    comm: Communicator | Grid,
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    order: OrderName = "contiguous",
    **options: Unpack[Options],
) -> tuple[ArrayT, AllToAllContext[ArrayT]]:
    """`all_to_all_attention` and the context for its backward, which all ranks must call, too."""
    check_comm(comm)
    grid, arrays = comm if isinstance(comm, Grid) else Grid(comm, Alone()), (query, key, value)
    problem = agreed_problem(grid, arrays, attn_mask, dropout_p, is_causal, order, options, "all_to_all_attention")
    q, k, v, modifiers, layout, bias_shape, queries, keys, mask = problem
    row = grid.heads
    everywhere(grid, _check_heads, q, row.Get_size())
    if mask is not None and not all(isinstance(element, POSITIONAL) for element in elements(mask.mask)):
        # What looks into arrays of this rank's queries does so before they are exchanged.
        modifiers, mask = everywhere(grid, mask.into, modifiers, q, queries[grid.Get_rank()]), None
    heads = tuple(assign_heads(q.shape[1], k.shape[1], row.Get_size()))
    all_rows = [[make_rows(part) for part in _by_row(parts, row.Get_size())] for parts in (queries, keys)]
    q_rows, k_rows = (rows[grid.ring.Get_rank()] for rows in all_rows)
    own, q_heads, k_heads = heads[row.Get_rank()], [h.queries for h in heads], [h.keys for h in heads]
    q = to_heads(row, q, q_heads, q_rows)
    k, v = (own.grouped(to_heads(row, x, k_heads, k_rows)) for x in (k, v))
    theirs = _modifiers_of_heads(row, modifiers, q_heads, q_rows)
    q_parts, k_parts = (tuple(rows.ordered for rows in found) for found in all_rows)
    route = Route(q_parts, k_parts, position_band(modifiers))
    out, lse = ring_forward(grid.ring, grid, q, k, v, theirs, route, mask, own.queries.start)
    ring = RingContext(grid.ring, q, k, v, out, lse, theirs, route, layout, None, mask, own.queries.start)
    xp = namespace_of(out)
    out, lse = (xp.concat(to_rows(row, x, q_heads, q_rows), axis=1) for x in (out, lse[..., None]))
    ctx = AllToAllContext(grid, ring, heads, q_rows, k_rows, out, lse[..., 0], modifiers, layout, bias_shape)
    return read_only(layout.restore(out)), ctx


@ignoring_fp_errors
def all_to_all_attention_bwd(dout: Array, ctx: AllToAllContext[ArrayT], dlse: Array | None = None) -> SDPAGrads[ArrayT]:
    r"""The gradients of this rank's arrays; every rank must call it.

    The exchange is a permutation, whose gradient is the exchange back: cotangents (B, H, T / n, Dv) become
    (B, H / n, T, Dv), the gradients of these heads are those of `scaled_dot_product_attention_bwd`, and dq, dk, dv
    become (B, H, T / n, D) again. Where several ranks had the same key heads, their dk and dv are added.

    Parameters
    ----------
    dout : the shape and dtype of this rank's output
    ctx : AllToAllContext
    dlse : (*batch, H, T), optional
        A cotangent of `ctx.lse`.

    Returns
    -------
    SDPAGrads
        As those of `ring_attention_bwd`.
    """
    checks.context("ctx", ctx, AllToAllContext)
    grid, row, restore = ctx.grid, ctx.grid.heads, ctx.layout.restore
    call = f"all_to_all_attention_bwd {'without' if dlse is None else 'with'} dlse"
    dout, dlse = everywhere(grid, canonical_cotangents, dout, ctx, dlse, call=call)
    q_heads, k_heads = [h.queries for h in ctx.heads], [h.keys for h in ctx.heads]
    dout = to_heads(row, dout, q_heads, ctx.queries)
    dlse = None if dlse is None else to_heads(row, dlse[..., None], q_heads, ctx.queries)[..., 0]
    dq, dk, dv, dbias, dsinks = ring_backward(ctx.ring, grid, dout, dlse)
    own, kv_heads = ctx.heads[row.Get_rank()], max(cut.stop for cut in k_heads)
    dq = namespace_of(dq).concat(to_rows(row, dq, q_heads, ctx.queries), axis=1)
    dk, dv = (summed(to_rows(row, own.grouped_backward(x), k_heads, ctx.keys), k_heads, kv_heads) for x in (dk, dv))
    if ctx.modifiers.bias is not None and ctx.bias_shape is not None:
        dbias = ctx.layout.restore_bias(_bias_gradient(ctx, dbias, q_heads), ctx.bias_shape)
    return SDPAGrads(restore(dq), restore(dk), restore(dv), dbias, _sinks_gradient(ctx, dsinks))


def _check_heads(q: Array, ranks: int) -> None:
    if ranks > q.shape[1]:
        raise ValueError(
            f"{ranks} ranks exchange heads, but `query` has {q.shape[1]}; each rank needs one. Use ring_attention, or "
            "all_to_all_attention on grid(comm, head_ranks) with fewer of them in a row."
        )


def _by_row(parts: tuple[Any, ...], size: int) -> list[tuple[Any, ...]]:
    return [parts[n : n + size] for n in range(0, len(parts), size)]


def _modifiers_of_heads(row: Any, modifiers: ScoreModifiers, heads: list[slice], rows: Rows) -> ScoreModifiers:
    """The modifiers of this rank's heads and all positions of the row."""

    def exchanged(x: Array | None) -> Any:
        if x is None:
            return None
        xp, length = namespace_of(x), rows.lengths[row.Get_rank()]
        x = xp.broadcast_to(x, (*x.shape[:2], length, x.shape[3]))  # ranks may have different rows
        return to_heads(row, x, _or_one(x, heads), rows)

    own, dropout, sinks = heads[row.Get_rank()], modifiers.dropout, modifiers.sinks
    return modifiers._replace(
        bias=exchanged(modifiers.bias),
        mask=exchanged(modifiers.mask),
        dropout=None if dropout is None else dropout._replace(keep=exchanged(dropout.keep)),
        sinks=None if sinks is None else sinks[own],
    )


def _or_one(x: Array, heads: list[slice]) -> list[slice]:
    """The heads of each rank, of an array that may have one for all."""
    return heads if x.shape[1] != 1 else [slice(0, 1)] * len(heads)


def _bias_gradient(ctx: AllToAllContext, dbias: Array, heads: list[slice]) -> Any:
    """The gradient of this rank's canonical bias."""
    bias: Any = ctx.modifiers.bias
    heads = _or_one(bias, heads)
    total = summed(to_rows(ctx.grid.heads, dbias, heads, ctx.queries), heads, bias.shape[1])
    return sum_to_shape(total, bias.shape)


def _sinks_gradient(ctx: AllToAllContext, dsinks: list[Any]) -> Any:
    """That of all heads, from those that each rank of the grid found for its own."""
    if ctx.modifiers.sinks is None:
        return None
    size = ctx.grid.heads.Get_size()
    rows = [np.concatenate(dsinks[n : n + size]) for n in range(0, len(dsinks), size)]
    return sinks_total(rows, ctx.modifiers.sinks)

"""Ring attention: the sequence is divided among ranks, and keys and values travel from one to the next."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.cotangents import lse_cotangent
from attnarray.attention.dot_product.scaled_dot_product import SDPAGrads
from attnarray.attention.layout import Layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import sinks_gradient
from attnarray.attention.options import Options
from attnarray.attention.products import hiding_product
from attnarray.backend import Array, ArrayT, device_of, namespace_of, to_numpy
from attnarray.dispatch import ignoring_fp_errors
from attnarray.distributed.communicator import Communicator, Gathering, Guard, agree, check_comm, everywhere
from attnarray.distributed.masks import PartMask
from attnarray.distributed.problem import agreed_problem
from attnarray.distributed.sequence import OrderName, Route, position_band
from attnarray.distributed.tiles import Gradients, Results, make_queries
from attnarray.distributed.travel import Travel
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable


class RingContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: this rank's canonical inputs (B, H, T, D), output and lse, and where they are."""

    comm: Any
    q: ArrayT
    k: ArrayT
    v: ArrayT
    out: ArrayT
    lse: ArrayT  # (B, H, T), of all keys
    modifiers: ScoreModifiers  # of this rank's queries and all keys
    route: Route
    layout: Layout
    bias_shape: tuple[int, ...] | None
    mask: PartMask | None = None
    first_head: int = 0


def ring_attention(
    comm: Communicator,
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
    r"""Scaled dot-product attention of a sequence that is divided among ranks.

    .. math:: o_i = \sum_n e^{\mathrm{lse}_{in} - \mathrm{lse}_i} o_{in}, \qquad
        \mathrm{lse}_i = \log \sum_n e^{\mathrm{lse}_{in}}

    with the partial results o_in of the keys of rank n. Each rank passes keys and values on to the next one while it
    computes with them, and needs memory for three parts of them. Every rank of `comm` must call it.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    query, key, value : (*batch, H, T, D), (*batch, Hkv, S, D), (*batch, Hkv, S, Dv)
        This rank's positions of the whole sequence, as in `scaled_dot_product_attention`. Ranks may have different
        numbers of queries and keys, 0 among them.
    attn_mask, bias, dropout_mask : arrays, optional
        The rows of this rank's queries, in their order, and the columns of all keys in the order of the whole sequence.
        A `Mask` is the same on all ranks, of positions in the whole; but `Documents` and `Dense` have these rows.
    is_causal, window, q_offset, kv_lengths, **options
        As in `scaled_dot_product_attention`; they count positions in the whole. Equal on all ranks.
    order : {"contiguous", "zigzag"}
        Which positions a rank has: see `split_sequence`. "zigzag" gives every rank as much work under a causal mask.

    Returns
    -------
    (*batch, H, T, Dv)
        The output for this rank's queries. The same for the same number of ranks.

    Raises
    ------
    ValueError, TypeError
        As `scaled_dot_product_attention`; also if ranks disagree on an option, a dtype or a shape.
    RankError
        If another rank raised an error: then all do.

    Notes
    -----
    Dropout depends on positions, so it is that of one process. A part of the keys travels only to ranks that may see
    some of it by is_causal, window, q_offset and kv_lengths.

    References
    ----------
    Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023,
    arXiv:2310.01889. The zigzag order: Brandon et al., "Striped attention", 2023, arXiv:2311.09431, discusses balance.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.distributed import ThreadComm, join_sequence, ring_attention, split_sequence
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 2, 12, 4))
    >>> q, k, v = (split_sequence(array, 3) for array in x)
    >>> run = lambda comm: ring_attention(comm, q[comm.rank], k[comm.rank], v[comm.rank], is_causal=True)
    >>> out = join_sequence(ThreadComm(3).run(run))
    >>> bool(np.allclose(out, aa.scaled_dot_product_attention(*x, is_causal=True)))
    True
    """
    return writable(
        ring_attention_fwd(comm, query, key, value, attn_mask, dropout_p, is_causal, order=order, **options)[0]
    )


@ignoring_fp_errors
def ring_attention_fwd(
    comm: Communicator,
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    order: OrderName = "contiguous",
    **options: Unpack[Options],
) -> tuple[ArrayT, RingContext[ArrayT]]:
    """`ring_attention`, with the same options, and the context for its backward, which all ranks must call, too."""
    check_comm(comm)
    arrays = query, key, value
    problem = agreed_problem(comm, arrays, attn_mask, dropout_p, is_causal, order, options, "ring_attention")
    q, k, v, modifiers, layout, bias_shape, queries, keys, mask = problem
    route = Route(queries, keys, position_band(modifiers))
    out, lse = ring_forward(comm, comm, q, k, v, modifiers, route, mask)
    ctx = RingContext(comm, q, k, v, out, lse, modifiers, route, layout, bias_shape, mask)
    return read_only(layout.restore(out)), ctx


@ignoring_fp_errors
def ring_attention_bwd(dout: Array, ctx: RingContext[ArrayT], dlse: Array | None = None) -> SDPAGrads[ArrayT]:
    r"""The gradients of this rank's arrays; every rank must call it.

    With the lse and :math:`\delta_i = do_i \cdot o_i - d\mathrm{lse}_i` of all keys, the gradients of a part of the
    keys are those of `scaled_dot_product_attention_bwd` for that part. dq is their sum over the parts,

    .. math:: dq_i = \sum_n \sum_{j \in n} g_{ij} k_j, \qquad dk_j = \sum_i g_{ij} q_i, \qquad
        dv_j = \sum_i p_{ij}\, do_i

    and dk, dv of a part travel with it from rank to rank, which add those of their queries, and then home.

    Parameters
    ----------
    dout : the shape and dtype of this rank's output
    ctx : RingContext
    dlse : (*batch, H, T), optional
        A cotangent of `ctx.lse`.

    Returns
    -------
    SDPAGrads
        query, key, value, bias of this rank; the gradient of the sinks is the sum over all ranks, on each of them. A
        bias without an axis of queries has the gradient of this rank's queries: add those of ranks that share it.
    """
    checks.context("ctx", ctx, RingContext)
    cotangents = everywhere(ctx.comm, canonical_cotangents, dout, ctx, dlse, call="ring_attention_bwd")
    dq, dk, dv, dbias, dsinks = ring_backward(ctx, ctx.comm, *cotangents)
    restore = ctx.layout.restore
    if dbias is not None and ctx.bias_shape is not None:
        dbias = ctx.layout.restore_bias(dbias, ctx.bias_shape)
    return SDPAGrads(restore(dq), restore(dk), restore(dv), dbias, sinks_total(dsinks, ctx.modifiers.sinks))


def canonical_cotangents(dout: Array, ctx: Any, dlse: Array | None) -> tuple[Array, Array | None]:
    """The cotangents of the output and of the lse, checked, in canonical layout."""
    checks.cotangent(dout, ctx.layout.restored_shape(tuple(ctx.out.shape)), ctx.q)
    if dlse is not None:
        dlse = lse_cotangent(dlse, ctx)
        checks.namespace(dlse=dlse, query=ctx.q)
    return ctx.layout.canonical(dout), dlse


def ring_forward(
    comm: Communicator,
    everyone: Gathering,
    q: Array,
    k: Array,
    v: Array,
    modifiers: ScoreModifiers,
    route: Route,
    mask: PartMask | None,
    first_head: int = 0,
) -> tuple[Array, Array]:
    """The output (B, H, T, Dv) and lse (B, H, T) of this rank's canonical queries; `everyone` learns of an error."""
    travel, guard = Travel(comm, route), Guard()
    queries = guard.run(make_queries, q, modifiers, route.queries[comm.Get_rank()], route.band, first_head, mask)
    results: Any = guard.run(Results, queries, v.shape[3])
    for part, (part_k, part_v) in travel.parts([k, v]):
        if results is not None:
            guard.run(results.add, route.keys[part], part_k, part_v, travel.poll)
    travel.finish()
    agree(everyone, guard.error)
    joined: tuple[Array, Array] = results.joined()
    return joined


def ring_backward(
    ctx: RingContext, everyone: Gathering, dout: Array, dlse: Array | None
) -> tuple[Any, Any, Any, Any, Any]:
    """The gradients of this rank's canonical arrays, and what each of `everyone` found for the sinks."""
    comm, route, modifiers = ctx.comm, ctx.route, ctx.modifiers
    travel, guard, rank = Travel(comm, route), Guard(), comm.Get_rank()
    queries = guard.run(make_queries, ctx.q, modifiers, route.queries[rank], route.band, ctx.first_head, ctx.mask)
    gradients: Any = guard.run(Gradients, queries, dout, dlse, ctx.out, ctx.lse)
    home: list[Array] = []
    for part, arrays in travel.parts([ctx.k, ctx.v]):
        total = [_zeros(x, ctx.lse) for x in arrays]
        incoming = travel.receive_gradients(part, total)
        own = guard.run(gradients.add, route.keys[part], *arrays, travel.poll) if gradients else None
        total = total if own is None else own
        if incoming is not None:
            total = [before + x for before, x in zip(incoming.wait(), total, strict=True)]
        home = total if part == rank else home
        travel.send_gradients(part, total)
    dk, dv = travel.gradients_at_home(home)
    travel.finish()
    dsinks = agree(everyone, guard.error, guard.run(_sinks_gradient, ctx, dout, dlse))
    xp = namespace_of(ctx.k)
    dk, dv = xp.astype(dk, ctx.k.dtype, copy=False), xp.astype(dv, ctx.v.dtype, copy=False)
    return gradients.query(), dk, dv, gradients.bias([segment for part in route.keys for segment in part]), dsinks


def _zeros(x: Array, like: Array) -> Any:
    return namespace_of(x).zeros(x.shape, dtype=like.dtype, device=device_of(x))


def _sinks_gradient(ctx: Any, dout: Array, dlse: Array | None) -> np.ndarray | None:
    """That of this rank's queries."""
    sinks = ctx.modifiers.sinks
    if sinks is None:
        return None
    xp = namespace_of(dout)
    out, dout = (xp.astype(x, ctx.lse.dtype, copy=False) for x in (ctx.out, dout))
    delta = xp.sum(hiding_product(out, dout), axis=-1)
    delta = delta if dlse is None else delta - xp.astype(dlse, ctx.lse.dtype, copy=False)
    return to_numpy(sinks_gradient(ctx.lse, delta, xp.astype(sinks, ctx.lse.dtype, copy=False)))


def sinks_total(gradients: list[Any], sinks: Array | None) -> Any:
    """The sum over ranks, in their order."""
    if sinks is None:
        return None
    total, xp = sum(gradients), namespace_of(sinks)
    return xp.astype(xp.asarray(total, device=device_of(sinks)), sinks.dtype)

"""Linear attention of a sequence that is divided among ranks: states are scanned over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

from attnarray import checks, tree
from attnarray.attention.linear.call import prepare, state_shape
from attnarray.attention.linear.linear_attention import (
    LinearAttentionContext,
    LinearAttentionGrads,
    LinearAttentionResult,
    Rule,
    linear_attention_bwd,
    linear_attention_fwd,
)
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, dtype_name, namespace_of, to_numpy
from attnarray.distributed.communicator import (
    Communicator,
    Guard,
    Incoming,
    Outgoing,
    agree,
    check_comm,
    gathered,
    same,
    wait,
)

SCAN = 7107  # the tag of messages
DELTA = ("delta", "gated_delta")
OPTIONS = {"rule": "linear", "scale": None, "normalize": False, "feature_map": None, "chunk_size": 64}


class ScanContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the context of this rank's steps, and the factor of the state over all of them."""

    comm: Any
    steps: LinearAttentionContext[ArrayT]
    factor: Any  # (..., 1 or Dk, 1), 1 without decay; None for the delta rules
    state: Any  # an array like the states
    has_initial: bool


def scan_linear_attention(
    comm: Communicator,
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    decay: ArrayT | None = None,
    beta: ArrayT | None = None,
    rule: Rule = "linear",
    initial_state: ArrayT | None = None,
    **options: Any,
) -> LinearAttentionResult[ArrayT]:
    r"""Linear attention of consecutive parts of a sequence, one on each rank.

    .. math:: S_r = F_r S_{r - 1} + S^{\mathrm{own}}_r, \qquad F_r = e^{\sum_{t \in r} g_t}

    For the rules "linear" and "gated" each rank finds its own state from nothing, the states before each rank follow by
    a scan in log2 n messages, and a second pass computes outputs: twice the work of a forward, divided among ranks. For
    the delta rules the state goes from rank to rank, one after the other: memory is divided, time is not.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    query, key, value, decay, beta : arrays
        This rank's steps, one at least, as in `attnarray.linear_attention` with the axes of layout "BHTD".
    rule, scale, normalize, feature_map, chunk_size
        As there, equal on all ranks; `lengths` and `layout` are not taken.
    initial_state : (*batch, Hkv, Dk, Dv), optional
        That before the whole sequence, the same on every rank.

    Returns
    -------
    LinearAttentionResult
        out of this rank's steps, and the state after its last one.

    Raises
    ------
    ValueError, TypeError, RankError
        As `attnarray.linear_attention`; also if ranks disagree, or another rank raised an error.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.distributed import ThreadComm, join_sequence, scan_linear_attention, split_sequence
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 2, 30, 4))
    >>> q, k, v = (split_sequence(array, 3) for array in x)
    >>> run = lambda comm: scan_linear_attention(comm, q[comm.rank], k[comm.rank], v[comm.rank]).out
    >>> bool(np.allclose(join_sequence(ThreadComm(3).run(run)), aa.linear_attention(*x).out))
    True
    """
    return scan_linear_attention_fwd(
        comm, query, key, value, decay=decay, beta=beta, rule=rule, initial_state=initial_state, **options
    )[0]


def scan_linear_attention_fwd(
    comm: Communicator,
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    decay: ArrayT | None = None,
    beta: ArrayT | None = None,
    rule: Rule = "linear",
    initial_state: ArrayT | None = None,
    **options: Any,
) -> tuple[LinearAttentionResult[ArrayT], ScanContext[ArrayT]]:
    """`scan_linear_attention` and the context for its backward, which all ranks must call, too."""
    given: Any = {"decay": decay, "beta": beta, "rule": rule, **options}

    def forward(state: Any) -> tuple[LinearAttentionResult[ArrayT], LinearAttentionContext[ArrayT]]:
        return linear_attention_fwd(query, key, value, initial_state=state, **given)

    like = agreed_state(comm, (query, key, value), initial_state, given)
    xp, guard = namespace_of(query), Guard()
    start = xp.zeros_like(like) if initial_state is None else xp.astype(initial_state, like.dtype, copy=False)
    if rule in DELTA:
        factor, before = None, _received(comm, start, comm.Get_rank() - 1)
        result, steps = guard.run(forward, before) or (LinearAttentionResult(query, like), None)
        _sent(comm, result.state, comm.Get_rank() + 1)
    else:
        factor = guard.run(_factor, decay, key, like)
        own = guard.run(forward, None)
        own_factor = xp.ones_like(like) if factor is None else factor + xp.zeros_like(like)
        before = _scan(comm, own_factor, like if own is None else own[0].state, start, forwards=True)
        result, steps = guard.run(forward, before) or (LinearAttentionResult(query, like), None)
    agree(comm, guard.error)
    assert steps is not None
    return result, ScanContext(comm, steps, factor, like, initial_state is not None)


def scan_linear_attention_bwd(
    dout: LinearAttentionResult | Array, ctx: ScanContext[ArrayT], dstate: Array | None = None
) -> LinearAttentionGrads[ArrayT]:
    r"""The gradients of this rank's arrays; every rank must call it.

    With the gradient of the state before a rank's steps that its own outputs give, the gradient of every state follows
    by a scan from the last rank,

    .. math:: E_r = E^{\mathrm{own}}_r + F_r (D_r + E_{r + 1})

    where D is the cotangent of the rank's state, and all others are those of `attnarray.linear_attention_bwd` with
    D_r + E_(r + 1) as the cotangent of the state.

    Parameters
    ----------
    dout : LinearAttentionResult
        The cotangents of this rank's out and state; or that of out alone.
    ctx : ScanContext
    dstate : (*batch, Hkv, Dk, Dv), optional
        The cotangent of the state, if `dout` is an array.

    Returns
    -------
    LinearAttentionGrads
        Those of the initial state and of a feature map are of all ranks, the same on each.
    """
    checks.context("ctx", ctx, ScanContext)
    comm, xp, guard = ctx.comm, namespace_of(ctx.state), Guard()
    given: Any = LinearAttentionResult(dout, dstate) if checks.is_array(dout) else dout
    none = xp.zeros_like(ctx.state)
    own_state = none if given.state is None else given.state

    def backward(later: Any) -> LinearAttentionGrads[ArrayT]:
        return linear_attention_bwd(LinearAttentionResult(given.out, later), ctx.steps)

    rank = comm.Get_rank()
    agree(comm, None, call="scan_linear_attention_bwd")
    if ctx.factor is None:
        after = _received(comm, none, rank + 1)
        grads: Any = guard.run(lambda: backward(own_state + after))
        initial = none if grads is None else grads.initial_state
        _sent(comm, initial, rank - 1)
    else:
        alone = guard.run(backward, none)
        factor = ctx.factor + none
        start = none if alone is None else alone.initial_state + factor * own_state
        after = _scan(comm, factor, start, none, forwards=False)
        grads = guard.run(lambda: backward(own_state + after))
        initial = none if grads is None else grads.initial_state
    everyone = agree(comm, guard.error, (to_numpy(initial) if rank == 0 else None, _host(grads and grads.feature_map)))
    first = xp.asarray(everyone[0][0], device=device_of(initial)) if ctx.has_initial else None
    return grads._replace(initial_state=first, feature_map=_total([dmap for _, dmap in everyone], grads.feature_map))


def agreed_state(
    comm: Communicator, arrays: tuple[Array, Array, Array], initial_state: Array | None, given: dict[str, Any]
) -> Any:
    """Zeros of the shape of the state, once every rank has checked its arguments and all agree."""
    check_comm(comm)
    query, names = arrays[0], ("decay", "beta")
    own: list[Any] = []

    def described() -> dict[str, Any]:
        unknown = [name for name in given if name not in (*OPTIONS, *names)]
        if unknown:
            raise TypeError(f"`{unknown[0]}` is not taken by scan_linear_attention. The options: {', '.join(OPTIONS)}.")
        options = {**OPTIONS, **{name: value for name, value in given.items() if name in OPTIONS}}
        checked = {**{name: given[name] for name in names}, "initial_state": initial_state}
        p = prepare(*arrays, checked, {**options, "lengths": None, "layout": "BHTD"})
        shape, xp = state_shape(p.layout, p.features_k, p.values), namespace_of(query)
        own.append(xp.zeros(shape, dtype=accumulator_dtype(xp, query.dtype), device=device_of(query)))
        return {
            **{name: repr(option) for name, option in options.items()},
            "decay (axes)": None if given["decay"] is None else given["decay"].ndim,
            "dtype": dtype_name(query.dtype),
            "state (shape)": shape,
            "query heads": p.features_q.shape[1],
            "initial_state (given)": initial_state is not None,
        }

    same(gathered(comm, described, call="scan_linear_attention"))
    return own[0]


def _factor(decay: Array | None, key: Array, like: Array) -> Any:
    """The factor of the state over all steps of a rank, broadcastable to it."""
    xp = namespace_of(key)
    if decay is None:
        return xp.ones_like(like)
    wide = xp.astype(decay, accumulator_dtype(xp, decay.dtype), copy=False)
    if decay.ndim == key.ndim:
        return xp.exp(xp.sum(wide, axis=-2))[..., :, None]
    return xp.exp(xp.sum(wide, axis=-1))[..., None, None]


def _scan(comm: Communicator, factor: Any, state: Any, start: Any, forwards: bool) -> Any:
    """The state before each rank's, in the order of ranks or from the last one, if the first begins with `start`."""
    rank, size = comm.Get_rank(), comm.Get_size()
    place, way = (rank, 1) if forwards else (size - 1 - rank, -1)
    distance = 1
    while distance < size:
        sent = [Outgoing(comm, [factor, state], rank + way * distance, SCAN)] if place + distance < size else []
        if place >= distance:
            shapes = [tuple(factor.shape), tuple(state.shape)]
            before = Incoming(comm, [factor, state], shapes, rank - way * distance, SCAN).wait()
            factor, state = before[0] * factor, factor * before[1] + state
        for message in sent:
            wait(message.requests)
        distance *= 2
    target = rank + way
    last = [Outgoing(comm, [factor * start + state], target, SCAN)] if 0 <= target < size else []
    found = _received(comm, start, rank - way)
    for message in last:
        wait(message.requests)
    return found


def _sent(comm: Communicator, state: Any, rank: int) -> None:
    if 0 <= rank < comm.Get_size():
        wait(Outgoing(comm, [state], rank, SCAN).requests)


def _received(comm: Communicator, like: Any, rank: int) -> Any:
    """The state that another rank sends; `like` itself where there is no such rank."""
    if 0 <= rank < comm.Get_size():
        return Incoming(comm, [like], [tuple(like.shape)], rank, SCAN).wait()[0]
    return like


def _host(values: Any) -> Any:
    return None if values is None else tree.map(lambda x: to_numpy(x) if checks.is_array(x) else x, values)


def _total(parts: list[Any], like: Any) -> Any:
    """The sum over ranks of the gradients of a feature map."""
    if like is None:
        return None

    def total(x: Any, *others: Any) -> Any:
        return namespace_of(x).asarray(sum(others), device=device_of(x)) if checks.is_array(x) else x

    add: Callable[..., Any] = tree.map
    return add(total, like, *parts)

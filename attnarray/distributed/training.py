"""Data-parallel training: gradients are reduced over ranks, and each rank keeps its part of the optimizer's state.

ZeRO-1: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020,
arXiv:1910.02054.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from attnarray import checks, optim, tree
from attnarray.backend import Array, accumulator_dtype, device_of, dtype_name, namespace_of, to_numpy
from attnarray.distributed.communicator import (
    Communicator,
    Incoming,
    Outgoing,
    check_comm,
    everywhere,
    gathered,
    same,
    wait,
)

Reduction = Literal["mean", "sum"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
REDUCE, SPREAD = 7105, 7106  # tags of messages
Pieces = dict[str, Any]  # path -> a range of the elements of a leaf, (N,)


class Range(NamedTuple):
    """The elements [start, stop) of a leaf, counted in its own order."""

    path: tree.Path
    start: int
    stop: int


def element_ranges(params: tree.Tree, ranks: int) -> list[list[Range]]:
    """The elements of each rank: all leaves one after the other, in parts whose sizes differ by 1 at most."""
    leaves = tree.flatten(params)
    total = sum(math.prod(leaf.shape) for _, leaf in leaves)
    bounds = [total * rank // ranks for rank in range(ranks + 1)]
    found: list[list[Range]] = [[] for _ in range(ranks)]
    first = 0
    for path, leaf in leaves:
        past = first + math.prod(leaf.shape)
        for rank in range(ranks):
            start, stop = max(first, bounds[rank]), min(past, bounds[rank + 1])
            if start < stop:
                found[rank].append(Range(path, start - first, stop - first))
        first = past
    return found


def copy_pieces(params: tree.Tree, ranges: Iterable[Range]) -> Pieces:
    """Copies of these elements, by the path of their leaf."""
    found = {}
    for path, start, stop in ranges:
        leaf = tree.get(params, path)
        xp = namespace_of(leaf)
        found[tree.format_path(path)] = xp.asarray(xp.reshape(leaf, (-1,))[start:stop], copy=True)
    return found


def sharded_init(comm: Communicator, params: tree.Tree, init: Callable[[tree.Tree], Any] = optim.adamw_init) -> Any:
    """The state of an optimizer for this rank's part of the parameters.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    params : tree of floating arrays
        The same on every rank.
    init : callable
        That of an optimizer which treats every element alone, such as `optim.adamw_init`.

    Returns
    -------
    The state for 1 / n of the elements.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray.distributed import ThreadComm, sharded_init
    >>> params = {"weight": np.ones((3, 2)), "bias": np.ones(3)}
    >>> states = ThreadComm(2).run(sharded_init, params)
    >>> [{path: m.shape for path, m in state.first_moment.items()} for state in states]
    [{'weight': (4,)}, {'weight': (2,), 'bias': (3,)}]
    """
    check_comm(comm)
    own = everywhere(comm, _checked_ranges, params, comm.Get_size(), call="sharded_init")[comm.Get_rank()]
    return everywhere(comm, lambda: init(copy_pieces(params, own)))


def sharded_update(
    comm: Communicator,
    params: tree.Tree,
    grads: tree.Tree,
    state: Any,
    update: Callable[..., tuple[tree.Tree, Any]] = optim.adamw,
    *,
    reduction: Reduction = "mean",
    max_norm: float | None = None,
    **options: Any,
) -> tuple[tree.Tree, Any]:
    r"""One step of an optimizer with the gradients of all ranks.

    .. math:: g = \frac1n \sum_r g_r, \qquad \theta_r, s_r \leftarrow \mathrm{update}(\theta_r, g_r, s_r), \qquad
        \theta \leftarrow [\theta_0; \dots; \theta_{n - 1}]

    Each rank receives its part of all gradients and adds them in the order of the ranks, updates its part, and sends it
    to the others. So all ranks have the same bits, and a state for 1 / n of the parameters (ZeRO-1).

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or the communicator that `ThreadComm` gives
    params : tree of floating arrays
        The same on every rank.
    grads : tree like `params`
        Those of this rank's batch.
    state
        From `sharded_init` or the step before.
    update : callable
        The optimizer of `init`: update(params, grads, state, **options).
    reduction : {"mean", "sum"}
        "mean" for the mean loss of batches of equal size; "sum" if each rank has its part of one loss.
    max_norm : float, optional
        Clip the reduced gradients by their global norm, as `optim.clip_by_global_norm`.
    **options
        Those of `update`, such as `lr`. Equal on all ranks.

    Returns
    -------
    params, state
        New trees; `params` of all ranks.

    Raises
    ------
    ValueError, TypeError
        As `update`; also if the ranks disagree on parameters or options.
    RankError
        If another rank raised an error: then all do.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> from attnarray.distributed import ThreadComm, sharded_init, sharded_update
    >>> def step(comm):
    ...     params = {"weight": np.zeros(3)}
    ...     state = sharded_init(comm, params, optim.sgd_init)
    ...     grads = {"weight": np.full(3, float(comm.rank))}
    ...     return sharded_update(comm, params, grads, state, optim.sgd, lr=1.0)[0]["weight"].tolist()
    >>> ThreadComm(3).run(step)
    [[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]
    """
    check_comm(comm)
    rank, size = comm.Get_rank(), comm.Get_size()
    same(gathered(comm, _described, params, grads, reduction, max_norm, options, call="sharded_update"))
    ranges = element_ranges(params, size)
    mine = _reduced(comm, grads, ranges)
    if reduction == "mean":
        mine = {path: piece * (1.0 / size) for path, piece in mine.items()}
    if max_norm is not None:
        factor = _clipping(comm, mine, max_norm)
        mine = {path: piece * factor for path, piece in mine.items()}

    def step() -> tuple[Pieces, Any]:
        own = copy_pieces(params, ranges[rank])
        narrow = {path: namespace_of(g).astype(g, own[path].dtype, copy=False) for path, g in mine.items()}
        new, new_state = update(own, narrow, state, **options)
        return dict(new), new_state

    new, state = everywhere(comm, step)
    return _spread(comm, params, new, ranges), state


def _checked_ranges(params: tree.Tree, size: int) -> list[list[Range]]:
    leaves = {tree.format_path(path): leaf for path, leaf in tree.flatten(params)}
    for name, leaf in leaves.items():
        checks.require_array(f"params.{name}", leaf, "a floating array")
        checks.floating(**{f"params.{name}": leaf})
    return element_ranges(params, size)


def _described(params: tree.Tree, grads: tree.Tree, reduction: str, max_norm: Any, options: Any) -> dict[str, Any]:
    """What all ranks must give alike; the gradients have the structure of the parameters."""
    checks.choice("reduction", reduction, REDUCTIONS)
    if max_norm is not None:
        checks.positive("max_norm", max_norm)

    def checked(p: Array, g: Array) -> tuple[Any, ...]:
        checks.shape("grads", g, tuple(p.shape), "the shape of the parameter")
        checks.floating(params=p, grads=g)
        return dtype_name(p.dtype), tuple(p.shape)

    described = tree.map(checked, params, grads)
    return {"params": repr(described), "reduction": reduction, "max_norm": max_norm, "options": repr(options)}


def _reduced(comm: Communicator, grads: tree.Tree, ranges: list[list[Range]]) -> Pieces:
    """This rank's elements of the gradients of all ranks, added in their order, in the dtype of sums."""
    rank, size = comm.Get_rank(), comm.Get_size()
    own = copy_pieces(grads, ranges[rank])
    paths, like = list(own), list(own.values())
    outgoing = [
        Outgoing(comm, list(copy_pieces(grads, ranges[r]).values()), r, REDUCE) for r in range(size) if r != rank
    ]
    total: list[Any] = []
    for r in range(size):
        arrays = like if r == rank else Incoming(comm, like, [x.shape for x in like], r, REDUCE).wait()
        wide = [namespace_of(x).astype(x, accumulator_dtype(namespace_of(x), x.dtype), copy=False) for x in arrays]
        total = [a + b for a, b in zip(total, wide, strict=True)] if total else wide
    for message in outgoing:
        wait(message.requests)
    return dict(zip(paths, total, strict=True))


def _clipping(comm: Communicator, pieces: Pieces, max_norm: float) -> float:
    """The factor that brings the norm of all ranks' elements to `max_norm` at most."""
    squares = [float(np.sum(np.square(to_numpy(piece), dtype=np.float64))) for piece in pieces.values()]
    norm = math.sqrt(sum(comm.allgather(sum(squares))))
    return math.nan if not math.isfinite(norm) else min(1.0, max_norm / norm) if norm else 1.0


def _spread(comm: Communicator, params: tree.Tree, new: Pieces, ranges: list[list[Range]]) -> tree.Tree:
    """The whole parameters from the updated elements of every rank."""
    rank, size = comm.Get_rank(), comm.Get_size()
    others = [(rank + step) % size for step in range(1, size)]
    like = [copy_pieces(params, own) for own in ranges]
    outgoing = [Outgoing(comm, list(new.values()), r, SPREAD) for r in others]
    incoming = {}
    for r in reversed(others):
        arrays = list(like[r].values())
        incoming[r] = Incoming(comm, arrays, [x.shape for x in arrays], r, SPREAD)
    pieces = [new if r == rank else dict(zip(like[r], incoming[r].wait(), strict=True)) for r in range(size)]
    for message in outgoing:
        wait(message.requests)
    return joined(params, pieces)


def joined(params: tree.Tree, pieces: list[Pieces]) -> tree.Tree:
    """A tree like `params` from the pieces of all ranks."""
    parts: dict[str, list[Any]] = {}
    for own in pieces:
        for path, piece in own.items():
            parts.setdefault(path, []).append(piece)
    names = iter([tree.format_path(path) for path, _ in tree.flatten(params)])

    def whole(leaf: Array) -> Any:
        xp, found = namespace_of(leaf), parts.get(next(names))
        if not found:
            return xp.zeros(leaf.shape, dtype=leaf.dtype, device=device_of(leaf))
        return xp.reshape(xp.concat(found, axis=0), leaf.shape)

    return tree.map(whole, params)

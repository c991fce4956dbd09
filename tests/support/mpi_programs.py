"""Programs that the tests start with mpiexec: python -m tests.support.mpi_programs NAME. Rank 0 prints the results."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from attnarray import tree
from attnarray.distributed import (
    ContextParallel,
    all_to_all_attention,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    grid,
    join_sequence,
    ring_attention,
    ring_attention_bwd,
    ring_attention_fwd,
)
from attnarray.distributed import tiles as tiles_module
from tests.support import context_calls, linear_calls
from tests.support.ring_calls import OPTIONS, errors, joined, make_call, rank_results, whole_results


def ring(comm: Any) -> dict[str, Any]:
    """The largest error of ring attention, for each dtype, order and set of options."""
    found = {}
    for dtype, order in (("float64", "contiguous"), ("float64", "zigzag"), ("float32", "zigzag")):
        for name in OPTIONS:
            call = make_call(name, dtype)
            results = comm.allgather(rank_results(comm, call, order))
            found[f"{dtype}, {order}, {name}"] = max(errors(joined(results, call, order), whole_results(call)).values())
    return found


def all_to_all(comm: Any, head_ranks: str) -> dict[str, Any]:
    """The largest error of all-to-all attention on a grid, for each set of options."""
    found, own = {}, grid(comm, int(head_ranks))
    for name in OPTIONS:
        call = make_call(name, "float64")
        mine = rank_results(own, call, "zigzag", all_to_all_attention_fwd, all_to_all_attention_bwd)
        found[name] = max(errors(joined(own.allgather(mine), call, "zigzag"), whole_results(call)).values())
    return found


def linear(comm: Any) -> dict[str, Any]:
    """The largest error of linear attention, for each rule, with and without an initial state."""
    found = {}
    for name in linear_calls.CASES:
        for with_initial in (False, True):
            call = linear_calls.make_call(name, with_initial)
            whole = linear_calls.whole_results(call)
            every = comm.allgather(linear_calls.rank_results(comm, call, whole[0].state))
            found[f"{name}, {with_initial}"] = max(linear_calls.errors(every, call, whole).values())
    return found


def context(comm: Any) -> dict[str, Any]:
    """The largest error of logits and gradients of models whose sequences are divided, for each model."""
    found = {}
    for name in context_calls.MODELS:
        call = context_calls.make_call(name)
        logits, grads = context_calls.whole_gradients(call)
        every = comm.allgather(context_calls.gradients(call, ContextParallel(comm)))
        whole = tree.map(lambda *leaves: sum(leaves), *(own for _, own in every))
        pairs = zip(tree.flatten(whole), tree.flatten(grads), strict=True)
        errors_of_all = [float(np.max(np.abs(a - b))) for (_, a), (_, b) in pairs]
        joined_logits = join_sequence([own for own, _ in every], order="zigzag", axis=1)
        found[name] = max(float(np.max(np.abs(joined_logits - logits))), *errors_of_all)
    return found


def large(comm: Any) -> dict[str, Any]:
    """Messages of megabytes, which MPI sends only when they are asked for."""
    rng = np.random.default_rng(comm.Get_rank())
    q = rng.standard_normal((1, 2, 1500, 64), dtype=np.float32)
    outs = [ring_attention(comm, q, q, q, is_causal=True, order="zigzag") for _ in range(3)]
    return {"equal": all(np.array_equal(out, outs[0]) for out in outs), "finite": bool(np.isfinite(outs[0]).all())}


def errors_on_ranks(comm: Any) -> dict[str, Any]:
    """The errors of every rank, when one gives another option, wrong input, or fails while it computes."""
    x, rank = np.ones((1, 2, 8, 4)), comm.Get_rank()
    found = {
        "options": _raised(comm, lambda: ring_attention(comm, x, x, x, scale=1.0 + rank)),
        "dtype": _raised(comm, lambda: ring_attention(comm, *3 * [x.astype(np.float32) if rank == 1 else x])),
        "bias": _raised(comm, lambda: ring_attention(comm, x, x, x, bias=np.ones((1 + rank % 2, 8, 24)))),
        "call": _raised(comm, lambda: (all_to_all_attention if rank == 1 else ring_attention)(comm, x, x, x)),
        "input": _raised(comm, lambda: ring_attention(comm, x, x[:, :, :, :3] if rank == 1 else x, x)),
    }
    attention, backward = tiles_module.attention, tiles_module.attention_backward
    if rank == 1:
        tiles_module.attention = _fails
    found["computing"] = _raised(comm, lambda: ring_attention(comm, x, x, x))
    tiles_module.attention = attention
    out, ctx = ring_attention_fwd(comm, x, x, x)
    if rank == 1:
        tiles_module.attention_backward = _fails
    found["computing gradients"] = _raised(comm, lambda: ring_attention_bwd(out, ctx))
    tiles_module.attention_backward = backward
    return found


def _fails(*_: Any) -> Any:
    raise MemoryError("no memory left")


def _raised(comm: Any, action: Any) -> list[str]:
    try:
        action()
        error = "nothing"
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return comm.allgather(error)


def stops(comm: Any) -> dict[str, Any]:
    """A rank raises outside of any call, while others wait for it."""
    x = np.ones((1, 2, 8, 4))
    if comm.Get_rank() == 1:
        raise ZeroDivisionError("my own")
    ring_attention(comm, x, x, x)
    return {}


PROGRAMS = {
    "ring": ring, "all_to_all": all_to_all, "context": context, "linear": linear, "large": large,
    "errors": errors_on_ranks, "stops": stops,
}  # fmt: skip


def main() -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    found = PROGRAMS[sys.argv[1]](comm, *sys.argv[2:])
    if comm.Get_rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

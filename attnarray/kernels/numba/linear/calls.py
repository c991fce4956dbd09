"""Linear attention in chunks: the calls of its kernels.

Reference: attention/linear/linear_attention.py, `attend_in_chunks` and `attend_in_chunks_backward`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.linear import backward_by_dim, forward_by_dim
from attnarray.kernels.numba.linear.backward import backward
from attnarray.kernels.numba.linear.chunk import Linear
from attnarray.kernels.numba.linear.forward import forward
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import empty_call, pack
from attnarray.kernels.numba.runtime.threads import AWAKE, split_rows, threads_for

FORWARD, BACKWARD = 0.02, 0.05  # nanoseconds for each product of two numbers
LONGEST = 512  # steps of a chunk, of which some matrices have the square
PART = 64  # value columns for which it pays to compute the products of queries and keys once more


def attend_in_chunks(q: Any, k: Any, v: Any, given: Any, keep: bool) -> tuple[Any, Any, Any]:
    """See the reference."""
    real, arrays = _prepared(q, k, v, given)
    (B, H, T, Dk), Hkv, Dv = q.shape, k.shape[1], v.shape[3]
    out, state = np.empty((B, H, T, Dv), real), np.empty((B, Hkv, Dk, Dv), real)
    states = np.empty((B, Hkv, max(1, -(-T // given.chunk_size)), Dk, Dv), real) if keep else None
    if states is not None and T == 0:
        states[:, :, 0] = given.initial
    work = ra.nanoseconds(_products(q, k, v, given), FORWARD, real)
    parts = _parts(B * Hkv, Dv, work)
    call = _call(q, k, v, given, arrays, parts)._replace(states=states, out=out, state=state)
    split_rows(forward_by_dim.forward if _by_dim(given) else forward, B * Hkv * parts, work, *pack(call, real))
    return out, state, states


def attend_in_chunks_backward(
    dout: Any, dstate: Any, q: Any, k: Any, v: Any, given: Any, states: Any
) -> tuple[Any, ...]:
    """See the reference."""
    real, arrays = _prepared(q, k, v, given)
    dout, dstate, states = (np.ascontiguousarray(ra.aligned(x, real)) for x in (dout, dstate, states))
    work, heads = ra.nanoseconds(_products(q, k, v, given), BACKWARD, real), k.shape[0] * k.shape[1]
    parts = _parts(heads, v.shape[3], work)
    results: Any = {"dvalue": np.empty(v.shape, real), "dinitial": np.empty(given.initial.shape, real)}
    for name, x in (("dquery", q), ("dkey", k), ("ddecay", given.decay), ("dbeta", given.beta)):
        results[name] = None if x is None else np.empty((parts, *x.shape), real)
    call = _call(q, k, v, given, arrays, parts)._replace(dout=dout, dstate=dstate, states=states, **results)
    split_rows(backward_by_dim.backward if _by_dim(given) else backward, heads * parts, work, *pack(call, real))
    dq, dk, ddecay, dbeta = (
        x if x is None else x[0] if parts == 1 else np.sum(x, axis=0)
        for x in (results["dquery"], results["dkey"], results["ddecay"], results["dbeta"])
    )
    return dq, dk, results["dvalue"], ddecay, dbeta, results["dinitial"]


def warmup(dtype: str) -> None:
    """Compile the kernels for one dtype."""
    for kernel in (forward, backward, forward_by_dim.forward, backward_by_dim.backward):
        kernel(0, 0, *pack(empty_call(Linear), dtype))


def _by_dim(given: Any) -> bool:
    """Whether there is a decay for each key dimension."""
    return given.decay is not None and given.decay.shape[3] != 1


def _prepared(q: Any, k: Any, v: Any, given: Any) -> tuple[Any, tuple[Any, ...]]:
    """The dtype, and contiguous arrays q, k, v, decay, beta and initial."""
    real = ra.compute_dtype(q)
    if given.chunk_size > LONGEST:
        raise Declined(f"chunks of {given.chunk_size} steps; kernels take up to {LONGEST}")
    arrays = (q, k, v, *given[:3])
    return real, tuple(None if x is None else np.ascontiguousarray(ra.aligned(x, real)) for x in arrays)


def _parts(heads: int, columns: int, work: int) -> int:
    """The parts of the value columns: more than one if there are fewer heads than threads."""
    most = min(threads_for(AWAKE * work, columns) // max(heads, 1), columns // PART)
    return next((parts for parts in range(most, 1, -1) if columns % parts == 0), 1)


def _call(q: Any, k: Any, v: Any, given: Any, arrays: tuple[Any, ...], parts: int) -> Linear:
    (B, Hkv, T, Dk), Dv = k.shape, v.shape[3]
    decays = 0 if given.decay is None else given.decay.shape[3]
    sizes = (B * Hkv, parts, q.shape[1] // max(Hkv, 1), T, Dk, Dv, Dv // parts, decays, given.chunk_size)
    query, key, value, decay, beta, initial = arrays
    return Linear(*sizes, query, key, value, decay, beta, initial, None, scale=given.scale)


def _products(q: Any, k: Any, v: Any, given: Any) -> int:
    """How many products of two numbers a forward takes, about."""
    B, H, T, Dk = q.shape
    Dv, C = v.shape[3], given.chunk_size
    each = H * (C * Dk + Dk * Dv + C * Dv) + k.shape[1] * (C * Dk + 2 * Dk * Dv + C * Dv)
    return int(B * T * each)

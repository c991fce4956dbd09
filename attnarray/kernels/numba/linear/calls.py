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
from attnarray.kernels.numba.runtime.threads import split_rows

FORWARD, BACKWARD = 0.02, 0.05  # nanoseconds for each product of two numbers
LONGEST = 512  # steps of a chunk, of which some matrices have the square


def attend_in_chunks(q: Any, k: Any, v: Any, given: Any, keep: bool) -> tuple[Any, Any, Any]:
    """See the reference."""
    real, arrays = _prepared(q, k, v, given)
    (B, H, T, Dk), Hkv, Dv = q.shape, k.shape[1], v.shape[3]
    out, state = np.empty((B, H, T, Dv), real), np.empty((B, Hkv, Dk, Dv), real)
    states = np.empty((B, Hkv, max(1, -(-T // given.chunk_size)), Dk, Dv), real) if keep else None
    if states is not None and T == 0:
        states[:, :, 0] = given.initial
    call = _call(q, k, v, given, arrays)._replace(states=states, out=out, state=state)
    work = ra.nanoseconds(_products(q, k, v, given), FORWARD, real)
    split_rows(forward_by_dim.forward if _by_dim(given) else forward, B * Hkv, work, *pack(call, real))
    return out, state, states


def attend_in_chunks_backward(
    dout: Any, dstate: Any, q: Any, k: Any, v: Any, given: Any, states: Any
) -> tuple[Any, ...]:
    """See the reference."""
    real, arrays = _prepared(q, k, v, given)
    dout, dstate, states = (np.ascontiguousarray(ra.aligned(x, real)) for x in (dout, dstate, states))
    results: Any = [None if x is None else np.empty(x.shape, real) for x in (q, k, v, *given[:3])]
    made: Any = dict(zip(("dquery", "dkey", "dvalue", "ddecay", "dbeta", "dinitial"), results, strict=True))
    call = _call(q, k, v, given, arrays)._replace(dout=dout, dstate=dstate, states=states, **made)
    work = ra.nanoseconds(_products(q, k, v, given), BACKWARD, real)
    chosen = backward_by_dim.backward if _by_dim(given) else backward
    split_rows(chosen, k.shape[0] * k.shape[1], work, *pack(call, real))
    return tuple(results)


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


def _call(q: Any, k: Any, v: Any, given: Any, arrays: tuple[Any, ...]) -> Linear:
    group = q.shape[1] // max(k.shape[1], 1)
    query, key, value, decay, beta, initial = arrays
    sizes = (group, q.shape[2], q.shape[3], v.shape[3], given.chunk_size)
    return Linear(*sizes, query, key, value, decay, beta, initial, None, scale=given.scale)


def _products(q: Any, k: Any, v: Any, given: Any) -> int:
    """How many products of two numbers a forward takes, about."""
    B, H, T, Dk = q.shape
    Dv, C = v.shape[3], given.chunk_size
    each = H * (C * Dk + Dk * Dv + C * Dv) + k.shape[1] * (C * Dk + 2 * Dk * Dv + C * Dv)
    return int(B * T * each)

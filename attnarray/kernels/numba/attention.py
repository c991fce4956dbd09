"""Tiled attention on NumPy arrays: how a call is brought to the kernels and split over threads.

Reference: attention/core.py, `attend` and `attend_backward`. 16-bit arrays are computed in float32.

Each thread takes a span of panels with about the same number of scores. Outputs and gradients of queries have the same
bits for any number of threads; other gradients are summed over the spans, and differ by the rounding of that sum.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba import attention_call as ac
from attnarray.kernels.numba.attention_backward import backward
from attnarray.kernels.numba.attention_forward import forward
from attnarray.kernels.numba.attention_scores import panel_work
from attnarray.kernels.numba.lanes import TILES
from attnarray.kernels.numba.threads import run_parts, threads_for

FLOPS_PER_NANOSECOND = 64  # of one thread, about


def attend(q: Any, k: Any, v: Any, scoring: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = _real(q)
    out, lse = np.empty((*q.shape[:3], v.shape[3]), real), np.empty(q.shape[:3], real)
    call = ac.call_of(scoring, real, _in(q, real), _in(k, real), _in(v, real), {ac.OUT: out, ac.LSE: lse[..., None]})
    run_parts(forward, [(*span, call.integers, call.numbers) for span in _spans(call, 1.0)])
    return out.astype(q.dtype, copy=False), lse


def attend_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scoring: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """See the reference."""
    real = _real(q)
    dq, dk, dv = np.empty(q.shape, real), np.zeros(k.shape, real), np.zeros(v.shape, real)
    arrays = {ac.OUT: _in(out, real), ac.DOUT: _in(dout, real), ac.DQ: dq, ac.DK: dk, ac.DV: dv}
    arrays[ac.LSE] = _in(lse, real)[..., None]
    if dlse is not None:
        arrays[ac.DLSE] = _in(dlse, real)[..., None]
    call = ac.call_of(scoring, real, _in(q, real), _in(k, real), _in(v, real), arrays)
    sizes = _backward_sizes(call.sizes.features, real)
    call.integers[ac.KEYS_PER_TILE], call.integers[ac.PANELS_PER_CHUNK] = sizes
    parts = [_Part(span, call, scoring, real) for span in _spans(call, 2.5)]
    run_parts(backward, [(*part.span, part.integers, call.numbers) for part in parts])
    for part in parts:
        part.add_shared(dk, dv)
    dbias = None if scoring.bias is None else _total([part.dbias for part in parts], scoring.bias)
    dsinks = None if scoring.sinks is None else _total([part.dsinks for part in parts], scoring.sinks)
    dq, dk, dv = (x.astype(like.dtype, copy=False) for x, like in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, dbias, dsinks


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    integers, numbers = np.zeros(ac.BATCHES, np.int64), np.zeros(3, dtype)
    integers[[ac.Q * ac.SLOT + 2, ac.K * ac.SLOT + 2]] = 1  # one head
    forward(0, 0, integers, numbers)
    backward(0, 0, integers, numbers)
    panel_work(integers, numbers, np.zeros(0, np.int64))


class _Part:
    """A span of panels of the backward pass, with its own sums of what other spans add to as well."""

    def __init__(self, span: tuple[int, int], call: ac.Call, scoring: Any, real: Any) -> None:
        self.span = span
        self.integers = call.integers.copy()
        self.dbias = self.dsinks = None
        sizes = call.sizes
        self.head = span[0] // sizes.panels if span[0] and span[0] % sizes.panels else -1
        self.integers[ac.SHARED] = self.head
        if self.head >= 0:
            shapes = [(1, 1, sizes.keys, x.shape[3]) for x in call.alive[1:3]]
            self.dk, self.dv = (np.zeros(shape, real) for shape in shapes)
            ac.put(self.integers, ac.SHARED_DK, self.dk)
            ac.put(self.integers, ac.SHARED_DV, self.dv)
        if scoring.bias is not None:
            self.dbias = np.zeros(scoring.bias.shape, real)
            ac.put(self.integers, ac.DBIAS, self.dbias)
        if scoring.sinks is not None:
            self.dsinks = np.zeros(scoring.sinks.shape, real)
            ac.put(self.integers, ac.DSINKS, self.dsinks[None, :, None, None])

    def add_shared(self, dk: Any, dv: Any) -> None:
        if self.head >= 0:
            b, g = divmod(self.head, dk.shape[1])
            dk[b, g] += self.dk[0, 0]
            dv[b, g] += self.dv[0, 0]


def _total(parts: list[Any], like: Any) -> Any:
    for part in parts[1:]:
        parts[0] += part
    return parts[0].astype(like.dtype, copy=False)


def _real(q: Any) -> Any:
    """The dtype to compute in."""
    name = q.dtype.name
    if name not in ("float32", "float64", "float16", "bfloat16"):
        raise Declined(f"dtype {name}: float64, float32, float16 and bfloat16 only")
    return np.dtype(np.float64 if name == "float64" else np.float32)


def _in(x: Any, real: Any) -> Any:
    """`x` in that dtype, aligned and in this machine's byte order; a copy only where it must be one."""
    return np.require(x, real, "A")


def _backward_sizes(features: int, real: Any) -> tuple[int, int]:
    """As `tile_sizes`, where more is kept for each key and each query."""
    width, tile = TILES[real.itemsize * 8]
    each = max(features, 1) * real.itemsize
    keys = min(2**16 // each, 120) // tile * tile
    return max(keys, tile), min(max(3 * 2**16 // (each * width), 1), 64)


def _spans(call: ac.Call, passes: float) -> list[tuple[int, int]]:
    """The panels of all heads in spans of about equal work, one for each thread that is worth it."""
    sizes = call.sizes
    panels = sizes.batch * sizes.kv_heads * sizes.panels
    per_score = 2.0 * passes * sizes.features / FLOPS_PER_NANOSECOND
    if threads_for(per_score * sizes.batch * sizes.heads * sizes.queries * sizes.keys, panels) == 1:
        return [(0, panels)]
    work = np.empty(panels, np.int64)
    panel_work(call.integers, call.numbers, work)
    done = np.cumsum(work)
    threads = threads_for(per_score * float(done[-1]), panels)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, threads) / threads) + 1
    bounds = [0, *np.minimum(cuts, panels).tolist(), panels]
    return [(first, past) for first, past in itertools.pairwise(bounds) if first < past]

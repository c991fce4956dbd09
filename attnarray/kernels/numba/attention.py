"""Tiled attention on NumPy arrays: how a call is brought to the kernels and split over threads.

Reference: attention/core.py, `attend` and `attend_backward`. 16-bit arrays are computed in float32.

Each thread takes a span of panels with about the same number of scores. Outputs and gradients of queries have the same
bits for any number of threads; other gradients are summed over the spans, and differ by the rounding of that sum.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba import attention_call as ac
from attnarray.kernels.numba.attention_backward import backward
from attnarray.kernels.numba.attention_decode import BLOCK, decode, merge
from attnarray.kernels.numba.attention_forward import forward
from attnarray.kernels.numba.attention_scores import panel_work
from attnarray.kernels.numba.lanes import TILES
from attnarray.kernels.numba.threads import run_parts, threads_for

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FORWARD, BACKWARD = 1.0, 2.5  # two products of matrices, and five

# Of one thread, about.
FLOPS_PER_NANOSECOND = 64
BYTES_PER_NANOSECOND = 12

# Queries that share a head of keys. So few would leave most lanes of a panel empty.
MOST_ROWS_TO_DECODE, FEWEST_KEYS_TO_DECODE = 6, 64


def attend(q: Any, k: Any, v: Any, scoring: Any) -> tuple[Any, Any]:
    """See the reference."""
    known = _known(scoring, q, k, v)
    if known is not None:
        out, lse = np.empty(known.out, q.dtype), np.empty(known.out[:3], q.dtype)
        integers = known.integers.copy()
        ac.place(integers, q, k, v, out, lse)
        if known.decodes:
            partials = np.empty(known.partials, q.dtype)
            decode(0, 1, known.partials[0], integers, known.numbers, partials)
            merge(integers, known.numbers, partials)
        else:
            forward(0, known.panels, integers, known.numbers)
        return out, lse
    real = _real(q)
    out, lse = np.empty((*q.shape[:3], v.shape[3]), real), np.empty(q.shape[:3], real)
    call = ac.call_of(scoring, real, _in(q, real), _in(k, real), _in(v, real), {ac.OUT: out, ac.LSE: lse[..., None]})
    if _decodes(scoring, call.sizes):
        partials = np.empty(_partials(call.sizes, v.shape[3], real), real)
        threads = threads_for(_decoding_time(call.sizes, real), len(partials))
        rest = (threads, len(partials), call.integers, call.numbers, partials)
        run_parts(decode, [(n, *rest) for n in range(threads)])  # the units go to the threads in turn
        merge(call.integers, call.numbers, partials)
    else:
        run_parts(forward, [(*span, call.integers, call.numbers) for span in _spans(call, FORWARD)])
    return out.astype(q.dtype, copy=False), lse


def attend_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scoring: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """See the reference."""
    known = _known(scoring, q, k, v, dlse, out, lse, dout)
    if known is not None:
        dq, dk, dv = np.empty(q.shape, q.dtype), np.zeros(k.shape, q.dtype), np.zeros(v.shape, q.dtype)
        integers = known.integers.copy()
        ac.place(integers, q, k, v, out, lse)
        ac.place_gradients(integers, dout, dq, dk, dv)
        backward(0, known.panels, integers, known.numbers)
        return dq, dk, dv, None, None
    real = _real(q)
    dq, dk, dv = np.empty(q.shape, real), np.zeros(k.shape, real), np.zeros(v.shape, real)
    arrays = {ac.OUT: _in(out, real), ac.DOUT: _in(dout, real), ac.DQ: dq, ac.DK: dk, ac.DV: dv}
    arrays[ac.LSE] = _in(lse, real)[..., None]
    if dlse is not None:
        arrays[ac.DLSE] = _in(dlse, real)[..., None]
    call = ac.call_of(scoring, real, _in(q, real), _in(k, real), _in(v, real), arrays, backward=True)
    parts = [_Part(span, call, scoring, real) for span in _spans(call, BACKWARD)]
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
    decode(0, 1, 0, integers, numbers, np.zeros((0, 1, 2), dtype))
    merge(integers, numbers, np.zeros((0, 1, 2), dtype))


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


class _Known(NamedTuple):
    """What is the same for all small calls of some shapes: everything but the addresses."""

    integers: Any
    numbers: Any
    panels: int
    out: tuple[int, ...]
    decodes: bool
    partials: tuple[int, ...]
    time: float


def _known(
    scoring: Any, q: Any, k: Any, v: Any, dlse: Any = None, out: Any = None, lse: Any = None, dout: Any = None
) -> _Known | None:
    """The short way, for calls on contiguous arrays without arrays among their options that one thread computes."""
    if dlse is scoring.bias is scoring.mask is scoring.kv_lengths is scoring.sinks is scoring.dropout is None and (
        type(scoring.q_offset) is int
        and (q.dtype is FLOAT32 or q.dtype is FLOAT64)
        and q.flags.carray and k.flags.carray and v.flags.carray
        and (out is None or (out.flags.carray and lse.flags.carray and dout.flags.carray))
    ):  # fmt: skip
        known = _plan(scoring, q.shape, k.shape, v.shape, q.dtype, out is not None)
        if threads_for(known.time, 2) == 1:
            return known
    return None


@functools.lru_cache(maxsize=512)
def _plan(scoring: Any, q: Any, k: Any, v: Any, real: Any, backward: bool) -> _Known:
    query, key, value = (np.empty(shape, real) for shape in (q, k, v))
    out, lse = np.empty((*q[:3], v[3]), real), np.empty(q[:3], real)[..., None]
    arrays = {ac.OUT: out, ac.LSE: lse}
    if backward:
        arrays |= {ac.DOUT: out, ac.DQ: query, ac.DK: key, ac.DV: value}
    call = ac.call_of(scoring, real, query, key, value, arrays, backward)
    call.integers[ac.SHARED] = -1
    sizes, decodes = call.sizes, not backward and _decodes(scoring, call.sizes)
    time = _decoding_time(sizes, real) if decodes else _time(sizes, BACKWARD if backward else FORWARD)
    panels, partials = sizes.batch * sizes.kv_heads * sizes.panels, _partials(sizes, v[3], real)
    return _Known(call.integers, call.numbers, panels, out.shape, decodes, partials, time)


def _decodes(scoring: Any, sizes: ac.Sizes) -> bool:
    """Whether so few queries share a head of keys that most lanes of a panel would be empty."""
    few = sizes.heads * sizes.queries <= MOST_ROWS_TO_DECODE * sizes.kv_heads
    return few and sizes.keys >= FEWEST_KEYS_TO_DECODE and scoring.dropout is None


def _partials(sizes: ac.Sizes, wide: int, real: Any) -> tuple[int, int, int]:
    """The shape of the results of the blocks of keys."""
    width = TILES[real.itemsize * 8][0]
    rows = sizes.heads // max(sizes.kv_heads, 1) * sizes.queries
    return sizes.batch * sizes.kv_heads * -(-sizes.keys // BLOCK), rows, -(-wide // width) * width + 2


def _time(sizes: ac.Sizes, passes: float) -> float:
    """Nanoseconds of one thread, about, where no key is hidden."""
    scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys
    return 2.0 * passes * sizes.features * scores / FLOPS_PER_NANOSECOND


def _decoding_time(sizes: ac.Sizes, real: Any) -> float:
    rows = sizes.heads * sizes.queries / max(sizes.kv_heads, 1)
    read = sizes.batch * sizes.kv_heads * sizes.keys * sizes.features * real.itemsize
    return float(read * max(rows / 2, 1.0) / BYTES_PER_NANOSECOND)


def _spans(call: ac.Call, passes: float) -> list[tuple[int, int]]:
    """The panels of all heads in spans of about equal work, one for each thread that is worth it."""
    sizes = call.sizes
    panels, time = sizes.batch * sizes.kv_heads * sizes.panels, _time(sizes, passes)
    if threads_for(time, panels) == 1:
        return [(0, panels)]
    work = np.empty(panels, np.int64)
    panel_work(call.integers, call.numbers, work)
    done = np.cumsum(work)
    share = float(done[-1]) / (sizes.batch * sizes.heads * sizes.queries * sizes.keys)
    threads = threads_for(min(share, 1.0) * time, panels)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, threads) / threads) + 1
    bounds = [0, *np.minimum(cuts, panels).tolist(), panels]
    return [(first, past) for first, past in itertools.pairwise(bounds) if first < past]

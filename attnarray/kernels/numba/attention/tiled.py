"""Tiled attention on NumPy arrays: calls of the kernels, split over threads.

Reference: attention/engine.py, `attention` and `attention_backward`. Kernels read and write 16-bit arrays, and compute
in float32; only gradients of keys and values that several chunks of queries add to are rounded at the end.

Each thread takes a span of panels with about the same number of scores. Outputs and gradients of queries have the same
bits for any number of threads; other gradients are summed over the spans, and differ by the rounding of that sum.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.backward import backward
from attnarray.kernels.numba.attention.decode import BLOCK, decode, merge
from attnarray.kernels.numba.attention.forward import forward
from attnarray.kernels.numba.attention.modified import Modifiers
from attnarray.kernels.numba.attention.scores import panel_work
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.threads import AWAKE, is_small, run_parts, threads_for
from attnarray.kernels.numba.vector.conversion import converted
from attnarray.kernels.numba.vector.conversion import warmup as conversion_warmup
from attnarray.kernels.numba.vector.lanes import tile_size
from attnarray.kernels.numba.vector.pairs import available
from attnarray.kernels.numba.vector.sixteen import BFLOAT16, SIXTEEN_BITS

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
DENSE = 0x101  # NumPy's flags of arrays that are contiguous in C's order, and aligned
FORWARD, BACKWARD = 1.0, 2.5  # two products of matrices, and five

# Estimates for one thread.
FLOPS_PER_NANOSECOND = 64
BYTES_PER_NANOSECOND = 40

# Queries that share a head of keys. So few would leave most lanes of a panel empty.
MOST_ROWS_TO_DECODE, FEWEST_KEYS_TO_DECODE = 6, 64
SMALL_BIAS = 64  # scores of a head: of so few, the gradient of a bias is summed over batches and heads in float64


def attention(q: Any, k: Any, v: Any, modifiers: Any) -> tuple[Any, Any]:
    """See the reference."""
    if modifiers.tiles is not None:
        modifiers = _for_kernels(modifiers, q, k)
    plan = _cached_plan(modifiers, q, k, v)
    if plan is not None:
        out, lse = np.empty(plan.out, q.dtype), np.empty(plan.lse, plan.call.numbers.dtype)
        integers = plan.call.integers.copy()
        if plan.takes_objects:
            ac.write_five(integers, 0, id(q), id(k), id(v), id(out), id(lse))
            forward(0, plan.panels, integers, plan.call.numbers)
        else:
            ac.write_inputs(integers, q, k, v, out, lse)
            _run_forward(plan, integers)
        return out, lse
    real, stored = ra.wide(q.dtype), ra.stored(q.dtype)
    out, lse = np.empty((*q.shape[:3], v.shape[3]), stored), np.empty(q.shape[:3], real)
    arrays = {ac.OUT: out, ac.LSE: lse[..., None]}
    call = ac.make_call(modifiers, real, _in(q, stored), _in(k, stored), _in(v, stored), arrays)
    custom = Modifiers(modifiers.custom, real) if modifiers.custom else None
    captured = None if custom is None else custom.write(call.integers)
    _run_forward(_new_plan(call, modifiers, out.shape, FORWARD), call.integers)
    if custom is not None and captured is not None:
        custom.check(captured)
    return converted(out, q.dtype), lse


def attention_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, modifiers: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """See the reference."""
    dq, dk, dv, dbias, dsinks, _ = modified_attention_backward(dout, dlse, q, k, v, out, lse, modifiers)
    return dq, dk, dv, dbias, dsinks


def modified_attention_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, modifiers: Any
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """See the reference."""
    if modifiers.tiles is not None:
        modifiers = _for_kernels(modifiers, q, k)
    real, stored = ra.wide(q.dtype), ra.stored(q.dtype)
    custom = Modifiers(modifiers.custom, real) if modifiers.custom else None
    dq, dk, dv = np.empty(q.shape, stored), np.zeros(k.shape, stored), np.zeros(v.shape, stored)
    plan = _cached_plan(modifiers, q, k, v, dlse, out, lse, dout)
    if plan is not None:
        integers = plan.call.integers.copy()
        if plan.takes_objects:
            objects = id(q), id(k), id(v), id(out), id(lse), id(dout), id(dq), id(dk), id(dv)
            ac.write_nine(integers, 0, *objects)
            backward(0, plan.panels, integers, plan.call.numbers)
            return dq, dk, dv, None, None, ()
        ac.write_inputs(integers, q, k, v, out, lse)
        ac.write_gradients(integers, dout, dq, dk, dv)
        call = plan.call._replace(integers=integers)
    else:
        dout = _in(dout, stored) if dout.strides[-1] == dout.itemsize else np.ascontiguousarray(dout, stored)
        arrays = {ac.OUT: _in(out, stored), ac.DOUT: dout, ac.DQ: dq, ac.DK: dk, ac.DV: dv}
        arrays[ac.LSE] = _in(lse, real)[..., None]
        if dlse is not None:
            arrays[ac.DLSE] = _in(dlse, real)[..., None]
        call = ac.make_call(modifiers, real, _in(q, stored), _in(k, stored), _in(v, stored), arrays, backward=True)
        plan = _new_plan(call, modifiers, out.shape, BACKWARD)
    spans = _spans(plan, call.integers, threads_for(plan.time, plan.panels))
    if stored is not real and not (
        plan.in_one_chunk and all(first % max(call.sizes.panels, 1) == 0 for first, _ in spans)
    ):
        dk, dv = np.zeros(k.shape, real), np.zeros(v.shape, real)  # several chunks add to the gradients of a head
        ac.write_array(call.integers, ac.DK, dk)
        ac.write_array(call.integers, ac.DV, dv)
    dbias, dsinks, dcustom = _run_backward(spans, call, modifiers, custom, real, dk, dv)
    dq, dk, dv = (converted(converted(x, stored), like.dtype) for x, like in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, dbias, dsinks, dcustom


def _for_kernels(modifiers: Any, q: Any, k: Any) -> Any:
    """The modifiers with a boolean array in place of tiles where so few queries share keys that they are decoded."""
    few = q.shape[1] // max(k.shape[1], 1) * q.shape[2] <= MOST_ROWS_TO_DECODE
    return modifiers.without_tiles(q.shape[2]) if few else modifiers


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    integers, numbers = np.zeros(ac.BATCHES, np.int64), np.zeros(4, dtype)
    integers[[ac.SLOTS + 8 * slot + 1 for slot in (ac.Q, ac.K)]] = 1  # one head
    forward(0, 0, integers, numbers)
    backward(0, 0, integers, numbers)
    panel_work(integers, numbers, 0, 0)
    decode(0, 1, 0, integers, numbers, 0)
    merge(integers, numbers, 0)
    conversion_warmup(dtype)
    run_parts(int, [(0,), (0,)])  # starts the threads, too


class _Part:
    """A span of panels of the backward pass, with its own sums of gradients that spans share."""

    def __init__(
        self, span: tuple[int, int], call: ac.Call, modifiers: Any, custom: Modifiers | None, real: Any, dbias: Any,
        bias_dtype: Any,
    ) -> None:  # fmt: skip
        self.span = span
        self.integers = call.integers.copy()
        self.dbias, self.dsinks = dbias, None
        sizes = call.sizes
        self.head = span[0] // sizes.panels if span[0] and span[0] % sizes.panels else -1
        self.integers[ac.SHARED] = self.head
        if self.head >= 0:
            depth, wide = (int(call.integers[ac.SLOTS + 8 * slot + 3]) for slot in (ac.K, ac.V))
            self.dk, self.dv = (np.zeros((1, 1, sizes.keys, columns), real) for columns in (depth, wide))
            ac.write_array(self.integers, ac.SHARED_DK, self.dk)
            ac.write_array(self.integers, ac.SHARED_DV, self.dv)
        if modifiers.bias is not None:
            if dbias is None:
                self.dbias = np.zeros(modifiers.bias.shape, bias_dtype)
            ac.write_array(self.integers, ac.DBIAS, self.dbias)
        if modifiers.sinks is not None:
            self.dsinks = np.zeros(modifiers.sinks.shape)
            ac.write_array(self.integers, ac.DSINKS, self.dsinks[None, :, None, None])
        if custom is not None:
            self.dcustom = custom.empty_gradients()
            self.captured = custom.write(self.integers, self.dcustom)

    def add_shared(self, dk: Any, dv: Any) -> None:
        if self.head >= 0:
            b, g = divmod(self.head, dk.shape[1])
            dk[b, g] += self.dk[0, 0]
            dv[b, g] += self.dv[0, 0]


def _total(parts: list[Any], like: Any) -> Any:
    for part in parts[1:]:
        parts[0] += part
    return converted(parts[0], like.dtype)


def _in(x: Any, real: Any) -> Any:
    """`x` in that dtype, aligned and in native byte order; copied only if needed."""
    return np.require(x, real, "A")


class _Plan(NamedTuple):
    """The part of a call that depends on shapes and options alone: all but the addresses in `call.integers`."""

    call: ac.Call
    out: tuple[int, ...]
    lse: tuple[int, ...]
    decodes: bool
    partials: tuple[int, int, int]  # the shape of the results of blocks of keys
    panels: int
    in_one_chunk: bool  # whether all queries that share a head of keys are
    takes_objects: bool  # whether one thread runs it, for which compiled code finds the data of arrays
    time: float  # estimated nanoseconds of one thread if no key is masked
    spans: dict[int, list[tuple[int, int]]]  # by the number of threads, as far as they were needed


def _cached_plan(
    modifiers: Any, q: Any, k: Any, v: Any, dlse: Any = None, out: Any = None, lse: Any = None, dout: Any = None
) -> _Plan | None:
    """The cached plan for contiguous arrays without arrays among the options, else None."""
    m = modifiers
    if m.custom or not (dlse is m.bias is m.mask is m.tiles is m.kv_lengths is m.sinks is m.dropout is None):
        return None
    if type(m.q_offset) is not int:
        return None
    if q.dtype is not FLOAT32 and q.dtype is not FLOAT64 and q.dtype is not ra.stored(q.dtype):
        return None
    for x in (q, k, v) if out is None else (q, k, v, out, dout, lse):
        # Outputs of a forward are read-only.
        if (x.dtype is not q.dtype and x is not lse) or x.flags.num & DENSE != DENSE:
            return None
    if lse is not None and lse.dtype is not q.dtype and lse.dtype is not ra.wide(q.dtype):
        return None
    return _plan(modifiers, q.shape, k.shape, v.shape, q.dtype, out is not None)


@functools.lru_cache(maxsize=512)
def _plan(modifiers: Any, q: Any, k: Any, v: Any, stored: Any, backward: bool) -> _Plan:
    query, key, value = (np.empty(shape, stored) for shape in (q, k, v))
    real = ra.wide(stored)
    out, lse = np.empty((*q[:3], v[3]), stored), np.empty(q[:3], real)[..., None]
    arrays = {ac.OUT: out, ac.LSE: lse}
    if backward:
        arrays |= {ac.DOUT: out, ac.DQ: query, ac.DK: key, ac.DV: value}
    call = ac.make_call(modifiers, real, query, key, value, arrays, backward)
    plan = _new_plan(call._replace(alive=()), modifiers, out.shape, BACKWARD if backward else FORWARD)
    is_serial = is_small(plan.time, plan.panels) and not plan.decodes
    if is_serial and (not backward or plan.in_one_chunk or stored is real):
        ac.count_objects(call.integers, 9 if backward else 5)
        return plan._replace(takes_objects=True)
    return plan


def _new_plan(call: ac.Call, modifiers: Any, out: tuple[int, ...], passes: float) -> _Plan:
    batch, heads, kv_heads, queries, keys, features, panels = call.sizes
    real = call.numbers.dtype
    rows, width = heads // max(kv_heads, 1) * queries, tile_size(real.itemsize * 8)[0]
    few = rows <= MOST_ROWS_TO_DECODE and keys >= FEWEST_KEYS_TO_DECODE and not modifiers.custom
    decodes = passes == FORWARD and few and modifiers.dropout is None
    call.integers[ac.DECODED] = (
        few or rows == 1
    ) and not modifiers.custom  # so that the backward has the same scores as the forward
    call.integers[ac.PAIRS] = not call.integers[ac.DECODED] and _in_pairs(call.integers)
    partials = batch * kv_heads * -(-keys // BLOCK), rows, -(-out[3] // width) * width + 2
    if decodes:
        size = real.itemsize if call.integers[ac.STORAGE + ac.K] == 0 else 2
        read = batch * kv_heads * keys * features * size
        time = read * max(rows / 2, 1.0) / BYTES_PER_NANOSECOND
    else:
        speed = FLOPS_PER_NANOSECOND * (2 if call.integers[ac.PAIRS] else 1)
        time = 2.0 * passes * features * batch * heads * queries * keys / speed
    in_one_chunk = panels <= call.integers[ac.PANELS_PER_CHUNK]
    return _Plan(call, out, out[:3], decodes, partials, batch * kv_heads * panels, in_one_chunk, False, time, {})


def _in_pairs(integers: Any) -> bool:
    """Whether products are those of bfloat16 numbers; queries, keys and values alone decide, forward and backward."""
    sizes = [integers[ac.SLOTS + 8 * slot : ac.SLOTS + 8 * slot + 8] for slot in (ac.Q, ac.K, ac.V)]
    pairs = all(size[3] % 2 == 0 and size[7] == SIXTEEN_BITS for size in sizes)
    return pairs and integers[ac.STORAGE + ac.K] == BFLOAT16 and available()


def _run_forward(plan: _Plan, integers: Any) -> None:
    numbers = plan.call.numbers
    if plan.decodes:
        partials = np.empty(plan.partials, numbers.dtype)
        units = plan.partials[0]
        threads = threads_for(AWAKE * plan.time, units)
        parts = [(n, threads, units, integers, numbers, address(partials)) for n in range(threads)]
        run_parts(decode, parts, plan.time)
        merge(integers, numbers, address(partials))
    elif (threads := threads_for(plan.time, plan.panels)) == 1:
        forward(0, plan.panels, integers, numbers)
    else:
        run_parts(forward, [(*span, integers, numbers) for span in _spans(plan, integers, threads)])


def _run_backward(
    spans: list[tuple[int, int]], call: ac.Call, modifiers: Any, custom: Modifiers | None, real: Any, dk: Any, dv: Any
) -> tuple[Any, Any, Any]:
    """Run all spans; return the gradients of bias, sinks and the modifiers of the caller."""
    bias, queries, keys = modifiers.bias, call.sizes.queries, call.sizes.keys
    if len(spans) == 1 and bias is None and modifiers.sinks is None and custom is None:
        backward(*spans[0], call.integers, call.numbers)
        return None, None, ()
    dbias, bias_dtype = None, real
    if bias is not None and (bias.shape[2:] != (queries, keys) or queries * keys <= SMALL_BIAS):
        bias_dtype, call.integers[ac.SUMS_BIAS] = np.float64, 1
    if bias is not None and bias.shape[:3] == (call.sizes.batch, call.sizes.heads, queries):
        dbias = np.zeros(bias.shape, bias_dtype)  # a query has its own entries
    parts = [_Part(span, call, modifiers, custom, real, dbias, bias_dtype) for span in spans]
    run_parts(backward, [(*part.span, part.integers, call.numbers) for part in parts])
    for part in parts:
        part.add_shared(dk, dv)
    if bias is not None:
        dbias = _total([dbias] if dbias is not None else [part.dbias for part in parts], bias)
    dsinks = None if modifiers.sinks is None else _total([part.dsinks for part in parts], modifiers.sinks)
    if custom is None:
        return dbias, dsinks, ()
    for part in parts:
        custom.check(part.captured)
    return dbias, dsinks, custom.total([part.dcustom for part in parts])


def _spans(plan: _Plan, integers: Any, threads: int) -> list[tuple[int, int]]:
    """The panels of all heads in spans of about equal work, one for each thread that pays off."""
    if threads == 1:
        return [(0, plan.panels)]
    if threads not in plan.spans:
        plan.spans[threads] = _equal_spans(plan, integers)
    return plan.spans[threads]


def _equal_spans(plan: _Plan, integers: Any) -> list[tuple[int, int]]:
    panels, sizes = plan.panels, plan.call.sizes
    work = np.empty(panels, np.int64)
    panel_work(integers, plan.call.numbers, panels, address(work))
    done = np.cumsum(work)
    share = float(done[-1]) / (sizes.batch * sizes.heads * sizes.queries * sizes.keys)
    threads = threads_for(min(share, 1.0) * plan.time, panels)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, threads) / threads) + 1
    bounds = [0, *np.minimum(cuts, panels).tolist(), panels]
    return [(first, past) for first, past in itertools.pairwise(bounds) if first < past]

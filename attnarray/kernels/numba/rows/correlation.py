"""Correlations and their gradients: the micro-kernel on packed tiles, without an array of windows.

Reference: ops/correlate.py. Parallel over groups of M steps, and for the gradient of the weight over groups of M
outputs for each tap; so no result depends on how many threads there are. Scratch per thread: packed rows, and one tile.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.rows.panels import pack_panels
from attnarray.kernels.numba.rows.panels import warmup as panels_warmup
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import Numbers, empty_call, pack, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.threads import run_parts, threads_for
from attnarray.kernels.numba.vector.basics import copy
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, tile_rows, tile_size
from attnarray.kernels.numba.vector.memory import ahead, scratch
from attnarray.kernels.numba.vector.packing import copy_tile
from attnarray.kernels.numba.vector.product import LONGEST, Operand, packed_product, tile_product
from attnarray.kernels.numba.vector.rows import Row, row_pass
from attnarray.kernels.numba.vector.transpose import interleave

FLOPS = 64.0  # of one thread in a nanosecond
SMALL = 2**18  # nanoseconds: so short a product is left to the array library, whose call costs less
FEW = 64  # steps, for which a weight is not worth packing
HALF = 2  # the share of the lanes of a tile that inputs and outputs must fill
PACKED = 2**15  # numbers of rows that are packed together, which stay in the cache with the results


class Correlation(NamedTuple):
    """A call; rows and panels are padded to whole tiles where they are packed."""

    inputs: int  # C
    outputs: int  # O
    width: int  # K
    dilation: int
    steps: int  # T
    length: int  # S
    sequences: int  # N
    together: int  # groups of M rows that are packed together
    x: Numbers  # (N, S, C)
    y: Numbers  # (N, T, O): the result, or its cotangent
    weight: Numbers  # (O / W, K C, W), or the gradient (K, O, C) in whole tiles
    memory: Numbers = None  # scratch
    bias: Numbers = None  # (O,)


def correlate(x: Any, weight: Any, bias: Any, dilation: int) -> Any:
    """See the reference."""
    outputs, C, K = weight.shape
    call, work, real = _call(x, None, outputs, K, dilation)
    width, tile = tile_size(real.itemsize * 8)
    panels = pack_panels(np.transpose(weight, (2, 1, 0)).reshape(K * C, outputs), real)
    out = np.empty((len(x), call.steps, outputs), real)
    together = max(1, PACKED // (K * C * tile))
    terms = np.zeros(outputs, real) if bias is None else np.ascontiguousarray(ra.aligned(bias, real))
    call = call._replace(y=out, weight=panels, together=together, bias=terms)
    _run(multiply_groups, call, len(x) * -(-call.steps // tile), work, tile * (together * K * C + width), real)
    return out


def correlate_weight_gradient(dy: Any, x: Any, width: int, dilation: int) -> Any:
    """See the reference."""
    outputs, C = dy.shape[2], x.shape[2]
    call, work, real = _call(x, dy, outputs, width, dilation)
    lanes, tile = tile_size(real.itemsize * 8)
    groups, panels, rows = -(-outputs // tile), -(-C // lanes), min(LONGEST, call.steps) + call.length - call.steps
    total = np.zeros((width, groups * tile, panels * lanes), real)
    room = rows * panels * lanes + LONGEST * tile
    _run(add_products, call._replace(weight=total), groups * width, work, room, real)
    return total[:, :outputs, :C].transpose(1, 2, 0)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    panels_warmup(dtype)
    multiply_groups(0, 0, *pack(empty_call(Correlation, together=1), np.dtype(dtype)))
    add_products(0, 0, *pack(empty_call(Correlation, width=1), np.dtype(dtype)))


def _call(x: Any, y: Any, outputs: int, width: int, dilation: int) -> tuple[Correlation, float, Any]:
    """The call, the nanoseconds that it takes one thread, and its dtype."""
    real, (N, S, C) = ra.compute_dtype(x), x.shape
    if real != x.dtype:
        raise Declined(f"dtype {x.dtype}: float32 and float64 only")
    steps = S - (width - 1) * dilation
    work = ra.nanoseconds(2 * N * steps * C * outputs * width, 1 / FLOPS, real)
    if HALF * min(C, outputs) < tile_size(real.itemsize * 8)[0]:
        raise Declined(f"{C} inputs and {outputs} outputs: too few for the lanes of a tile")
    if work < SMALL or N * steps < FEW:
        raise Declined(f"{N * steps} rows of {C} inputs and {outputs} outputs: a small product")
    rows, given = (None if array is None else np.ascontiguousarray(ra.aligned(array, real)) for array in (x, y))
    return Correlation(C, outputs, width, dilation, steps, S, N, 0, rows, given, None), work, real


def _run(kernel: Any, call: Correlation, units: int, work: float, room: int, real: Any) -> None:
    threads = threads_for(work, units)
    memory = np.empty((threads, room + 64 // real.itemsize), real)
    calls = [pack(call._replace(memory=memory[n]), real) for n in range(threads)]
    bounds = itertools.pairwise([units * n // threads for n in range(threads + 1)])
    run_parts(kernel, [(*span, *some) for span, some in zip(bounds, calls, strict=True)])


def pack_transposed(count: int, rows: Any, stride: int, filled: int, packed: Any) -> None:
    """packed[j, m] = rows[m, j] for j < `count` and the `filled` rows, which lie `stride` elements apart."""
    tile, whole = tile_rows(packed), count // (lanes(packed) // 2) * (lanes(packed) // 2)
    interleave(whole, rows, stride, filled, packed)
    for j in range(whole, count):
        for m in range(tile):
            packed[j * tile + m] = rows[min(m, filled - 1) * stride + j]


def pack_steps(steps: int, rows: Any, stride: int, filled: int, packed: Any) -> None:
    """packed[t, m] = rows[t, m] for the `filled` numbers m, else 0."""
    tile = tile_rows(packed)
    for t in range(steps):
        if filled == tile:
            copy_tile(ahead(rows, t * stride), ahead(packed, t * tile))
        else:
            for m in range(tile):
                packed[t * tile + m] = rows[t * stride + m] if m < filled else 0


@row_pass(vectors=1)
def add(x: Row, y: Row, out: Row) -> dict[str, Lanes]:
    return {"out": x + y}


def multiply_groups(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The results of the groups [first, past) of M steps, those of each sequence one after the other."""
    c = unpack(Correlation, integers, numbers)
    width, tile, depth = lanes(c.x), tile_rows(c.x), c.width * c.inputs
    groups, memory = (c.steps + tile - 1) // tile, scratch(c.memory)
    total = ahead(memory, c.together * depth * tile)
    for start in range(first, past, c.together):
        stop = min(start + c.together, past)
        for g in range(start, stop):
            n, t = g // groups, g % groups * tile
            for k in range(c.width):
                row = ahead(c.x, (n * c.length + t + k * c.dilation) * c.inputs)
                packed = ahead(memory, ((g - start) * depth + k * c.inputs) * tile)
                pack_transposed(c.inputs, row, c.inputs, min(tile, c.steps - t), packed)
        for column in range(0, c.outputs, width):
            for g in range(start, stop):
                n, t = g // groups, g % groups * tile
                filled, packed = min(tile, c.steps - t), ahead(memory, (g - start) * depth * tile)
                out = ahead(c.y, (n * c.steps + t) * c.outputs + column)
                packed_product(filled, depth, 0, packed, ahead(c.weight, column * depth), total, False)
                bias = ahead(c.bias, column)
                for m in range(filled):
                    add(min(width, c.outputs - column), ahead(total, m * width), bias, ahead(out, m * c.outputs))


def add_products(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The gradients [first, past) of the weight, each of M outputs and one tap."""
    c = unpack(Correlation, integers, numbers)
    width, tile, panels = lanes(c.x), tile_rows(c.x), (c.inputs + lanes(c.x) - 1) // lanes(c.x)
    memory = scratch(c.memory)
    for block in range(c.sequences * ((c.steps + LONGEST - 1) // LONGEST)):
        n, t = block % c.sequences, block // c.sequences * LONGEST
        steps = min(LONGEST, c.steps - t)
        rows = steps + c.length - c.steps
        group, x = ahead(memory, panels * rows * width), ahead(c.x, (n * c.length + t) * c.inputs)
        for p in range(panels):
            for r in range(rows):
                source, packed = ahead(x, r * c.inputs + p * width), ahead(memory, (p * rows + r) * width)
                copy(min(width, c.inputs - p * width), source, packed)
        for unit in range(first, past):
            output, k = unit // c.width * tile, unit % c.width
            filled = min(tile, c.outputs - output)
            if unit == first or k == 0:
                pack_steps(steps, ahead(c.y, (n * c.steps + t) * c.outputs + output), c.outputs, filled, group)
            total = ahead(c.weight, (k * ((c.outputs + tile - 1) // tile) * tile + output) * panels * width)
            for p in range(panels):
                taps = ahead(memory, (p * rows + k * c.dilation) * width)
                here = Operand(ahead(total, p * width), panels * width, 0)
                tile_product(filled, steps, Operand(group, 1, tile), Operand(taps, 0, width), here, True)


pack_transposed, pack_steps = jit(pack_transposed, pack_steps, inner=True)
multiply_groups, add_products = jit(multiply_groups, add_products, fastmath=EXACT)

"""Attention on tensor cores. Reference: attention/engine.py; sources: attention_*.cu.

Numbers of 16 bits are multiplied as they are and summed in float32; weights are rounded to 16 bits for their product
with values. A float32 is split into two numbers that tensor cores can multiply.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda.attention_problem import (
    DOUT,
    PACKED,
    PLAIN,
    Layout,
    Problem,
    compile_constants,
    make_problem,
    pad_rows,
)
from attnarray.kernels.cuda.grid import BLOCK, WARP, Grid, ceil_div
from attnarray.kernels.cuda.halves import MAXIMA, NONE, SPLIT, split_halves
from attnarray.kernels.cuda.loader import (
    WARPGROUP,
    Kernel,
    compute_capability,
    cupy,
    empty,
    launch,
    multiprocessors,
    shared_bytes,
)
from attnarray.kernels.cuda.loader import warmup as load

OPTIONS = "ppppps"  # bias, mask, keep, offsets, lengths, Problem
PARAMETERS = {"forward": "pppppppp", "queries": "ppppppp", "keys": "pppppppp", "bias": "ppppppp" + "iiii"}
HALVES = "ppppp"  # of q, k, v and dout, and their units
DELTA = Kernel("attention_rows.cu", "attention_delta", "piii" + "ppppp" + "iiiir")
MERGE = Kernel("attention_rows.cu", "attention_merge", "ppppp" + "iiiii")
SINKS = Kernel("attention_rows.cu", "attention_sinks", "pppp" + "iii")
FLOAT32 = np.dtype(np.float32)


class Machine(NamedTuple):
    """The properties of a GPU on which the grid of a call depends."""

    capability: int
    shared: int
    processors: int
    has_wgmma: bool


class Chosen(NamedTuple):
    """The launch of a call: a kernel, or one for each gradient."""

    kernels: tuple[Kernel, ...]
    grid: Grid
    parts: int
    uses_wgmma: bool


def attention(q: Any, k: Any, v: Any, modifiers: Any) -> tuple[Any, Any]:
    """See the reference."""
    how, problem = _stored(q), make_problem(q, k, v, modifiers)
    batch, heads, _, queries, _, _, width = problem.layout.sizes
    out, lse = empty((batch, heads, queries, width), q.dtype), empty((batch, heads, queries), FLOAT32)
    if not lse.size:
        return _cut(out, v.shape[3]), lse
    chosen = _chosen("forward", problem.layout, how.name, _machine(q.data.device_id))
    parts = chosen.parts
    sinks = None if modifiers.sinks is None else ga.contiguous_like(modifiers.sinks, q)
    part_out = part_lse = None
    if parts > 1:
        part_out, part_lse = empty((parts, *out.shape), FLOAT32), empty((parts, *lse.shape), FLOAT32)
    results = out, lse, part_out, part_lse, sinks
    _launch(chosen, how, problem, _halves(how, problem, chosen), problem.q, problem.k, problem.v, *results)
    if parts > 1:
        rows = lse.size
        sizes = parts, rows, heads, queries, width
        launch(MERGE, how.name, _plan_warps(rows), part_out, part_lse, sinks, out, lse, *sizes)
    return _cut(out, v.shape[3]), lse


def attention_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, modifiers: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """See the reference."""
    how, problem = _stored(q), make_problem(q, k, v, modifiers, dout)
    layout, machine = problem.layout, _machine(q.data.device_id)
    batch, heads, kv_heads, queries, keys, dim, width = layout.sizes
    dlse = None if dlse is None else _float32(dlse)
    lse, delta, shift = _float32(lse), empty(lse.shape, FLOAT32), empty(lse.shape, FLOAT32)
    rows = delta.size
    out = pad_rows(ga.contiguous_like(out, q), width)
    dout_layout = problem.dout, *layout.strides[DOUT]
    sizes = rows, heads, queries, width, layout.unit
    launch(DELTA, how.name, _plan_warps(rows), *dout_layout, out, lse, dlse, delta, shift, *sizes)

    dq, dk = empty(problem.q.shape, q.dtype), empty((batch, kv_heads, keys, dim), k.dtype)
    dv = empty((batch, kv_heads, keys, width), v.dtype)
    given = problem.dout, problem.q, problem.k, problem.v, shift, delta
    queries_launch, keys_launch = (_chosen(kind, layout, how.name, machine) for kind in ("queries", "keys"))
    halves = _halves(how, problem, queries_launch, keys_launch)
    if rows:
        _launch(queries_launch, how, problem, halves, *given, dq)
    if keys and layout.pairs:
        _launch(keys_launch, how, problem, halves, *given, dk, dv)
    dbias = None if modifiers.bias is None else _bias_gradient(problem, how, machine, given, modifiers.bias)
    dsinks = None if modifiers.sinks is None else _sink_gradient(how, lse, delta, modifiers.sinks, q)
    dims = q.shape[3], q.shape[3], v.shape[3]
    return (*(_cut(x, size) for x, size in zip((dq, dk, dv), dims, strict=True)), dbias, dsinks)


def warmup(dtype: str) -> None:
    """Compile plain attention with head dims 64 and 128, forward and backward, for one dtype."""
    if dtype == "float64":
        return
    device, itemsize = int(cupy().cuda.runtime.getDevice()), np.dtype(dtype).itemsize
    larger, most = compute_capability(device) in plan.LARGE, shared_bytes(device)
    has_wgmma = plan.has_wgmma(compute_capability(device))
    for dim, kind in itertools.product((64, 128), ("forward", "queries", "keys")):
        if has_wgmma:
            tiling, _ = plan.wgmma_tiling(kind, dim, dim, itemsize, BLOCK) or (None, 0)
        else:
            tiling, _ = plan.choose_tiling(kind, dim, dim, itemsize, most, BLOCK, larger)
        name = f"{WARPGROUP if has_wgmma else 'attention'}_{kind}"
        many = plan.gradients_of_keys(dim, dim, has_wgmma and itemsize == 4) if kind == "keys" else ({},)
        for more in many:
            load((_kernel(name, compile_constants((dim, dim), tiling, PLAIN, **more)),), dtype)
    load((DELTA, MERGE), dtype)
    if has_wgmma and itemsize == 4:
        load((MAXIMA, SPLIT), dtype)


def _stored(q: Any) -> ga.Stored:
    how = ga.stored(q)
    if how.name == "float64":
        raise Declined("dtype float64: the matrix units that are used here have none")
    return how


def _machine(device: int) -> Machine:
    capability = compute_capability(device)
    return Machine(capability, shared_bytes(device), multiprocessors(device), plan.has_wgmma(capability))


@functools.lru_cache(maxsize=1024)
def _chosen(kind: str, layout: Layout, dtype: str, machine: Machine) -> Chosen:
    keys = layout.sizes[4]
    rows = keys if kind == "keys" else layout.group_rows
    name, tiling, shared = _tiling(kind, layout, dtype, machine, rows)
    uses_wgmma = name.startswith(WARPGROUP)
    grid, parts = plan.plan_tiles(tiling, shared, layout.pairs, rows), 1
    wanted: tuple[dict[str, int], ...] = ({},)
    if kind == "keys":
        wanted = plan.gradients_of_keys(*layout.dims, uses_wgmma and dtype == "float32")
    if kind == "forward":
        parts = plan.count_parts(grid, ceil_div(keys, tiling.across), machine.processors, machine.shared)
        grid = grid._replace(blocks=(*grid.blocks[:2], parts))
    kernels = (_kernel(name, compile_constants(layout.dims, tiling, layout.switches, **more)) for more in wanted)
    return Chosen(tuple(kernels), grid, parts, uses_wgmma)


def _tiling(kind: str, layout: Layout, dtype: str, machine: Machine, rows: int) -> tuple[str, plan.Tiling, int]:
    """The kernel, its tiling and its shared memory; a block has some of the `rows`."""
    itemsize = 4 if dtype == "float32" else 2
    if layout.is_plain and machine.has_wgmma:
        found = plan.wgmma_tiling(kind, *layout.dims, itemsize, rows)
        if found:
            return f"{WARPGROUP}_{kind}", *found
    larger = layout.is_light and machine.capability in plan.LARGE
    found = plan.choose_tiling(kind, *layout.dims, itemsize, machine.shared, layout.group_rows, larger, layout.in_tiles)
    return f"attention_{kind}", *found


def _halves(how: ga.Stored, problem: Problem, *chosen: Chosen) -> tuple[Any, ...]:
    """The halves of float32 arrays, if one of these kernels uses wgmma."""
    if how.name != "float32" or not any(one.uses_wgmma for one in chosen):
        return NONE
    layout = problem.layout
    return split_halves((problem.q, problem.k, problem.v, problem.dout), layout.strides, layout.dims, layout.sizes[2])


def _launch(chosen: Chosen, how: ga.Stored, problem: Problem, halves: tuple[Any, ...], *arguments: Any) -> None:
    more = halves if chosen.uses_wgmma else ()
    for kernel in chosen.kernels:
        launch(kernel, how.name, chosen.grid, *arguments, *more, *problem.options, problem.packed(chosen.parts))


@functools.lru_cache(maxsize=256)
def _kernel(name: str, constants: tuple[str, ...]) -> Kernel:
    family, _, kind = name.partition("_")
    parameters = PARAMETERS[kind] + HALVES * (family == WARPGROUP) + OPTIONS
    return Kernel(f"{name}.cu", name, parameters, PACKED.size, constants)


def _bias_gradient(problem: Problem, how: ga.Stored, machine: Machine, given: tuple[Any, ...], bias: Any) -> Any:
    dbias, layout = empty(bias.shape, given[1].dtype), problem.layout
    if not dbias.size:
        return dbias
    name, tiling, shared = _tiling("bias", layout, how.name, machine, layout.group_rows)
    kernel = _kernel(name, compile_constants(layout.dims, tiling, layout.switches))
    grid = plan.plan_bias(tiling, shared, bias.shape)
    launch(kernel, how.name, grid, *given, dbias, *bias.shape, *problem.options, problem.packed())
    return dbias if dbias.dtype == bias.dtype else dbias.astype(bias.dtype)


def _sink_gradient(how: ga.Stored, lse: Any, delta: Any, sinks: Any, q: Any) -> Any:
    given, dsinks = ga.contiguous_like(sinks, q), empty(sinks.shape, q.dtype)
    batch, heads, queries = lse.shape
    grid = Grid((heads, 1, 1), (BLOCK, 1, 1), 4 * BLOCK // WARP)
    launch(SINKS, how.name, grid, lse, delta, given, dsinks, batch, heads, queries)
    return dsinks if dsinks.dtype == sinks.dtype else dsinks.astype(sinks.dtype)


def _plan_warps(rows: int) -> Grid:
    return Grid((ceil_div(rows, BLOCK // WARP), 1, 1), (BLOCK, 1, 1))


def _float32(x: Any) -> Any:
    return ga.contiguous(x if x.dtype == FLOAT32 else x.astype(FLOAT32))


def _cut(x: Any, width: int) -> Any:
    """Without the padding of its rows."""
    return x if x.shape[-1] == width else ga.contiguous(x[..., :width])

"""Attention on tensor cores. Reference: attention/core.py; sources: attention_*.cu.

Numbers of 16 bits are multiplied as they are and summed in float32; weights are rounded to 16 bits for their product
with values. A float32 is split into two numbers that the units can take.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda.attention_problem import (
    DOUT,
    PACKED,
    PLAIN,
    Problem,
    constants_of,
    filled_up,
    problem_of,
)
from attnarray.kernels.cuda.grid import BLOCK, WARP, Grid, ceil_div
from attnarray.kernels.cuda.halves import LARGEST, NONE, SPLIT, halves_of
from attnarray.kernels.cuda.loader import Kernel, capability_of, cupy, empty, launch, multiprocessors, shared_bytes
from attnarray.kernels.cuda.loader import warmup as load

OPTIONS = "ppppps"  # bias, mask, keep, offsets, lengths, Problem
PARAMETERS = {"forward": "pppppppp", "queries": "ppppppp", "keys": "pppppppp", "bias": "ppppppp" + "iiii"}
HALVES = "ppppp"  # of q, k, v and dout, and their units
DELTA = Kernel("attention_rows.cu", "attention_delta", "piii" + "ppppp" + "iiii")
MERGE = Kernel("attention_rows.cu", "attention_merge", "ppppp" + "iiiii")
SINKS = Kernel("attention_rows.cu", "attention_sinks", "pppp" + "iii")
FLOAT32 = np.dtype(np.float32)
WARPGROUP = "warpgroup"  # the family of kernels whose names start so; others are of the family "attention"


def attend(q: Any, k: Any, v: Any, scoring: Any) -> tuple[Any, Any]:
    """See the reference."""
    how, problem = _stored(q), problem_of(q, k, v, scoring)
    batch, heads, _, queries, keys, _, width = problem.sizes
    out, lse = empty((batch, heads, queries, width), q.dtype), empty((batch, heads, queries), FLOAT32)
    if not lse.size:
        return _cut(out, v.shape[3]), lse
    device = q.data.device_id
    name, tiling, shared = _tiling("forward", problem, how, device, problem.group_rows)
    grid = plan.plan_rows_of_queries(tiling, shared, problem.pairs, problem.group_rows)
    parts = plan.parts_of(grid, ceil_div(keys, tiling.across), multiprocessors(device), shared_bytes(device))
    sinks = None if scoring.sinks is None else ga.beside(scoring.sinks, q)
    part_out = part_lse = None
    if parts > 1:
        part_out, part_lse = empty((parts, *out.shape), FLOAT32), empty((parts, *lse.shape), FLOAT32)
        grid = grid._replace(blocks=(*grid.blocks[:2], parts))
    arrays = (
        problem.q,
        problem.k,
        problem.v,
        out,
        lse,
        part_out,
        part_lse,
        sinks,
        *_for(name, _halves(problem, how, name)),
    )
    _launch(name, problem, tiling, grid, how, *arrays, parts=parts)
    if parts > 1:
        rows = lse.size
        sizes = parts, rows, heads, queries, width
        launch(MERGE, how.name, _plan_warps(rows), part_out, part_lse, sinks, out, lse, *sizes)
    return _cut(out, v.shape[3]), lse


def attend_backward(
    dout: Any, dlse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scoring: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """See the reference."""
    how, problem = _stored(q), problem_of(q, k, v, scoring, dout)
    batch, heads, kv_heads, queries, keys, dim, width = problem.sizes
    device, dlse = q.data.device_id, None if dlse is None else _float32(dlse)
    lse, delta, shift = _float32(lse), empty(lse.shape, FLOAT32), empty(lse.shape, FLOAT32)
    rows = delta.size
    out = filled_up(ga.beside(out, q), width)
    sizes = rows, heads, queries, width
    launch(
        DELTA, how.name, _plan_warps(rows), problem.dout, *problem.strides[DOUT], out, lse, dlse, delta, shift, *sizes
    )

    dq, dk = empty(problem.q.shape, q.dtype), empty((batch, kv_heads, keys, dim), k.dtype)
    dv = empty((batch, kv_heads, keys, width), v.dtype)
    given = problem.dout, problem.q, problem.k, problem.v, shift, delta
    chosen = {
        "queries": _tiling("queries", problem, how, device, problem.group_rows),
        "keys": _tiling("keys", problem, how, device, keys),
    }
    halves = _halves(problem, how, *(name for name, *_ in chosen.values()))
    if rows:
        name, tiling, shared = chosen["queries"]
        grid = plan.plan_rows_of_queries(tiling, shared, problem.pairs, problem.group_rows)
        _launch(name, problem, tiling, grid, how, *given, dq, *_for(name, halves))
    if keys and problem.pairs:
        name, tiling, shared = chosen["keys"]
        grid = plan.plan_rows_of_keys(tiling, shared, problem.pairs, keys)
        has_halves = how.name == "float32" and name.startswith(WARPGROUP)
        for which in plan.gradients_of_keys(*problem.dims, has_halves):
            _launch(name, problem, tiling, grid, how, *given, dk, dv, *_for(name, halves), **which)
    dbias = None if scoring.bias is None else _bias_gradient(problem, how, device, given, scoring.bias)
    dsinks = None if scoring.sinks is None else _sink_gradient(how, lse, delta, scoring.sinks, q)
    dims = q.shape[3], q.shape[3], v.shape[3]
    return (*(_cut(x, size) for x, size in zip((dq, dk, dv), dims, strict=True)), dbias, dsinks)


def warmup(dtype: str) -> None:
    """Compile what plain attention of 64 and of 128 numbers a head needs, forward and backward, for one dtype."""
    if dtype == "float64":
        return
    device, itemsize = int(cupy().cuda.runtime.getDevice()), np.dtype(dtype).itemsize
    larger, most = capability_of(device) in plan.LARGE, shared_bytes(device)
    has_warpgroups = plan.has_warpgroups(capability_of(device))
    for dim, kind in itertools.product((64, 128), ("forward", "queries", "keys")):
        if has_warpgroups:
            tiling, _ = plan.warpgroup_tiling(kind, dim, dim, itemsize, BLOCK) or (None, 0)
        else:
            tiling, _ = plan.tiling_of(kind, dim, dim, itemsize, most, BLOCK, larger)
        name = f"{WARPGROUP if has_warpgroups else 'attention'}_{kind}"
        many = plan.gradients_of_keys(dim, dim, has_warpgroups and itemsize == 4) if kind == "keys" else ({},)
        for more in many:
            load((_kernel(name, constants_of((dim, dim), tiling, PLAIN, **more)),), dtype)
    load((DELTA, MERGE), dtype)
    if has_warpgroups and itemsize == 4:
        load((LARGEST, SPLIT), dtype)


def _stored(q: Any) -> ga.Stored:
    how = ga.stored(q)
    if how.name == "float64":
        raise Declined("dtype float64: the matrix units that are used here have none")
    return how


def _tiling(kind: str, problem: Problem, how: ga.Stored, device: int, rows: int) -> tuple[str, plan.Tiling, int]:
    """The kernel, its tiling and its shared memory; a block has some of the `rows`."""
    itemsize, capability = 4 if how.name == "float32" else 2, capability_of(device)
    if problem.is_plain and plan.has_warpgroups(capability):
        found = plan.warpgroup_tiling(kind, *problem.dims, itemsize, rows)
        if found:
            return f"{WARPGROUP}_{kind}", *found
    larger = problem.is_plain and capability in plan.LARGE
    found = plan.tiling_of(kind, *problem.dims, itemsize, shared_bytes(device), problem.group_rows, larger)
    return f"attention_{kind}", *found


def _halves(problem: Problem, how: ga.Stored, *names: str) -> tuple[Any, ...]:
    """What kernels by warpgroups take of arrays of float32, if one of these is one."""
    if how.name != "float32" or not any(name.startswith(WARPGROUP) for name in names):
        return NONE
    arrays = problem.q, problem.k, problem.v, problem.dout
    return halves_of(arrays, problem.strides, problem.dims, problem.sizes[2])


def _for(name: str, halves: tuple[Any, ...]) -> tuple[Any, ...]:
    return halves if name.startswith(WARPGROUP) else ()


def _launch(
    name: str, problem: Problem, tiling: Any, grid: Grid, how: ga.Stored, *arguments: Any, parts: int = 1, **more: int
) -> None:
    """Launch the kernel of the file of its name, compiled for the problem."""
    kernel = _kernel(name, constants_of(problem.dims, tiling, problem.switches, **more))
    launch(kernel, how.name, grid, *arguments, *problem.options, problem.packed(parts))


@functools.lru_cache(maxsize=256)
def _kernel(name: str, constants: tuple[str, ...]) -> Kernel:
    family, _, kind = name.partition("_")
    parameters = PARAMETERS[kind] + HALVES * (family == WARPGROUP) + OPTIONS
    return Kernel(f"{name}.cu", name, parameters, PACKED.size, constants)


def _bias_gradient(problem: Problem, how: ga.Stored, device: int, given: tuple[Any, ...], bias: Any) -> Any:
    dbias = empty(bias.shape, given[1].dtype)
    if not dbias.size:
        return dbias
    name, tiling, shared = _tiling("bias", problem, how, device, problem.group_rows)
    _launch(name, problem, tiling, plan.plan_bias(tiling, shared, bias.shape), how, *given, dbias, *bias.shape)
    return dbias if dbias.dtype == bias.dtype else dbias.astype(bias.dtype)


def _sink_gradient(how: ga.Stored, lse: Any, delta: Any, sinks: Any, q: Any) -> Any:
    given, dsinks = ga.beside(sinks, q), empty(sinks.shape, q.dtype)
    batch, heads, queries = lse.shape
    grid = Grid((heads, 1, 1), (BLOCK, 1, 1), 4 * BLOCK // WARP)
    launch(SINKS, how.name, grid, lse, delta, given, dsinks, batch, heads, queries)
    return dsinks if dsinks.dtype == sinks.dtype else dsinks.astype(sinks.dtype)


def _plan_warps(rows: int) -> Grid:
    return Grid((ceil_div(rows, BLOCK // WARP), 1, 1), (BLOCK, 1, 1))


def _float32(x: Any) -> Any:
    return ga.contiguous(x if x.dtype == FLOAT32 else x.astype(FLOAT32))


def _cut(x: Any, width: int) -> Any:
    """Without the zeros that its rows were filled up with."""
    return x if x.shape[-1] == width else ga.contiguous(x[..., :width])

"""Linear maps of rows by packed weights: bias, activation and residual are applied while a tile is in the cache.

Reference: ops/linear.py. Weights (N, K) are packed ahead in panels of W outputs, (N / W, K, W), in float32 or as their
upper halves (bfloat16); rows are read in place, M at a time, so that 16 rows are computed as fast as 2,048.

A unit of work is a block of rows times some panels. Scratch per thread: one panel of results of a block. Results have
room for whole panels; up to M rows beyond the last are read, but not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.rows.activations import (
    GELU_REACH,
    SILU_REACH,
    clip,
    clip_below,
    hyperbolic_tangent,
    logistic,
    tanh_gates,
)
from attnarray.kernels.numba.runtime.call import Numbers
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import i64, load, loop, store
from attnarray.kernels.numba.vector.lanes import Lanes, lanes, tile_rows, tile_size, where
from attnarray.kernels.numba.vector.memory import ahead, is_null, pointer_at
from attnarray.kernels.numba.vector.normal_distribution import times_phi
from attnarray.kernels.numba.vector.product import LONGEST, Operand, weight_product

BLOCK = 96  # rows, a multiple of M
UNITS = 16  # for each thread: so many that none waits long for the last one
ACTIVATIONS = ("", "gelu", "gelu_tanh", "relu", "silu", "tanh")
WORD = np.int32(0)
NONE, GELU, GELU_TANH, RELU, SILU, TANH = range(6)


class Linear(NamedTuple):
    """y = phi(W x + b) or y = x' + W x + b, of `rows` (ROWS or PICKED)."""

    picked: int  # whether of the picked rows only
    x: Numbers
    x_step: int
    depth: int  # K
    panels: int
    weight: int
    halves: int  # whether the weights are upper halves
    bias: Numbers  # room for whole panels
    activation: int
    residual: Numbers  # null without
    residual_step: int
    out: Numbers
    out_step: int


def _finishing(activate: Callable[[Lanes], Lanes]) -> Callable[..., ir.Value]:
    """out[r] = activate(c[r] + bias) for rows of W numbers."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        rows, c, bias, out, out_step = arguments
        dtype = signature.args[1].dtype
        vector = ir.VectorType(context.get_value_type(dtype), tile_size(dtype.bitwidth)[0])
        shift = Lanes(builder, load(builder, bias, vector))

        def row(n: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            x = Lanes(builder, load(builder, builder.gep(c, [builder.mul(n, i64(vector.count))]), vector))
            store(builder, activate(x + shift).value, builder.gep(out, [builder.mul(n, out_step)]))
            return []

        loop(builder, i64(0), rows, [], row)
        return context.get_dummy_value()

    return emit


@intrinsic
def finish(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    return types.void(types.intp, c, bias, out, types.intp), _finishing(lambda x: x)


@intrinsic
def finish_gelu(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    return types.void(types.intp, c, bias, out, types.intp), _finishing(times_phi)


@intrinsic
def finish_gelu_tanh(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    def gelu_tanh(x: Lanes) -> Lanes:
        return clip_below(x, GELU_REACH) * tanh_gates(clip(x, GELU_REACH))[0]

    return types.void(types.intp, c, bias, out, types.intp), _finishing(gelu_tanh)


@intrinsic
def finish_relu(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    return types.void(types.intp, c, bias, out, types.intp), _finishing(lambda x: where(x < 0.0, 0.0, x))


@intrinsic
def finish_silu(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    def silu(x: Lanes) -> Lanes:
        x = clip_below(x, SILU_REACH)
        return x * logistic(x)[0]

    return types.void(types.intp, c, bias, out, types.intp), _finishing(silu)


@intrinsic
def finish_tanh(_context: Any, rows: Any, c: Any, bias: Any, out: Any, out_step: Any) -> Any:
    return types.void(types.intp, c, bias, out, types.intp), _finishing(hyperbolic_tangent)


@intrinsic
def finish_residual(
    _context: Any, rows: Any, c: Any, bias: Any, residual: Any, residual_step: Any, out: Any, out_step: Any
) -> Any:
    """out[r] = residual[r] + (c[r] + bias) for rows of W numbers; both may be the same rows."""
    signature = types.void(types.intp, c, bias, residual, types.intp, out, types.intp)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        rows, start, bias, residual, residual_step, out, out_step = arguments
        vector = ir.VectorType(context.get_value_type(c.dtype), tile_size(c.dtype.bitwidth)[0])
        shift = load(builder, bias, vector)

        def row(n: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            x = load(builder, builder.gep(start, [builder.mul(n, i64(vector.count))]), vector)
            y = load(builder, builder.gep(residual, [builder.mul(n, residual_step)]), vector)
            total = builder.fadd(y, builder.fadd(x, shift))
            store(builder, total, builder.gep(out, [builder.mul(n, out_step)]))
            return []

        loop(builder, i64(0), rows, [], row)
        return context.get_dummy_value()

    return signature, emit


def block_rows(rows: int, like: Any) -> Any:
    """The rows of a block: blocks of about equal size."""
    tile, blocks = tile_rows(like), (rows + BLOCK - 1) // BLOCK
    return ((rows + blocks - 1) // blocks + tile - 1) // tile * tile if blocks > 0 else tile


def unit_panels(c: Any, rows: int, threads: int, like: Any) -> Any:
    """The panels of a unit: many read the same rows from the cache."""
    block = block_rows(rows, like)
    return max(c.panels * ((rows + block - 1) // block) // (UNITS * threads), 1)


def linear_units(c: Any, rows: int, threads: int, like: Any) -> Any:
    """The number of units."""
    block, panels = block_rows(rows, like), unit_panels(c, rows, threads, like)
    return (rows + block - 1) // block * ((c.panels + panels - 1) // panels)


def linear_unit(n: int, c: Any, rows: int, threads: int, memory: Any) -> None:
    """Unit n; units with the same panels follow each other."""
    block, some, width = block_rows(rows, memory), unit_panels(c, rows, threads, memory), lanes(memory)
    blocks = (rows + block - 1) // block
    first, start = n % blocks * block, n // blocks * some
    count, x = min(block, rows - first), ahead(c.x, first * c.x_step)
    for p in range(start, min(start + some, c.panels)):
        if c.halves != 0:
            words = ahead(pointer_at(WORD, c.weight), p * c.depth * (width // 2))
            panel_product(count, c.depth, x, c.x_step, words, width // 2, memory)
        else:
            numbers = ahead(pointer_at(memory[0], c.weight), p * c.depth * width)
            panel_product(count, c.depth, x, c.x_step, numbers, width, memory)
        finish_panel(count, first, p * width, c, memory)


def panel_product(rows: int, depth: int, x: Any, x_step: int, panel: Any, panel_step: int, c: Any) -> None:
    """c (rows, W) = x (rows, K) times a panel (K, W)."""
    tile, width = tile_rows(c), lanes(c)
    for k in range(0, max(depth, 1), LONGEST):
        steps, b = min(depth - k, LONGEST), Operand(ahead(panel, k * panel_step), 0, panel_step)
        for row in range(0, rows, tile):
            a, total = Operand(ahead(x, row * x_step + k), x_step, 1), Operand(ahead(c, row * width), width, 0)
            weight_product(rows - row, steps, a, b, total, k > 0)


def finish_panel(rows: int, first: int, column: int, c: Any, memory: Any) -> None:
    """From products in `memory` to results."""
    out, bias = ahead(c.out, first * c.out_step + column), ahead(c.bias, column)
    if not is_null(c.residual):
        residual = ahead(c.residual, first * c.residual_step + column)
        finish_residual(rows, memory, bias, residual, c.residual_step, out, c.out_step)
    elif c.activation == GELU:
        finish_gelu(rows, memory, bias, out, c.out_step)
    elif c.activation == GELU_TANH:
        finish_gelu_tanh(rows, memory, bias, out, c.out_step)
    elif c.activation == RELU:
        finish_relu(rows, memory, bias, out, c.out_step)
    elif c.activation == SILU:
        finish_silu(rows, memory, bias, out, c.out_step)
    elif c.activation == TANH:
        finish_tanh(rows, memory, bias, out, c.out_step)
    else:
        finish(rows, memory, bias, out, c.out_step)


block_rows, unit_panels, linear_units = jit(block_rows, unit_panels, linear_units, inner=True)
panel_product, finish_panel = jit(panel_product, finish_panel, fastmath=EXACT, inner=True)
linear_unit = jit(linear_unit, fastmath=EXACT, inner=True)

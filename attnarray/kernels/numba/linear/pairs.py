"""Products of pairs of steps of a chunk, weighted by decays for each key dimension, and their gradients.

Reference: attention/linear/decays.py. Steps come in blocks. A block meets all earlier steps at its start: these are
decayed up to there, its own from there, and one matrix product serves all pairs. Inside of a block each pair is a sum
of its own. Factors are only multiplied, never divided: none is above 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray.kernels.numba.linear.chunk import add_scaled, dot, product
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import copy, fill
from attnarray.kernels.numba.vector.lanes import Lanes, exp
from attnarray.kernels.numba.vector.memory import ahead
from attnarray.kernels.numba.vector.packing import whole_lanes
from attnarray.kernels.numba.vector.product import Operand
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass
from attnarray.kernels.numba.vector.transpose import transpose_matrix

BLOCK = 16  # a multiple of the squares that are transposed in registers


class Decays(NamedTuple):
    """Factors (C, Dk) of the steps of a chunk, and scratch; `more` rows of a matrix may be written beyond the last."""

    each: Any
    start: Any  # from the start of the chunk up to each step
    end: Any  # from each step to the end
    local: Any  # from the start of its block up to each step
    run: Any  # from each step up to a later one
    far: Any  # earlier keys, decayed
    far_columns: Any  # (Dk, C)
    near: Any  # steps of a block, decayed from its start
    dfar: Any
    dnear: Any
    dlog: Any  # (C + 1, Dk), gradients of decays; the last row is for none
    total: Any  # (1, Dk)


def decays_size(size: int, deep: int, more: int) -> Any:
    """The numbers of all arrays of `divide_decays`."""
    return (9 * (size + more) + 2 * (BLOCK + more) + 2) * deep + (deep + more) * size


def divide_decays(each: Any, size: int, deep: int, more: int) -> Any:
    """The arrays in scratch from `each` on."""
    rows, block = (size + more) * deep, (BLOCK + more) * deep
    start = ahead(each, rows)
    end = ahead(start, rows)
    local = ahead(end, rows)
    run = ahead(local, rows)
    far = ahead(run, rows)
    dfar = ahead(far, rows)
    dlog = ahead(dfar, rows)
    near = ahead(dlog, rows + deep)
    dnear = ahead(near, block)
    total = ahead(dnear, block)
    return Decays(each, start, end, local, run, far, ahead(total, deep), near, dfar, dnear, dlog, total)


@row_pass(vectors=2)
def exponential(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": exp(x)}


@row_pass(vectors=2)
def multiply(x: Row, y: Row, out: Row) -> dict[str, Lanes]:
    return {"out": x * y}


@row_pass(vectors=2)
def multiply_by(x: Row, factor: Row) -> dict[str, Lanes]:
    return {"x": x * factor}


@row_pass(vectors=2)
def decayed_dot(far: Row, factor: Row, a: Row, total: Sum) -> dict[str, Lanes]:
    """Decay an earlier key by one step more; its product with `a`."""
    return {"far": far * factor, "total": total + a * (far * factor)}


@row_pass(vectors=1)
def pair_backward(
    run: Row, factor: Row, k: Row, a: Row, da: Row, dk: Row, total: Row, dlog: Row, weight: Scalar
) -> dict[str, Lanes]:
    """The gradients of one pair of a block; those of its decays are added to the sum of the pairs with earlier keys."""
    decayed = run * factor
    weighted = decayed * weight
    total = total + a * (k * weighted)
    return {"run": decayed, "da": da + k * weighted, "dk": dk + a * weighted, "total": total, "dlog": dlog + total}


@row_pass(vectors=1)
def border_backward(x: Row, dx: Row, factor: Row, grad: Row, total: Row, dlog: Row) -> dict[str, Lanes]:
    """From the gradient of a step that was decayed to a border that of the step, and of the decays up to there."""
    total = total + x * dx
    return {"grad": grad + dx * factor, "total": total, "dlog": dlog + total}


def fill_decays(count: int, depth: int, deep: int, decay: Any, f: Any, one: Any) -> None:
    """The factors of `count` steps from their decays."""
    for t in range(count):
        each, start, local = ahead(f.each, t * deep), ahead(f.start, t * deep), ahead(f.local, t * deep)
        exponential(depth, ahead(decay, t * depth), each)
        if t == 0:
            copy(depth, each, start)
        else:
            multiply(depth, ahead(start, -deep), each, start)
        if t % BLOCK == 0:
            copy(depth, each, local)
        else:
            multiply(depth, ahead(local, -deep), each, local)
    fill(depth, ahead(f.end, (count - 1) * deep), one)
    for t in range(count - 1, 0, -1):
        multiply(depth, ahead(f.end, t * deep), ahead(f.each, t * deep), ahead(f.end, (t - 1) * deep))


def multiply_rows(count: int, depth: int, deep: int, x: Any, y: Any, out: Any) -> None:
    """Products of the numbers of two matrices of padded rows."""
    for n in range(count):
        multiply(depth, ahead(x, n * deep), ahead(y, n * deep), ahead(out, n * deep))


def pair_products(count: int, depth: int, deep: int, size: int, a: Any, k: Any, f: Any, P: Any, one: Any) -> None:
    """P (C, C), the products of each step of `a` with the steps of `k` up to it; 0 above the diagonal."""
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        if first > 0:
            transpose_matrix(first, deep, f.far, deep, f.far_columns, size)
            multiply_rows(rows, depth, deep, ahead(a, first * deep), ahead(f.local, first * deep), f.near)
            far, below = Operand(f.far_columns, 0, size), Operand(ahead(P, first * size), size, 0)
            product(rows, first, depth, Operand(f.near, deep, 1), far, below, False)
        for t in range(first, first + rows):
            row, own, factor = ahead(P, t * size), ahead(a, t * deep), ahead(f.each, t * deep)
            fill(size - first, ahead(row, first), one * 0)
            for s in range(first, t):
                row[s] = decayed_dot(depth, ahead(f.far, s * deep), factor, own)
            copy(depth, ahead(k, t * deep), ahead(f.far, t * deep))
            row[t] = dot(depth, own, ahead(k, t * deep))
        whole = ahead(f.local, (first + rows - 1) * deep)
        for s in range(first):
            multiply_by(depth, ahead(f.far, s * deep), whole)


def pair_products_backward(
    count: int, dP: Any, a: Any, k: Any, da: Any, dk: Any, f: Any, c: Any, strict: bool, one: Any
) -> None:
    """Add the gradients of `a`, `k` and the decays; `strict`: of pairs of different steps only.

    A decay between two steps has the gradient dP P, which is summed over pairs without cancellation: of each border
    over the steps before a decay, or from it on.
    """
    size, deep, depth = whole_lanes(c.chunk, c.key), whole_lanes(c.depth, c.key), c.depth
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        if first > 0:
            multiply_rows(first, depth, deep, k, f.run, f.far)
            multiply_rows(rows, depth, deep, ahead(a, first * deep), ahead(f.local, first * deep), f.near)
            weights = ahead(dP, first * size)
            product(
                rows, deep, first, Operand(weights, size, 1), Operand(f.far, 0, deep), Operand(f.dnear, deep, 0), False
            )
            product(
                first, deep, rows, Operand(weights, 1, size), Operand(f.near, 0, deep), Operand(f.dfar, deep, 0), False
            )
            fill(depth, f.total, one * 0)
            for t in range(rows - 1, -1, -1):
                at = (first + t) * deep
                border_backward(
                    depth, ahead(f.near, t * deep), ahead(f.dnear, t * deep), ahead(f.local, at), ahead(da, at),
                    f.total, ahead(f.dlog, at),
                )  # fmt: skip
            fill(depth, f.total, one * 0)
            for s in range(first):
                at, after = s * deep, s + 1 if s + 1 < first else size
                border_backward(
                    depth, ahead(f.far, at), ahead(f.dfar, at), ahead(f.run, at), ahead(dk, at), f.total,
                    ahead(f.dlog, after * deep),
                )  # fmt: skip
        for t in range(first, first + rows):
            at, row = t * deep, ahead(dP, t * size)
            own, factor, grad = ahead(a, at), ahead(f.each, at), ahead(da, at)
            fill(depth, f.total, one * 0)
            for s in range(first, t):
                key, dkey, later = ahead(k, s * deep), ahead(dk, s * deep), ahead(f.dlog, (s + 1) * deep)
                pair_backward(depth, ahead(f.run, s * deep), factor, key, own, grad, dkey, f.total, later, row[s])
            fill(depth, ahead(f.run, at), one)
            if not strict:
                add_scaled(depth, ahead(k, at), grad, row[t])
                add_scaled(depth, own, ahead(dk, at), row[t])
        whole = ahead(f.local, (first + rows - 1) * deep)
        for s in range(first):
            multiply_by(depth, ahead(f.run, s * deep), whole)


decays_size, divide_decays = jit(decays_size, divide_decays, inner=True)
fill_decays, multiply_rows = jit(fill_decays, multiply_rows, fastmath=EXACT, inner=True)
pair_products, pair_products_backward = jit(pair_products, pair_products_backward, fastmath=EXACT, inner=True)

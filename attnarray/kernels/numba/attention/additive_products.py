"""Additive scores of one query with many keys, and their gradients, vectors along the features.

    tanh(q + k) = 1 - 2 r      with r = 1 / (1 + e^{2 q} e^{2 k})

so that the exponentials are taken once for each query and each key, and a pair costs one product and one reciprocal per
feature. That holds while neither factor leaves the range of its dtype; else (`WIDE`) the sum is taken first, and its
exponential for each pair. The derivative of tanh is 4 (r - r^2).

Rows of N numbers lie `stride` elements apart; N is a multiple of W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types
from attnarray.kernels.numba.vector.emit import combined, i64, load, loop, splat, store
from attnarray.kernels.numba.vector.lanes import Lanes, exp, multiply_add, tile_size, where

AT_ONCE = 4  # independent sums, to hide the latency of additions
MOST = {32: 84.0, 64: 700.0}  # of 2 |q + k|: e^84 has a reciprocal in float32


@intrinsic
def score_keys(_context: Any, count: Any, n: Any, query: Any, keys: Any, stride: Any, weights: Any, scores: Any) -> Any:
    """scores[j] = 2 sum_a weights[a] (1/2 - r(query[a], keys[j, a])) for j < count; `query`, `keys` hold e^{2 x}."""
    signature = types.void(types.intp, types.intp, query, keys, types.intp, weights, scores)
    return signature, _scores(False)


@intrinsic
def score_wide_keys(
    _context: Any, count: Any, n: Any, query: Any, keys: Any, stride: Any, weights: Any, scores: Any
) -> Any:
    """The same where `query` and `keys` hold 2 x, of any size."""
    signature = types.void(types.intp, types.intp, query, keys, types.intp, weights, scores)
    return signature, _scores(True)


def _scores(wide: bool) -> Callable[..., ir.Value]:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, n, query, keys, stride, weights, scores = arguments
        vector = _vector(context, signature.args[2], 2)
        last, steps = builder.sub(count, i64(1)), builder.sdiv(n, i64(vector.count))

        def some(group: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            first = builder.mul(group, i64(AT_ONCE))
            numbers = [builder.add(first, i64(m)) for m in range(AT_ONCE)]
            inside = [builder.select(builder.icmp_signed("<", j, count), j, last) for j in numbers]
            starts = [builder.gep(keys, [builder.mul(j, stride)]) for j in inside]

            def add(block: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                at = builder.mul(block, i64(vector.count))
                q, w, *rows = (
                    Lanes(builder, load(builder, builder.gep(start, [at]), vector))
                    for start in (query, weights, *starts)
                )
                halves = [q.constant(0.5) - _reciprocal(q, k, wide) for k in rows]  # of tanh
                pairs = zip(halves, sums, strict=True)
                return [multiply_add(w, half, Lanes(builder, old)).value for half, old in pairs]

            zero = ir.Constant(vector, [0.0] * vector.count)
            sums = loop(builder, i64(0), steps, [zero] * AT_ONCE, add)
            for j, value in zip(inside, sums, strict=True):  # beyond the last key: the last one again
                half = combined(builder, value, Lanes.__add__)
                builder.store(builder.fadd(half, half), builder.gep(scores, [j]))
            return []

        groups = builder.sdiv(builder.add(last, i64(AT_ONCE)), i64(AT_ONCE))
        loop(builder, i64(0), groups, [], some)
        return context.get_dummy_value()

    return emit


@intrinsic
def add_slopes(
    _context: Any, count: Any, query: Any, keys: Any, stride: Any, dscores: Any, dquery: Any, dkeys: Any,
    dkey_stride: Any, dweights: Any,
) -> Any:  # fmt: skip
    """For W features: dquery += sum_j ds_j g_j, dkeys[j] += ds_j g_j, dweights += sum_j ds_j (1/2 - r_j).

    With g = r - r^2, for keys j < count, each `stride` elements from the one before in `keys` and `dkey_stride` in
    `dkeys`. `query` and `keys` hold e^{2 x}.
    """
    signature = types.void(types.intp, query, keys, types.intp, dscores, dquery, dkeys, types.intp, dweights)
    return signature, _slopes(False)


@intrinsic
def add_wide_slopes(
    _context: Any, count: Any, query: Any, keys: Any, stride: Any, dscores: Any, dquery: Any, dkeys: Any,
    dkey_stride: Any, dweights: Any,
) -> Any:  # fmt: skip
    """The same where `query` and `keys` hold 2 x, of any size; where ds is 0, even NaN does not matter."""
    signature = types.void(types.intp, query, keys, types.intp, dscores, dquery, dkeys, types.intp, dweights)
    return signature, _slopes(True)


def _slopes(wide: bool) -> Callable[..., ir.Value]:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        count, query, keys, stride, dscores, dquery, dkeys, dkey_stride, dweights = arguments
        vector = _vector(context, signature.args[1], 1)
        q = Lanes(builder, load(builder, query, vector))

        def add(j: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            offset = builder.mul(j, stride)
            k = Lanes(builder, load(builder, builder.gep(keys, [offset]), vector))
            ds = Lanes(builder, splat(builder, builder.load(builder.gep(dscores, [j])), vector))
            r = _reciprocal(q, k, wide)
            if wide:
                r = where(ds.equals(0.0), 0.0, r)
            half_tanh = r.constant(0.5) - r
            slope = ds * multiply_add(r * -1.0, r, r)
            pointer = builder.gep(dkeys, [builder.mul(j, dkey_stride)])
            store(builder, (Lanes(builder, load(builder, pointer, vector)) + slope).value, pointer)
            dq, dw = (Lanes(builder, value) for value in sums)
            return [(dq + slope).value, multiply_add(ds, half_tanh, dw).value]

        zero = ir.Constant(vector, [0.0] * vector.count)  # the sums of a tile are added to the others as one number
        for pointer, total in zip((dquery, dweights), loop(builder, i64(0), count, [zero, zero], add), strict=True):
            store(builder, (Lanes(builder, load(builder, pointer, vector)) + Lanes(builder, total)).value, pointer)
        return context.get_dummy_value()

    return emit


def _reciprocal(q: Lanes, k: Lanes, wide: bool) -> Lanes:
    """1 / (1 + e^{2 (q + k)})."""
    if wide:
        most = MOST[q.integer.width]
        double = q + k
        e = exp(where(double > most, most, double))
        return q.constant(1.0) / (e + 1.0)
    return q.constant(1.0) / multiply_add(q, k, 1.0)


def _vector(context: Any, pointer: Any, part: int) -> ir.VectorType:
    """W lanes, or a part of them."""
    return ir.VectorType(context.get_value_type(pointer.dtype), tile_size(pointer.dtype.bitwidth)[0] // part)

"""The passes over entries that `segments.py` calls: over parts of them, and over the results of the parts.

An entry has a row of `columns` numbers, and so has each segment in the `size` numbers of a part. While the segment
stays the same its maximum or sum stays in a register, so that sorted entries do not wait for memory. Sums are kept in
float64: a segment may be long.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.kernels.numba.runtime.call import Doubles, Integers, Numbers, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.basics import fill
from attnarray.kernels.numba.vector.lanes import Lanes, exp, in_type, maximum, where
from attnarray.kernels.numba.vector.memory import ahead, pointer_at
from attnarray.kernels.numba.vector.rows import EIGHT, Row, eight_pass, row_pass

CHUNK = 1024  # numbers whose exponentials are taken together, while they are in the L1 cache


class Segments(NamedTuple):
    """A call on parts and entries; `size` are the numbers of a part."""

    batch: int
    parts: int
    entries: int
    columns: int
    size: int
    segments: Integers  # (E,)
    outside: Integers  # whether a part has found a segment that does not exist
    sums: Doubles  # of each part
    out: Numbers  # the result: y, or the gradient of x
    x: Numbers = None
    maxima: Numbers = None  # of each part
    dout: Numbers = None
    y: Numbers = None
    merged: Numbers = None  # factors or sums of each batch


@row_pass(vectors=2)
def update_maxima(total: Row, other: Row) -> dict[str, Lanes]:
    return {"total": maximum(other, total)}


@row_pass(vectors=2)
def no_infinity(total: Row) -> dict[str, Lanes]:
    return {"total": where(total.equals(-math.inf), 0.0, total)}


@row_pass(vectors=1)
def take_exponentials(out: Row) -> dict[str, Lanes]:
    return {"out": exp(out)}


@eight_pass
def max_eight(total: Lanes, x: Lanes) -> dict[str, Lanes]:
    return {"total": maximum(x, total)}


@eight_pass
def add_eight(total: Lanes, x: Lanes) -> dict[str, Lanes]:
    return {"total": total + in_type(x, total)}


@eight_pass
def subtract_eight(out: Lanes, x: Lanes, shift: Lanes) -> dict[str, Lanes]:
    return {"out": x - shift}


@eight_pass
def multiply_eight(x: Lanes, factor: Lanes) -> dict[str, Lanes]:
    return {"x": x * factor}


@row_pass(vectors=2)
def multiply(out: Row, x: Row, y: Row) -> dict[str, Lanes]:
    """0 where y is 0, whatever x is."""
    return {"out": where(y.equals(0.0), 0.0, x * y)}


def find_max(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The maximum of each segment, in the parts [first, past)."""
    c = unpack(Segments, integers, numbers)
    for unit in range(first, past):
        start, stop = part_bounds(unit, c)
        segment = ahead(c.segments, start)
        c.outside[unit] = has_outside(stop - start, segment, c.size // max(c.columns, 1))
        if c.outside[unit] == 0:
            found = ahead(c.maxima, unit * c.size)
            fill(c.size, found, -math.inf)
            row = ahead(c.x, (unit // c.parts * c.entries + start) * c.columns)
            max_segments(stop - start, c.columns, row, segment, found)


def part_bounds(unit: int, c: Any) -> Any:
    """The entries [start, stop) of a part."""
    return c.entries * (unit % c.parts) // c.parts, c.entries * (unit % c.parts + 1) // c.parts


def has_outside(count: int, segment: Any, segments: int) -> int:
    """Whether an entry has a segment that is not from 0 to segments - 1: it must not be read or written."""
    found = 0
    for e in range(count):
        found |= segment[e] | (segments - 1 - segment[e])
    return 1 if found < 0 else 0


def merge_maxima(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The numbers [first, past) of each part, merged into the first part; 0 for segments without an entry."""
    c = unpack(Segments, integers, numbers)
    for b in range(c.batch):
        total = ahead(c.maxima, b * c.parts * c.size + first)
        for part in range(1, c.parts):
            update_maxima(past - first, total, ahead(total, part * c.size))
        no_infinity(past - first, total)


def merge_sums(
    first: int, past: int, batch: int, parts: int, size: int, sums: int, out: int, inverse: bool, like: Any
) -> None:  # fmt: skip
    """The numbers [first, past) summed over the parts, or the reciprocals of these sums: 1 where a sum is 0."""
    for b in range(batch):
        result = ahead(pointer_at(like, out), b * size)
        for n in range(first, past):
            total = 0.0
            for part in range(parts):
                total += pointer_at(0.0, sums)[(b * parts + part) * size + n]
            if inverse:
                total = 1.0 / total if total != 0.0 else 1.0
            result[n] = total


def exponentiate(first: int, past: int, integers: Any, numbers: Any) -> None:
    """e^(x - largest) of the entries, and their sums in the parts [first, past)."""
    c = unpack(Segments, integers, numbers)
    step = max(CHUNK // max(c.columns, 1), 1)
    for unit in range(first, past):
        start, stop = part_bounds(unit, c)
        shifts = ahead(c.maxima, unit // c.parts * c.parts * c.size)
        totals = ahead(c.sums, unit * c.size)
        fill(c.size, totals, 0.0)
        for e in range(start, stop, step):
            count, at = min(step, stop - e), (unit // c.parts * c.entries + e) * c.columns
            segment, exps = ahead(c.segments, e), ahead(c.out, at)
            subtract_segments(count, c.columns, ahead(c.x, at), segment, shifts, exps)
            take_exponentials(count * c.columns, exps)
            add_to_segments(count, c.columns, exps, segment, totals)


def scale(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The entries [first, past) of each batch."""
    c = unpack(Segments, integers, numbers)
    for b in range(c.batch):
        row = ahead(c.out, (b * c.entries + first) * c.columns)
        factor = ahead(c.merged, b * c.size)
        multiply_by_segments(past - first, c.columns, row, ahead(c.segments, first), factor)


def add_products(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The sums of y dy in the parts [first, past). Scratch: the result."""
    c = unpack(Segments, integers, numbers)
    step = max(CHUNK // max(c.columns, 1), 1)
    for unit in range(first, past):
        start, stop = part_bounds(unit, c)
        totals = ahead(c.sums, unit * c.size)
        fill(c.size, totals, 0.0)
        outer = has_outside(stop - start, ahead(c.segments, start), c.size // max(c.columns, 1))
        c.outside[unit] = outer
        for e in range(start, start if outer else stop, step):
            count, at = min(step, stop - e), (unit // c.parts * c.entries + e) * c.columns
            products = ahead(c.out, at)
            multiply(count * c.columns, products, ahead(c.dout, at), ahead(c.y, at))
            add_to_segments(count, c.columns, products, ahead(c.segments, e), totals)


def differentiate(first: int, past: int, integers: Any, numbers: Any) -> None:
    """The entries [first, past) of each batch."""
    c = unpack(Segments, integers, numbers)
    step = max(CHUNK // max(c.columns, 1), 1)
    for b in range(c.batch):
        total = ahead(c.merged, b * c.size)
        for e in range(first, past, step):
            count, at = min(step, past - e), (b * c.entries + e) * c.columns
            segment, result = ahead(c.segments, e), ahead(c.out, at)
            subtract_segments(count, c.columns, ahead(c.dout, at), segment, total, result)
            multiply(count * c.columns, result, result, ahead(c.y, at))


def max_segments(count: int, columns: int, x: Any, segment: Any, maxima: Any) -> None:
    """Update the maxima of the segments by their entries."""
    if columns == 1 and count > 0:
        current = segment[0]
        segment_max = maxima[current]
        for e in range(count):
            if segment[e] != current:
                maxima[current] = segment_max
                current = segment[e]
                segment_max = maxima[current]
            segment_max = x[e] if x[e] > segment_max else segment_max
        maxima[current] = segment_max
    elif columns % EIGHT == 0:
        for e in range(count):
            for h in range(0, columns, EIGHT):
                max_eight(ahead(maxima, segment[e] * columns + h), ahead(x, e * columns + h))
    else:
        for e in range(count):
            for h in range(columns):
                segment_max = maxima[segment[e] * columns + h]
                maxima[segment[e] * columns + h] = (
                    x[e * columns + h] if x[e * columns + h] > segment_max else segment_max
                )


def subtract_segments(count: int, columns: int, x: Any, segment: Any, shifts: Any, out: Any) -> None:
    if columns == 1:
        for e in range(count):
            out[e] = x[e] - shifts[segment[e]]
    elif columns % EIGHT == 0:
        for e in range(count):
            for h in range(0, columns, EIGHT):
                at = e * columns + h
                subtract_eight(ahead(out, at), ahead(x, at), ahead(shifts, segment[e] * columns + h))
    else:
        for e in range(count):
            for h in range(columns):
                out[e * columns + h] = x[e * columns + h] - shifts[segment[e] * columns + h]


def add_to_segments(count: int, columns: int, x: Any, segment: Any, sums: Any) -> None:
    if columns == 1:
        current = segment[0]
        total = sums[current]
        for e in range(count):
            if segment[e] != current:
                sums[current] = total
                current = segment[e]
                total = sums[current]
            total += x[e]
        sums[current] = total
    elif columns % EIGHT == 0:
        for e in range(count):
            for h in range(0, columns, EIGHT):
                add_eight(ahead(sums, segment[e] * columns + h), ahead(x, e * columns + h))
    else:
        for e in range(count):
            for h in range(columns):
                sums[segment[e] * columns + h] += x[e * columns + h]


def multiply_by_segments(count: int, columns: int, x: Any, segment: Any, factors: Any) -> None:
    if columns == 1:
        for e in range(count):
            x[e] *= factors[segment[e]]
    elif columns % EIGHT == 0:
        for e in range(count):
            for h in range(0, columns, EIGHT):
                multiply_eight(ahead(x, e * columns + h), ahead(factors, segment[e] * columns + h))
    else:
        for e in range(count):
            for h in range(columns):
                x[e * columns + h] *= factors[segment[e] * columns + h]


part_bounds = jit(part_bounds, inner=True)
has_outside, max_segments = jit(has_outside, max_segments, fastmath=EXACT, inner=True)
multiply_by_segments, subtract_segments = jit(multiply_by_segments, subtract_segments, fastmath=EXACT, inner=True)
add_to_segments = jit(add_to_segments, fastmath=EXACT, inner=True)
find_max, merge_maxima, exponentiate = jit(find_max, merge_maxima, exponentiate, fastmath=EXACT)
merge_sums, add_products, differentiate, scale = jit(merge_sums, add_products, differentiate, scale, fastmath=EXACT)

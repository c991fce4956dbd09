"""A program: steps of a model that threads run together, in one call of compiled code.

Each step has units of work, which threads take one by one from counters: first those of their own share, the same in
every call, so that the weights of a thread stay in the cache of its CPU; then those that others have not begun. A
thread that finds none left waits until those taken are finished, and goes on with the next step. A thread waits only
for units that another one computes: whichever threads take part, and whenever they come, all units are computed, also
by a single thread. So no thread must be woken or may be late, and results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.decode import BLOCK, decode, merge
from attnarray.kernels.numba.attention.forward import forward
from attnarray.kernels.numba.prepared import linear
from attnarray.kernels.numba.prepared.linear import Linear, linear_unit, linear_units
from attnarray.kernels.numba.rows.norm import normalize
from attnarray.kernels.numba.rows.rotary import halves, pairs
from attnarray.kernels.numba.runtime.atomics import add, store
from attnarray.kernels.numba.runtime.call import Integers, Number, Numbers, unpack
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.runtime.waiting import LINE, wait_for
from attnarray.kernels.numba.vector.basics import copy
from attnarray.kernels.numba.vector.lanes import Lanes, lanes
from attnarray.kernels.numba.vector.memory import ahead, is_null, keep, pointer, scratch, vector_at
from attnarray.kernels.numba.vector.rows import Row, row_pass

# A step: its operation, and the fields of its record.
WORDS = 16
LINEAR, NORMALIZE, EMBED, ATTEND, DECODE, MERGE, STORE, PICK, MULTIPLY, ROTATE = range(10)

FINISHED, TAKEN = 0, LINE  # counters of each step: of all units, and a line apart those taken of each thread's share
FEWEST_ROWS = 4  # of a unit
LIKE = np.int64(0)


class Program(NamedTuple):
    """The steps, and what changes from call to call."""

    threads: int
    steps: int  # address of (length, WORDS)
    length: int
    state: int  # address of counters, (length, threads + 1) lines of 0, and a word that becomes 1 if memory is missing
    yields: int  # address of the C function that lets others run; 0 without
    rows: int
    picked: int
    picks: Integers  # (picked,) rows
    calls: int  # attention: one for each sequence,
    call_words: int  # with so many integers,
    spans: int  # in so many units
    queries: int  # of each sequence in a cache
    tokens: Integers
    positions: Integers
    types: Integers
    partials: int  # of decoding
    scale: Number  # the numbers of attention
    softcap: Number
    kept: Number
    one: Number


class Norm(NamedTuple):
    """The arguments of `normalize`."""

    picked: int
    integers: int
    numbers: int


class Embed(NamedTuple):
    """out = tokens + positions + types; the last two may be null."""

    token: Numbers
    position: Numbers
    type: Numbers
    width: int
    out: Numbers
    out_step: int


class Attend(NamedTuple):
    calls: int  # address of (calls, call_words)


class Store(NamedTuple):
    """Heads of x, from a column on, into a cache (B, H, S, D)."""

    x: Numbers
    x_step: int
    out: Numbers
    batch_step: int
    head_step: int
    heads: int
    width: int  # D


class Pick(NamedTuple):
    x: Numbers
    x_step: int
    width: int
    out: Numbers
    out_step: int


class Multiply(NamedTuple):
    """x *= y"""

    x: Numbers
    x_step: int
    y: Numbers
    y_step: int
    width: int


class Rotate(NamedTuple):
    """Rotate heads of x, one beside the other, by the positions of their rows."""

    x: Numbers
    x_step: int
    table: Numbers
    heads: int
    width: int  # D
    dims: int  # that are rotated
    interleaved: int


@row_pass(vectors=2)
def add_row(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": out + x}


@row_pass(vectors=2)
def multiply_row(x: Row, y: Row) -> dict[str, Lanes]:
    return {"x": x * y}


def run(thread: int, threads: int, integers: Any, numbers: Any) -> None:
    """Take part in a program until all steps are done; `thread` has a share of the units of `threads`."""
    p = unpack(Program, integers, numbers)
    array = np.empty(16 + linear.BLOCK * lanes(pointer(numbers)), numbers.dtype)
    memory = scratch(array)
    for n in range(p.length):
        words, state = vector_at(LIKE, p.steps + n * (WORDS * 8)), p.state + n * (threads + 1) * LINE
        units = step_units(words, p, numbers)
        for m in range(threads):
            owner = (thread + m) % threads
            taken, first, past = state + TAKEN + owner * LINE, units * owner // threads, units * (owner + 1) // threads
            unit = first + add(taken, 1)
            while unit < past:
                try:
                    run_unit(unit, units, words, p, numbers, memory)
                except Exception:  # no scratch memory: others wait for this unit
                    store(p.state + p.length * (threads + 1) * LINE, 1)
                add(state + FINISHED, 1)
                unit = first + add(taken, 1)
        wait_for(state + FINISHED, units, p.yields)
    keep(array)


def rows_of_unit(rows: int, p: Any) -> Any:
    return max((rows + 4 * p.threads - 1) // (4 * p.threads), FEWEST_ROWS)


def step_units(words: Any, p: Any, numbers: Any) -> Any:
    """The number of units of a step."""
    kind, fields = words[0], words[1:]
    rows = p.rows
    if kind == LINEAR:
        c = unpack(Linear, fields, numbers)
        return linear_units(c, p.picked if c.picked != 0 else rows, p.threads, pointer(numbers))
    if kind == ATTEND:
        return p.calls * p.spans
    if kind == DECODE:
        return decode_units(unpack(Attend, fields, numbers).calls)
    if kind == MERGE:
        return 1
    if kind == PICK or (kind == NORMALIZE and unpack(Norm, fields, numbers).picked != 0):
        rows = p.picked
    return (rows + rows_of_unit(rows, p) - 1) // rows_of_unit(rows, p)


def decode_units(calls: int) -> Any:
    call = pointer(vector_at(LIKE, calls))
    return ac.batches(call, ac.K) * ac.heads(call, ac.K) * ((ac.rows(call, ac.K) + BLOCK - 1) // BLOCK)


def run_unit(unit: int, units: int, words: Any, p: Any, numbers: Any, memory: Any) -> None:
    """One unit of a step."""
    kind, fields = words[0], words[1:]
    if kind == LINEAR:
        c = unpack(Linear, fields, numbers)
        linear_unit(unit, c, p.picked if c.picked != 0 else p.rows, p.threads, memory)
    elif kind == ATTEND:
        attend(unit, unpack(Attend, fields, numbers), p, numbers)
    elif kind == DECODE:
        calls = vector_at(LIKE, unpack(Attend, fields, numbers).calls)
        decode(unit, units, units, calls, numbers, p.partials)
    elif kind == MERGE:
        merge(vector_at(LIKE, unpack(Attend, fields, numbers).calls), numbers, p.partials)
    else:
        run_rows(unit, kind, fields, p, numbers)


def attend(unit: int, c: Any, p: Any, numbers: Any) -> None:
    """Some panels of queries of one sequence."""
    n, span = unit // p.spans, unit % p.spans
    words = vector_at(LIKE, c.calls + n * p.call_words * 8)
    call, width = pointer(words), lanes(pointer(numbers))
    panels = ac.heads(call, ac.K) * ((ac.group_rows(call) + width - 1) // width)
    first, past = panels * span // p.spans, panels * (span + 1) // p.spans
    if first < past:
        forward(first, past, words, numbers)


def run_rows(unit: int, kind: int, fields: Any, p: Any, numbers: Any) -> None:
    """Steps row by row."""
    picked = kind == PICK or (kind == NORMALIZE and unpack(Norm, fields, numbers).picked != 0)
    rows = p.picked if picked else p.rows
    each = rows_of_unit(rows, p)
    first, past = unit * each, min((unit + 1) * each, rows)
    if kind == NORMALIZE:
        norm = unpack(Norm, fields, numbers)
        normalize(first, past, vector_at(LIKE, norm.integers), vector_at(numbers[0], norm.numbers))
    elif kind == EMBED:
        embed(first, past, unpack(Embed, fields, numbers), p)
    elif kind == STORE:
        store_heads(first, past, unpack(Store, fields, numbers), p)
    elif kind == PICK:
        pick = unpack(Pick, fields, numbers)
        for n in range(first, past):
            copy(pick.width, ahead(pick.x, p.picks[n] * pick.x_step), ahead(pick.out, n * pick.out_step))
    elif kind == ROTATE:
        rotate_heads(first, past, unpack(Rotate, fields, numbers), p)
    else:
        c = unpack(Multiply, fields, numbers)
        for n in range(first, past):
            multiply_row(c.width, ahead(c.x, n * c.x_step), ahead(c.y, n * c.y_step))


def embed(first: int, past: int, c: Any, p: Any) -> None:
    for n in range(first, past):
        out = ahead(c.out, n * c.out_step)
        copy(c.width, ahead(c.token, p.tokens[n] * c.width), out)
        if not is_null(c.position):
            add_row(c.width, ahead(c.position, p.positions[n] * c.width), out)
        if not is_null(c.type):
            add_row(c.width, ahead(c.type, p.types[n] * c.width), out)


def rotate_heads(first: int, past: int, c: Any, p: Any) -> None:
    half, one = c.dims // 2, p.one
    for n in range(first, past):
        for h in range(c.heads):
            x = ahead(c.x, n * c.x_step + h * c.width)
            if c.interleaved != 0:
                cos = ahead(c.table, p.positions[n] * 2 * c.dims)
                pairs(c.dims, x, cos, ahead(cos, c.dims), x, one)
            else:
                cos = ahead(c.table, p.positions[n] * c.dims)
                halves(half, x, ahead(x, half), cos, ahead(cos, half), x, ahead(x, half), one)


def store_heads(first: int, past: int, c: Any, p: Any) -> None:
    for n in range(first, past):
        out = ahead(c.out, n // p.queries * c.batch_step + n % p.queries * c.width)
        for h in range(c.heads):
            copy(c.width, ahead(c.x, n * c.x_step + h * c.width), ahead(out, h * c.head_step))


rows_of_unit, decode_units = jit(rows_of_unit, decode_units, inner=True)
step_units = jit(step_units, inner=True)
embed, rotate_heads, store_heads = jit(embed, rotate_heads, store_heads, fastmath=EXACT, inner=True)
attend, run_rows, run_unit = jit(attend, run_rows, run_unit, fastmath=EXACT, inner=True)
run = jit(run, fastmath=EXACT)

"""Programs of models: the steps of a stack of blocks on memory of its own, for up to a number of rows.

All addresses are fixed when a workspace is made, but those of results and caches: a call writes the few numbers that
differ from the last one. One call at a time has a workspace.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.prepared import program as pr
from attnarray.kernels.numba.prepared.linear import ACTIVATIONS, Linear
from attnarray.kernels.numba.prepared.weights import FLOAT32, Packed, aligned_empty
from attnarray.kernels.numba.rows import norm as rn
from attnarray.kernels.numba.runtime.call import address, kinds, pack
from attnarray.kernels.numba.runtime.cpus import thread_count
from attnarray.kernels.numba.runtime.threads import run_parts, threads_for
from attnarray.kernels.numba.runtime.waiting import LINE, yield_function
from attnarray.kernels.numba.vector.lanes import tile_size

SPARE = 16  # rows that are read beyond the last
ROTARY_TABLE = 1 + pr.Rotate._fields.index("table")  # among the words of a step
PADDING = 16  # numbers between rows, so that rows do not lie whole pages apart
MACS_PER_NANOSECOND = 50  # multiplications and additions of one thread
FIELDS = {
    record: [name for name, kind in kinds(record).items() if kind != "Number"] for record in (rn.Norm, pr.Program)
}


class Rows:
    """A matrix (capacity, columns) of a workspace."""

    def __init__(self, capacity: int, columns: int) -> None:
        width = tile_size(32)[0]
        self.array = aligned_empty((capacity + SPARE, -(-columns // width) * width + PADDING))
        self.address, self.step = address(self.array), self.array.shape[1]

    @property
    def place(self) -> tuple[int, int]:
        """The address of the first row, and the stride between rows."""
        return self.address, self.step


class Assembly:
    """The steps of a program, in the order in which they are added; `alive` has what their addresses point to."""

    def __init__(self) -> None:
        self.words: list[list[int]] = []
        self.alive: list[Any] = []
        self.rotations: list[int] = []  # the numbers of the steps that rotate
        self.work = 0  # multiplications for each row

    def add(self, kind: int, record: Any) -> int:
        """Add a step; return its number."""
        fields = [address(x) if isinstance(x, np.ndarray) else int(x or 0) for x in record]
        self.alive += [x for x in record if isinstance(x, np.ndarray)]
        self.words.append([kind, *fields, *[0] * (pr.WORDS - 1 - len(fields))])
        return len(self.words) - 1

    def linear(
        self,
        x: Rows,
        packed: Packed,
        out: Rows,
        activation: str = "",
        residual: Rows | None = None,
        picked: bool = False,
    ) -> None:
        """y = phi(W x + b), or that of no activation plus a residual."""
        self.work += 0 if picked else packed.panels * tile_size(32)[0] * packed.depth
        self.alive.append(packed)
        self.add(pr.LINEAR, Linear(
            picked, x.address, x.step, packed.depth, packed.panels, address(packed.weight), packed.halves,
            packed.bias, ACTIVATIONS.index(activation), *(residual.place if residual else (0, 0)),
            out.address, out.step,
        ))  # fmt: skip

    def normalize(self, x: Rows, norm: Any, out: Rows, scratch: Any, picked: bool = False) -> np.ndarray:
        """Layer norm or RMS norm; return its integers, for another address of the result."""
        params, width, eps, centered = norm
        weight, bias = (
            np.ascontiguousarray(params[name], FLOAT32) if name in params else None for name in ("weight", "bias")
        )
        means, factors = scratch
        bias = np.zeros(width, FLOAT32) if bias is None else bias
        call = rn.Norm(
            width, x.address, x.step, weight, means if centered else None, factors, width, out.address, out.step, bias,
            eps, rn.SHRINK[4],
        )  # fmt: skip
        integers, numbers = pack(call, FLOAT32)
        self.alive += [weight, bias, integers, numbers, means, factors]
        self.add(pr.NORMALIZE, pr.Norm(picked, address(integers), address(numbers)))
        return integers


class Workspace:
    """The memory and the program of one call at a time."""

    def __init__(self, assembly: Assembly, scale: float, template: np.ndarray) -> None:
        self.assembly = assembly
        self.steps = np.array(assembly.words, np.int64)
        self.template = template  # the integers of a call of attention
        self.calls = np.empty((0, 0), np.int64)
        self.fields: dict[str, Any] = {
            "steps": address(self.steps), "length": len(self.steps), "yields": yield_function(), "scale": scale,
            "one": 1.0, "kept": 1.0,
        }  # fmt: skip
        self.state, self.partials = np.empty(0, np.int64), np.empty(0, FLOAT32)
        self.table = np.empty((0, 0), FLOAT32)

    def rotate(self, stack: Any, past: int) -> None:
        """Have the steps that rotate a table of the positions before `past`."""
        if self.assembly.rotations and len(self.table) < past:
            self.table = rotary_table(stack, 2 ** (past - 1).bit_length())
            self.steps[self.assembly.rotations, ROTARY_TABLE] = address(self.table)

    def run(self, rows: int, work: float, **fields: Any) -> None:
        """Run the program; `fields` are those of `Program`. Arrays must stay alive."""
        threads = threads_for(work / MACS_PER_NANOSECOND, thread_count())
        self.state = np.zeros(len(self.steps) * (threads + 1) * LINE // 8 + 1, np.int64)
        given = {**dict.fromkeys(pr.Program._fields, 0), **self.fields, "threads": threads, "rows": rows, **fields}
        integers, numbers = pack(pr.Program(**{**given, "state": address(self.state)}), FLOAT32)
        run_parts(pr.run, [(n, threads, integers, numbers) for n in range(threads)])
        if self.state[-1]:
            raise MemoryError("A kernel could not allocate its scratch memory.")


def rotary_table(stack: Any, count: int) -> np.ndarray:
    """The table of `rows/rotary.py`, cosines and then sines of each position, from rotations of (1, 0) in each pair."""
    D, dims = stack.dim // stack.num_heads, stack.rotary.dims or stack.dim // stack.num_heads
    if stack.rotary.interleaved:
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, dims // 2), slice(dims // 2, dims)
    x = np.zeros((count, D))
    x[:, first] = 1.0
    y = stack.rotated(x)
    cos, sin = y[:, first], y[:, second]
    if stack.rotary.interleaved:
        cos, sin = np.repeat(cos, 2, axis=1), np.stack([-sin, sin], axis=-1).reshape(count, dims)
    return np.concatenate([cos, sin], axis=1, dtype=FLOAT32)


def norm_field(name: str) -> int:
    """The place of a field among the integers of `normalize`."""
    return FIELDS[rn.Norm].index(name)


def attention_template(
    modifiers: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, lse: np.ndarray
) -> np.ndarray:
    """The integers of attention of one sequence, for `sequence_calls`; arrays (1, H, T, D) with room for all rows."""
    integers = ac.make_call(modifiers, FLOAT32, q, k, v, {ac.OUT: out, ac.LSE: lse}).integers
    integers[ac.DECODED] = 0  # there is no backward
    return integers


def sequence_calls(template: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of attention of sequences one after the other, (sequences, words)."""
    calls = np.repeat(template[None], len(lengths), axis=0)
    firsts = np.cumsum(lengths) - lengths
    for slot in (ac.Q, ac.K, ac.V, ac.OUT, ac.LSE):
        calls[:, slot] += firsts * template[ac.SLOTS + 8 * slot + 6]  # the stride between rows
        calls[:, ac.SLOTS + 8 * slot + 2] = lengths
    calls[:, ac.BATCHES + 1] = lengths
    return calls

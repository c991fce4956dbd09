"""Prepared language models on NumPy arrays: one program reads the next tokens of cached sequences.

Reference: models/prepared/gpt.py. 16-bit parameters are computed in float32.
Parallel over units of each step (program.py). Scratch: a workspace for as many rows as the largest call had.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention.decode import BLOCK
from attnarray.kernels.numba.prepared import assembly as pa
from attnarray.kernels.numba.prepared import program as pr
from attnarray.kernels.numba.prepared.blocks import Memory, add_block, add_embedding, check_served, packed_blocks
from attnarray.kernels.numba.prepared.linear import Linear
from attnarray.kernels.numba.prepared.weights import FLOAT32, aligned_empty, pack_linear
from attnarray.kernels.numba.runtime.call import address, empty_call, pack
from attnarray.kernels.numba.vector.lanes import tile_size
from attnarray.numpy_arrays import PLAIN

OUT = 1 + Linear._fields.index("out")  # among the words of a step
MOST_ROWS_TO_DECODE = 6  # queries that share a head of keys: for so few, every key is read once


class GPTWorkspace(pa.Workspace):
    """The program of a language model; with `last`, logits of the last token of each sequence only."""

    def __init__(self, prepared: Any, decodes: bool, last: bool, capacity: int, sequences: int) -> None:
        stack, steps = prepared.stack, pa.Assembly()
        self.capacity, self.sequences, self.stack, self.last = capacity, sequences, stack, last
        self.memory = memory = Memory(stack, capacity)
        self.stores: list[int] = []
        self.attention: list[int] = []
        inputs, D = memory.inputs, stack.dim // stack.num_heads

        def attend() -> None:
            for n in range(2):  # keys and values
                start = inputs.address + (stack.dim + n * D * stack.num_kv_heads) * FLOAT32.itemsize
                self.stores.append(steps.add(pr.STORE, pr.Store(start, inputs.step, 0, 0, 0, stack.num_kv_heads, D)))
            self.attention.append(steps.add(pr.DECODE if decodes else pr.ATTEND, pr.Attend(0)))
            if decodes:
                self.attention.append(steps.add(pr.MERGE, pr.Attend(0)))

        add_embedding(steps, prepared.tables, memory.x)
        for block, params in zip(packed_blocks(prepared), prepared.params["blocks"], strict=True):
            add_block(steps, block, params, stack, memory, attend)
        x = memory.x
        if last:
            x = pa.Rows(sequences, stack.dim)
            steps.alive.append(x)
            steps.add(pr.PICK, pr.Pick(memory.x.address, memory.x.step, stack.dim, x.address, x.step))
        steps.normalize(x, prepared.final_norm, x, memory.moments, picked=last)
        if "logits" not in prepared.kept:
            prepared.kept["logits"] = pack_linear([{"weight": prepared.output_weight}], stack.halves)
        self.logits = prepared.kept["logits"]
        steps.linear(x, self.logits, x, picked=last)
        super().__init__(steps, stack.modifiers.scale, np.empty(0, np.int64))
        self.decodes = decodes

    def read(self, tokens: np.ndarray, blocks: Any, start: int) -> np.ndarray:
        """The logits (rows, V); keys and values are written to the caches of `blocks`."""
        B, T = tokens.shape
        past, rows = start + T, B if self.last else B * T
        self._write_stores(blocks, start)
        self.rotate(self.stack, past)
        calls = self._calls(blocks, B, T, start)
        logits = aligned_empty((rows, self.logits.columns))
        self.steps[-1, OUT : OUT + 2] = address(logits), self.logits.columns
        stack, units = self.stack, -(-past // BLOCK) * B * self.stack.num_kv_heads
        group, wide = T * stack.num_heads // stack.num_kv_heads, -(-stack.dim // stack.num_heads // tile_size(32)[0])
        partials = np.empty(units * group * (wide * tile_size(32)[0] + 2) if self.decodes else 0, FLOAT32)
        work = self.assembly.work * B * T + rows * stack.dim * self.logits.columns
        self.run(
            B * T, work + 2 * stack.num_layers * B * T * past * stack.dim, calls=B, call_words=calls.shape[-1],
            spans=2 * stack.num_kv_heads, queries=T, picked=B, picks=np.arange(1, B + 1) * T - 1,
            tokens=np.ascontiguousarray(tokens, np.int64).ravel(), positions=np.tile(np.arange(start, past), B),
            partials=address(partials),
        )  # fmt: skip
        return logits[:, : self.logits.outputs]

    def _write_stores(self, blocks: Any, start: int) -> None:
        arrays = [x for block in blocks for x in (block.key, block.value)]
        steps = np.array([x.strides[:3] for x in arrays], np.int64) // FLOAT32.itemsize
        words = self.steps[self.stores]
        words[:, 3] = [address(x) for x in arrays]
        words[:, 3] += start * steps[:, 2] * FLOAT32.itemsize
        words[:, 4:6] = steps[:, :2]
        self.steps[self.stores] = words

    def _calls(self, blocks: Any, B: int, T: int, start: int) -> np.ndarray:
        """The integers of attention for each layer, and unless it decodes for each sequence."""
        stack, past = self.stack, start + T
        modifiers = stack.modifiers._replace(right=0 if T > 1 else None, q_offset=start)
        q, _, _, out, lse = (x[0, :, : B * T] for x in self.memory.heads(stack))
        q, out, lse = (x.reshape(x.shape[0], B, T, x.shape[2]).transpose(1, 0, 2, 3) for x in (q, out, lse))
        k, v = (x[:, :, :past] for x in blocks[0][:2])
        one = slice(None) if self.decodes else slice(0, 1)
        given = {ac.OUT: out[one], ac.LSE: lse[one]}
        template = ac.make_call(modifiers, FLOAT32, q[one], k[one], v[one], given).integers
        template[ac.DECODED] = 0
        count = 1 if self.decodes else B
        calls = np.tile(template, (len(blocks), count, 1))
        for slot, name in ((ac.K, "key"), (ac.V, "value")):
            arrays = [getattr(block, name) for block in blocks]
            firsts = np.array([address(x) for x in arrays]), np.array([x.strides[0] for x in arrays])
            calls[:, :, slot] = firsts[0][:, None] + np.arange(count) * firsts[1][:, None]
            strides = np.array([x.strides[:3] for x in arrays])
            calls[:, :, ac.SLOTS + 8 * slot + 4 : ac.SLOTS + 8 * slot + 7] = strides[:, None]
        for slot, array in ((ac.Q, q), (ac.OUT, out), (ac.LSE, lse)):
            calls[:, :, slot] += np.arange(count) * array.strides[0]
        each = len(self.attention) // len(blocks)
        self.steps[self.attention, 1] = np.repeat(address(calls) + np.arange(len(blocks)) * calls[0].nbytes, each)
        self.calls = calls
        return calls


def gpt_logits(tokens: Any, prepared: Any, cache: Any, last: bool) -> tuple[Any, Any]:
    """See the reference."""
    check_served(prepared)
    if type(tokens) not in PLAIN or cache.starts is not None or prepared.positions == "alibi":
        raise Declined("left padding and ALiBi are not served")
    (B, T), start, stack = tokens.shape, cache.length, prepared.stack
    for block in cache.blocks:
        for x in (block.key, block.value):
            if type(x) not in PLAIN or x.dtype != FLOAT32 or x.shape[2] < start + T or not x.flags.c_contiguous:
                raise Declined("caches in float32 with room for the tokens only")
    if not B * T:
        raise Declined("there are no tokens")
    decodes = T * stack.num_heads // stack.num_kv_heads <= MOST_ROWS_TO_DECODE
    pool, room = prepared.kept.setdefault(("workspaces", decodes, last), []), None
    with suppress(IndexError):
        room = pool.pop()
    if room is None or room.capacity < B * T or room.sequences < B:
        room = GPTWorkspace(prepared, decodes, last, B * T, B)
    logits = room.read(tokens, cache.blocks, start)
    pool.append(room)
    blocks = tuple(block._replace(length=start + T) for block in cache.blocks)
    shape = (B, 1 if last else T, logits.shape[1])
    result = np.ascontiguousarray(logits).reshape(shape).astype(stack.result, copy=False)
    return result, cache._replace(blocks=blocks)


def warmup(dtype: str) -> None:
    """Compile the kernel; there is none for float64."""
    if dtype == "float32":
        pr.run(0, 0, *pack(empty_call(pr.Program), dtype))

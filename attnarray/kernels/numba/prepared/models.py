"""Prepared encoders on NumPy arrays: one program a call, on the rows of tokens that exist.

Reference: models/prepared/encoder.py and models/prepared/bert.py. 16-bit parameters are computed in float32.
Parallel over units of each step (program.py). Scratch: a workspace for as many rows as the largest call had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.prepared import assembly as pa
from attnarray.kernels.numba.prepared import program as pr
from attnarray.kernels.numba.prepared.blocks import Memory, add_block, add_embedding, check_served, packed_blocks
from attnarray.kernels.numba.prepared.weights import FLOAT32, pack_linear
from attnarray.kernels.numba.runtime.call import address, empty_call, pack
from attnarray.numpy_arrays import PLAIN


class EncoderWorkspace(pa.Workspace):
    """The program of an encoder, with or without an embedding and a pooler."""

    def __init__(self, prepared: Any, modifiers: Any, capacity: int, sequences: int) -> None:
        stack, steps = prepared.stack, pa.Assembly()
        self.capacity, self.sequences, self.stack = capacity, sequences, stack
        self.memory = memory = Memory(stack, capacity)
        if prepared.tables is not None:
            add_embedding(steps, prepared.tables, memory.y)
            steps.normalize(memory.y, prepared.embedding_norm, memory.x, memory.moments)
        last = None
        for block, params in zip(packed_blocks(prepared), prepared.params["blocks"], strict=True):
            last = add_block(steps, block, params, stack, memory, lambda: steps.add(pr.ATTEND, pr.Attend(0)))
        if prepared.final_norm is not None:
            last = steps.normalize(memory.x, prepared.final_norm, memory.y, memory.moments)
        self.last, self.pooled = last, None
        if prepared.pooler is not None:
            first, self.pooled = pa.Rows(sequences, stack.dim), pa.Rows(sequences, stack.dim)
            self.pick = steps.add(pr.PICK, pr.Pick(0, stack.dim, stack.dim, first.address, first.step))
            pooler = prepared.kept.setdefault("pooler", None) or pack_linear([prepared.pooler], stack.halves)
            prepared.kept["pooler"] = pooler
            steps.linear(first, pooler, self.pooled, "tanh", picked=True)
            steps.alive.append(first)
        super().__init__(steps, modifiers.scale, pa.attention_template(modifiers, *memory.heads(stack)))
        self.key = b""

    def encode(self, rows: int, lengths: np.ndarray, **given: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """States (rows, E) and pooled vectors (sequences, E) of sequences of these lengths, none of them 0."""
        stack, states = self.stack, np.empty((rows, self.stack.dim), FLOAT32)
        key = lengths.tobytes()
        if key != self.key:
            self.calls, self.key = pa.sequence_calls(self.template, lengths), key
            self.steps[self.steps[:, 0] == pr.ATTEND, 1] = address(self.calls)
            self.picks = np.cumsum(lengths) - lengths
            pairs = int(np.sum(lengths * lengths)) * stack.dim * 2 * stack.num_layers
            self.time = self.assembly.work * rows + 2 * pairs
            self.spans = stack.num_kv_heads * (1 if len(lengths) > 1 else 2)
        self.rotate(stack, int(lengths.max()))
        if self.last is not None:
            self.last[pa.norm_field("out")], self.last[pa.norm_field("out_step")] = address(states), stack.dim
        if self.pooled is not None:
            self.steps[self.pick, 1] = address(states)
        self.run(
            rows, self.time, calls=len(lengths), call_words=self.calls.shape[1], spans=self.spans,
            picked=len(lengths), picks=self.picks, **given,
        )  # fmt: skip
        if self.last is None:
            states[...] = self.memory.x.array[:rows, : stack.dim]
        return states, None if self.pooled is None else self.pooled.array[: len(lengths), : stack.dim].copy()


@contextmanager
def workspace(prepared: Any, modifiers: Any, rows: int, sequences: int) -> Iterator[EncoderWorkspace]:
    """A workspace with room for so many rows and sequences, for this call alone."""
    pool, found = prepared.kept.setdefault(("workspaces", modifiers), []), None
    with suppress(IndexError):
        found = pool.pop()
    if found is None or found.capacity < rows or found.sequences < sequences:
        before = (0, 0) if found is None else (found.capacity, found.sequences)
        found = EncoderWorkspace(prepared, modifiers, max(rows, before[0]), max(sequences, before[1]))
    yield found
    pool.append(found)


def bert_states(tokens: Any, prepared: Any, types: Any, exists: Any, lengths: Any) -> tuple[Any, Any]:
    """See the reference."""
    check_served(prepared)
    B, T = tokens.shape
    if type(tokens) not in PLAIN or (types is not None and type(types) not in PLAIN):
        raise Declined("plain NumPy arrays only")
    index, lengths = _existing(exists, lengths, B, T)
    if prepared.pooler is not None and (not B or not lengths.all() or (exists is not None and not exists[:, 0].all())):
        raise Declined("a sequence without its first token")
    flat = np.ascontiguousarray(tokens, np.int64).ravel()
    kinds = np.zeros_like(flat) if types is None else np.ascontiguousarray(types, np.int64).ravel()
    positions = np.tile(np.arange(T), B)
    if index is not None:
        flat, positions, kinds = flat[index], positions[index], kinds[index]
    return _encode(prepared, False, index, lengths, (B, T), None, tokens=flat, positions=positions, types=kinds)


def encoder_states(x: Any, prepared: Any, lengths: Any, is_causal: bool) -> Any:
    """See the reference."""
    check_served(prepared)
    if type(x) not in PLAIN:
        raise Declined("plain NumPy arrays only")
    batch, T = math.prod(x.shape[:-2]), x.shape[-2]
    index, lengths = _existing(None, None if lengths is None else lengths.reshape(batch), batch, T)
    rows = x.reshape(batch * T, x.shape[-1])
    rows, positions = (x if index is None else x[index] for x in (rows, np.tile(np.arange(T), batch)))
    states, _ = _encode(prepared, is_causal, index, lengths, (batch, T), rows, positions=positions)
    return states.reshape(x.shape)


def warmup(dtype: str) -> None:
    """Compile the kernel; there is none for float64."""
    if dtype == "float32":
        pr.run(0, 0, *pack(empty_call(pr.Program), dtype))


def _existing(exists: Any, lengths: Any, batch: int, T: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The places of the rows that exist, None for all, and how many each sequence has."""
    if exists is None and lengths is not None:
        exists = np.arange(T) < np.asarray(lengths)[:, None]
    if exists is None or exists.all():
        return None, np.full(batch, T, np.int64)
    return np.flatnonzero(exists), exists.sum(axis=1, dtype=np.int64)


def _encode(
    prepared: Any, is_causal: bool, index: Any, lengths: np.ndarray, shape: tuple[int, int], x: Any, **given: Any
) -> tuple[Any, Any]:
    """States (B, T, E), 0 where there are no tokens, and pooled vectors."""
    stack, (batch, T) = prepared.stack, shape
    rows, lengths = int(lengths.sum()), lengths[lengths > 0]
    if rows == 0:
        return np.zeros((batch, T, stack.dim), stack.result), None
    modifiers = stack.modifiers._replace(right=0) if is_causal else stack.modifiers
    with workspace(prepared, modifiers, rows, len(lengths)) as room:
        if x is not None:
            room.memory.x.array[:rows, : stack.dim] = x
        states, pooled = room.encode(rows, lengths, **given)
    if index is not None:
        every = np.zeros((batch * T, stack.dim), FLOAT32)
        every[index] = states
        states = every
    states = states.reshape(batch, T, stack.dim).astype(stack.result, copy=False)
    return states, None if pooled is None else pooled.astype(stack.result, copy=False)

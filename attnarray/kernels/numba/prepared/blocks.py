"""The steps of blocks of a Transformer, with packed weights.

A `Stack` (models/prepared/stack.py) says how the blocks compute, and where their parameters are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.prepared import program as pr
from attnarray.kernels.numba.prepared.assembly import Assembly, Rows
from attnarray.kernels.numba.prepared.weights import FLOAT32, Packed, aligned_empty, pack_linear


class PackedBlock(NamedTuple):
    inputs: Packed  # of queries, keys and values
    out: Packed
    hidden: Packed
    gate: Packed | None
    down: Packed


class Memory:
    """The rows of a workspace that all blocks use."""

    def __init__(self, stack: Any, capacity: int) -> None:
        self.capacity, head, kv_heads = capacity, stack.dim // stack.num_heads, stack.num_kv_heads
        self.x, self.y = Rows(capacity, stack.dim), Rows(capacity, stack.dim)
        self.inputs, self.out = Rows(capacity, stack.dim + 2 * head * kv_heads), Rows(capacity, stack.dim)
        self.hidden = Rows(capacity, stack.hidden_dim)
        self.gate = Rows(capacity, stack.hidden_dim) if stack.gated else None
        self.lse = aligned_empty((len(self.x.array), stack.num_heads))
        self.moments = aligned_empty((len(self.x.array),)), aligned_empty((len(self.x.array),))

    def heads(self, stack: Any) -> tuple[np.ndarray, ...]:
        """Queries, keys, values, results and lse, (1, H, rows, D) each."""
        D, E, kv = stack.dim // stack.num_heads, stack.dim, stack.num_kv_heads
        q, k, v = (
            self.inputs.array[:, first : first + D * n]
            for first, n in ((0, stack.num_heads), (E, kv), (E + D * kv, kv))
        )
        arrays = [
            _split(x, n) for x, n in ((q, stack.num_heads), (k, kv), (v, kv), (self.out.array[:, :E], stack.num_heads))
        ]
        return (*arrays, _split(self.lse, stack.num_heads))


def _split(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, x.shape[1] // heads).transpose(1, 0, 2)[None]


def check_served(prepared: Any) -> None:
    """Decline what the steps do not compute."""
    stack = prepared.stack
    if getattr(stack.rotary, "depends_on_length", False):
        raise Declined("frequencies of rotary positions that depend on the length are not served")
    if stack.mixers != ("attention",):
        raise Declined("prepared models with linear mixers run as they are")
    if stack.dtype not in ("float32", "bfloat16"):
        raise Declined(f"dtype {stack.dtype}: parameters in float32 and bfloat16 only")


def packed_blocks(prepared: Any) -> list[PackedBlock]:
    """The packed weights of all blocks, made once."""
    stack, kept = prepared.stack, prepared.kept
    if "blocks" not in kept:
        kept["blocks"] = [_pack_block(block, stack) for block in prepared.params["blocks"]]
    blocks: list[PackedBlock] = kept["blocks"]
    return blocks


def _pack_block(params: Any, stack: Any) -> PackedBlock:
    attention, feed = params["attention"], params["feed_forward"]

    def packed(*maps: Any) -> Packed:
        return pack_linear(maps, stack.halves)

    gate = packed(feed["gate"]) if stack.gated else None
    inputs = packed(attention["query"], attention["key"], attention["value"])
    return PackedBlock(inputs, packed(attention["out"]), packed(feed["hidden"]), gate, packed(feed["out"]))


def add_block(steps: Assembly, block: PackedBlock, params: Any, stack: Any, memory: Memory, attend: Any) -> Any:
    """The steps of one block on `memory.x`; `attend` adds those of attention. Return the integers of the last norm."""
    x, y = memory.x, memory.y
    last = None

    def normalize(source: Rows, name: str, out: Rows) -> Any:
        return steps.normalize(source, stack.norm_fields(params[name]), out, memory.moments)

    given = x
    if stack.pre_norm:
        normalize(x, "attention_norm", y)
        given = y
    steps.linear(given, block.inputs, memory.inputs)
    if stack.rotary is not None:
        D, heads = stack.dim // stack.num_heads, stack.num_heads + stack.num_kv_heads  # keys follow the queries
        dims, interleaved = stack.rotary.dims or D, stack.rotary.interleaved
        rotation = pr.Rotate(memory.inputs.address, memory.inputs.step, 0, heads, D, dims, interleaved)
        steps.rotations.append(steps.add(pr.ROTATE, rotation))
    attend()
    total = x if stack.pre_norm else y
    steps.linear(memory.out, block.out, total, residual=x)
    normalize(total, "feed_forward_norm" if stack.pre_norm else "attention_norm", y if stack.pre_norm else x)
    given = y if stack.pre_norm else x
    steps.linear(given, block.hidden, memory.hidden, stack.activation)
    if block.gate is not None and memory.gate is not None:
        steps.linear(given, block.gate, memory.gate)
        hidden, gate = memory.hidden, memory.gate
        steps.add(pr.MULTIPLY, pr.Multiply(hidden.address, hidden.step, gate.address, gate.step, stack.hidden_dim))
    steps.linear(memory.hidden, block.down, total, residual=x)
    if not stack.pre_norm:
        last = normalize(total, "feed_forward_norm", x)
    return last


def add_embedding(steps: Assembly, tables: Any, out: Rows) -> None:
    """Tokens, and positions and types if there are any."""
    token, position, kind = (None if table is None else np.ascontiguousarray(table, FLOAT32) for table in tables)
    steps.add(pr.EMBED, pr.Embed(token, position, kind, tables[0].shape[1], *out.place))

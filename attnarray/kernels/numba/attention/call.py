"""One call of attention as numbers: addresses, shapes and strides of its arrays, so that each dtype is compiled once.

Numba compiles anew for every combination of array layouts. Here a call is one array of integers, from which compiled
code makes its views; so strided, read-only and broadcast arrays share one compilation.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import UNBOUNDED
from attnarray.kernels.numba.runtime.call import OFFSET, WORD_AT, address
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.lanes import item_bytes, lanes, tile_size
from attnarray.kernels.numba.vector.memory import matrix_at, pointer_at
from attnarray.kernels.numba.vector.pairs import REGISTER
from attnarray.kernels.numba.vector.sixteen import storage_code

# Slots of arrays (B, H, T, N). Their addresses come first (0: not given), those of inputs and gradients before others,
# which are written at once; then for each slot four sizes and four strides in bytes, and then how each is stored.
(
    Q, K, V, OUT, LSE, DOUT, DQ, DK, DV, BIAS, MASK, KEEP, SINKS, DLSE, DBIAS, DSINKS, SHARED_DK, SHARED_DV, TABLE,
    TILES,
) = range(20)  # fmt: skip
SLOTS = 20
STORAGE = 9 * SLOTS
# Then the integers of the options.
RULES = 10 * SLOTS
(
    LEFT, RIGHT, FIRST_KEY, SEED_LOW, SEED_HIGH, THRESHOLD, DROPS, HIDES, KEYS_PER_TILE, PANELS_PER_CHUNK, SHARED,
    DECODED, SUMS_BIAS, PAIRS, MODIFY, MODIFY_BACKWARD, CAPTURED, OBJECTS, DATA,
) = range(RULES, RULES + 19)  # fmt: skip
BATCHES = RULES + 19  # then for each batch its offset and its number of keys
# The numbers.
SCALE, SOFTCAP, KEPT, ONE = range(4)

TILE_BYTES, CHUNK_BYTES, LARGEST_TILE = 2**17, 2**20, 240


class Call(NamedTuple):
    integers: np.ndarray
    numbers: np.ndarray
    sizes: Sizes
    alive: tuple[Any, ...]  # the arrays whose addresses are among the integers


class Sizes(NamedTuple):
    """The sizes of a call; `panels` are those of all queries that share a head of keys."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    features: int  # D + Dv
    panels: int


def write_array(integers: np.ndarray, slot: int, array: Any) -> None:
    """Write address, shape and strides of an array (B, H, T, N); the stride of an axis of size 1 is 0."""
    strides = [stride if size > 1 else 0 for size, stride in zip(array.shape, array.strides, strict=True)]
    integers[slot] = address(array)
    integers[SLOTS + 8 * slot : SLOTS + 8 * slot + 8] = (*array.shape, *strides)
    integers[STORAGE + slot] = storage_code(array.dtype)


def make_call(
    modifiers: Any, dtype: Any, q: Any, k: Any, v: Any, arrays: dict[int, Any], backward: bool = False
) -> Call:
    """The call on `q`, `k`, `v` and other arrays by slot; those of `modifiers` are added. It computes in `dtype`."""
    batch, heads, queries, depth = q.shape
    kv_heads, keys, wide = v.shape[1:]
    panels = -(-heads // max(kv_heads, 1) * queries // tile_size(dtype.itemsize * 8)[0])
    given = {Q: q, K: k, V: v, **arrays}
    sinks, dropout = modifiers.sinks, modifiers.dropout
    if modifiers.bias is not None:
        given[BIAS] = np.require(modifiers.bias, q.dtype if modifiers.bias.dtype == q.dtype else dtype, "A")
    if modifiers.mask is not None:
        given[MASK] = modifiers.mask.view(np.uint8)
    if modifiers.tiles is not None:
        given[TABLE] = modifiers.tiles.table.astype(np.int64)
        given[TILES] = modifiers.tiles.tiles.view(np.uint8)[None]
    if sinks is not None:
        given[SINKS] = np.require(sinks, dtype, "A")[None, :, None, None]
    if dropout is not None and dropout.keep is not None:
        given[KEEP] = dropout.keep.view(np.uint8)
    integers = np.zeros(BATCHES + 2 * batch, np.int64)
    integers[SHARED] = -1
    for slot, array in given.items():
        write_array(integers, slot, array)
    integers[LEFT] = UNBOUNDED if modifiers.left is None else modifiers.left
    integers[RIGHT] = UNBOUNDED if modifiers.right is None else modifiers.right
    kept = 1.0
    if dropout is not None:
        kept = 1.0 / (1.0 - dropout.p) if dropout.p < 1 else 0.0
        integers[FIRST_KEY], integers[DROPS] = dropout.first_key, 1
        integers[SEED_LOW], integers[SEED_HIGH] = dropout.seed & 0xFFFFFFFF, dropout.seed >> 32
        integers[THRESHOLD] = round(dropout.p * 2**32)
        kept = kept if integers[THRESHOLD] < 2**32 else 0.0
    integers[KEYS_PER_TILE], integers[PANELS_PER_CHUNK] = tile_sizes(depth + wide, dtype, backward)
    if modifiers.tiles is not None:
        integers[KEYS_PER_TILE] = modifiers.tiles.size
    integers[HIDES] = modifiers.hides()
    integers[BATCHES::2] = modifiers.q_offset
    integers[BATCHES + 1 :: 2] = keys if modifiers.kv_lengths is None else modifiers.kv_lengths
    numbers = np.array([modifiers.scale, modifiers.softcap or 0.0, kept, 1.0], dtype)
    sizes = Sizes(batch, heads, kv_heads, queries, keys, depth + wide, panels)
    return Call(integers, numbers, sizes, tuple(given.values()))


def tile_sizes(features: int, dtype: Any, backward: bool) -> tuple[int, int]:
    """Keys of a tile and panels of a chunk: both fit into the cache of a core. The backward needs more memory."""
    width, tile = tile_size(dtype.itemsize * 8)
    each = max(features, 1) * dtype.itemsize
    most = LARGEST_TILE // 2 if backward else LARGEST_TILE
    keys = min(TILE_BYTES // each, most) // tile * tile
    return max(keys, tile), min(max(CHUNK_BYTES // (each * width), 1), 64)


def given(call: Any, slot: int) -> Any:
    return call[slot] != 0


def batches(call: Any, slot: int) -> Any:
    return call[SLOTS + 8 * slot]


def heads(call: Any, slot: int) -> Any:
    return call[SLOTS + 8 * slot + 1]


def rows(call: Any, slot: int) -> Any:
    return call[SLOTS + 8 * slot + 2]


def columns(call: Any, slot: int) -> Any:
    return call[SLOTS + 8 * slot + 3]


def find_data(call: Any) -> None:
    """Replace the objects of the first slots, NumPy's arrays, by the addresses of their data, if there are objects."""
    for slot in range(call[OBJECTS]):
        call[slot] = pointer_at(call[slot], call[slot] + call[DATA])[0]
    call[OBJECTS] = 0


def storage(call: Any, slot: int, like: Any) -> Any:
    """How a slot is stored: see `vector/sixteen.py`. 16-bit numbers are computed in float32 only."""
    return call[STORAGE + slot] if item_bytes(like) == 4 else 0


def in_pairs(call: Any, like: Any) -> Any:
    """Whether products are those of `vector/pairs.py`, which only 512-bit vectors of float32 compute."""
    return call[PAIRS] != 0 if item_bytes(like) == 4 and lanes(like) == 2 * REGISTER else False


def offset(call: Any, b: int) -> Any:
    """The position of the first query of batch b."""
    return call[BATCHES + 2 * b]


def length(call: Any, b: int) -> Any:
    """The number of keys that batch b has."""
    return call[BATCHES + 2 * b + 1]


def matrix(like: Any, call: Any, slot: int, b: int, h: int) -> Any:
    """The matrix (T, N) of batch b and head h of a slot, in the dtype that `like` points to."""
    first = SLOTS + 8 * slot
    address = call[slot] + b * call[first + 4] + h * call[first + 5]
    return matrix_at(like, address, call[first + 2], call[first + 3], call[first + 6], call[first + 7])


def element_address(call: Any, slot: int, b: int, h: int, row: int, column: int) -> Any:
    """The address of an element of a slot."""
    first = SLOTS + 8 * slot
    within = row * call[first + 6] + column * call[first + 7]
    return call[slot] + b * call[first + 4] + h * call[first + 5] + within


def column_stride(call: Any, slot: int) -> Any:
    """In bytes."""
    return call[SLOTS + 8 * slot + 7]


def row_stride(call: Any, slot: int) -> Any:
    """In bytes."""
    return call[SLOTS + 8 * slot + 6]


def group_rows(call: Any) -> Any:
    """The queries of all heads that share a head of keys."""
    return heads(call, Q) // heads(call, K) * rows(call, Q)


def write_inputs(integers: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> None:
    """Write the addresses of arrays whose shapes a call has already; unrolled, as small calls take so little time."""
    write_five(
        integers, 8 * Q, WORD_AT(id(q) + OFFSET).value, WORD_AT(id(k) + OFFSET).value, WORD_AT(id(v) + OFFSET).value,
        WORD_AT(id(out) + OFFSET).value, WORD_AT(id(lse) + OFFSET).value,
    )  # fmt: skip


def write_gradients(integers: Any, dout: Any, dq: Any, dk: Any, dv: Any) -> None:
    """As `write_inputs`, for the backward pass."""
    _FOUR(
        integers, 8 * DOUT, WORD_AT(id(dout) + OFFSET).value, WORD_AT(id(dq) + OFFSET).value,
        WORD_AT(id(dk) + OFFSET).value, WORD_AT(id(dv) + OFFSET).value,
    )  # fmt: skip


def count_objects(integers: Any, count: int) -> None:
    """Have compiled code read the addresses of the first `count` slots from NumPy's arrays, whose `id`s are there."""
    integers[OBJECTS], integers[DATA] = count, OFFSET


# Write words in half of the time of NumPy, and arrays by `id` for a call by one thread whose plan has `count_objects`.
_FOUR: Any
write_five: Any
write_nine: Any
_FOUR, write_five, write_nine = (struct.Struct(f"{count}q").pack_into for count in (4, 5, 9))
given, batches, heads, rows, columns, offset = jit(given, batches, heads, rows, columns, offset, inner=True)
length, matrix, group_rows, element_address = jit(length, matrix, group_rows, element_address, inner=True)
column_stride, row_stride, storage, in_pairs = jit(column_stride, row_stride, storage, in_pairs, inner=True)
find_data = jit(find_data, inner=True)

"""A call of attention for the kernels: arrays that they can read, sizes and strides, and compile-time constants."""

from __future__ import annotations

import functools
import itertools
import math
import struct
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import UNBOUNDED, Declined, note
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.attention_plan import Tiling, tile_dim
from attnarray.kernels.cuda.loader import empty
from attnarray.kernels.cuda.masked_softmax import long, table

MOST = 2**30  # queries, keys, and rows of queries that share keys: they are counted in 32 bits
ALIGNED = 16
LOG2E = math.log2(math.e)
PACKED = struct.Struct("=29q9i2I3f")  # struct Problem in attention.cuh
DOUT = slice(9, 12)  # the strides of dout among its numbers, after those of q, k and v
SWITCHES = ("BIAS", "MASK", "SOFTCAP", "DROPOUT", "SIGNED")
PLAIN = tuple(f"{name}=0" for name in SWITCHES)
ABSENT, IN_TILES, BY_NUMBER = 0, 1, 2  # how kernels read an array over the scores
LIGHT = {(0, 0, 0, 0, 0), (IN_TILES, 0, 0, 0, 0), (0, IN_TILES, 0, 0, 0)}


class Layout:
    """All of a call but its arrays and its seed: made once for equal calls, and hashed by identity."""

    def __init__(self, sizes: tuple[int, ...], strides: tuple[int, ...], rules: Rules) -> None:
        self.sizes, self.strides, self._rules = sizes, strides, rules
        batch, heads, kv_heads, queries, keys, dim, width = sizes
        self.dims = tile_dim(dim), tile_dim(width)  # as tiles hold them
        self.group_rows = heads // max(kv_heads, 1) * queries  # queries of all heads that share a head of keys
        self.pairs = batch * kv_heads  # of a batch and a head of keys
        bias, mask, has_softcap, _, is_signed = rules.switches
        self.unit = 1.0 if bias or has_softcap or is_signed else LOG2E  # shifts are scores times this
        self.in_tiles = bias == IN_TILES, mask == IN_TILES  # copied to shared memory
        self.switches = tuple(f"{name}={int(value)}" for name, value in zip(SWITCHES, rules.switches, strict=True))
        self.is_plain = self.switches == PLAIN  # scores are products times a factor, maybe with a band mask
        self.is_light = rules.switches in LIGHT  # registers are left for larger tiles
        self._packed: dict[int, bytes] = {}
        if max(keys, self.group_rows) > MOST:
            raise Declined(f"{queries} queries of {heads} heads and {keys} keys: at most 2^30 rows of a head of keys")

    def packed(self, parts: int, seed: int) -> bytes:
        """The struct of the kernels."""
        if seed or parts not in self._packed:
            rules = self._rules
            numbers = self.strides, rules.positions, self.sizes, (parts, rules.hides, seed % 2**32, seed >> 32)
            found = PACKED.pack(*itertools.chain(*numbers), *rules.factors)
            if seed:
                return found
            self._packed[parts] = found
        return self._packed[parts]


class Rules(NamedTuple):
    """The numbers of a call."""

    positions: tuple[int, ...]  # left, right, offset, first key and limit of the dropout
    hides: bool  # whether some weights may be 0: masks or dropout
    factors: tuple[float, ...]  # scale, softcap, and the factor of dropout
    switches: tuple[int, ...]  # the values of SWITCHES


class Problem(NamedTuple):
    """Arrays that kernels can read, and the rest of the call."""

    q: Any
    k: Any
    v: Any
    dout: Any  # None in the forward pass
    options: tuple[Any, ...]  # bias, mask, keep, offsets, lengths
    layout: Layout
    seed: int

    def packed(self, parts: int = 1) -> bytes:
        return self.layout.packed(parts, self.seed)


@functools.lru_cache(maxsize=256)
def compile_constants(dims: tuple[int, int], tiling: Tiling, switches: tuple[str, ...], **more: int) -> tuple[str, ...]:
    """The compile-time constants of a kernel."""
    numbers = {"DIM": dims[0], "VALUE_DIM": dims[1], **tiling.constants(), **more}
    return (*(f"{name}={value}" for name, value in numbers.items()), *switches)


def make_problem(q: Any, k: Any, v: Any, modifiers: Any, dout: Any = None) -> Problem:
    """The call, with copies of arrays that the kernels cannot read; Declined if they do not support it."""
    if not q.shape[3] or not v.shape[3]:
        raise Declined("heads of no numbers")
    tile_dim(q.shape[3]), tile_dim(v.shape[3])
    if modifiers.tiles is not None:
        modifiers = modifiers.without_tiles(q.shape[2])
        note("the tiles of the mask were expanded to a boolean array: kernels for GPUs skip none of them")
    q, k, v = readable(q), readable(k), readable(v)
    dout = None if dout is None else readable(_same_dtype(dout, v))
    bias = None if modifiers.bias is None else _same_dtype(modifiers.bias, q)
    dropout, same = modifiers.dropout, isinstance(modifiers.q_offset, int)
    keep = None if dropout is None else dropout.keep
    tables = table(bias), table(modifiers.mask), table(keep)
    seed, p, first_key = (0, 0.0, 0) if dropout is None else (dropout.seed, dropout.p, dropout.first_key)
    rules = _rules(
        modifiers.scale, modifiers.softcap, (modifiers.left, modifiers.right), modifiers.q_offset if same else 0,
        _reading(bias, k.shape[2], "bias"), _reading(modifiers.mask, k.shape[2], "mask"),
        modifiers.kv_lengths is not None, (0 if dropout is None else 1 if keep is None else 2, p, first_key),
    )  # fmt: skip
    layouts = tuple(None if x is None else (x.shape, x.strides) for x in (q, k, v, dout))
    layout = _layout(layouts, q.itemsize, tuple(one[1:] for one in tables), rules)
    options = (
        *(one[0] for one in tables),
        None if same else long(modifiers.q_offset),
        None if modifiers.kv_lengths is None else long(modifiers.kv_lengths),
    )
    return Problem(q, k, v, dout, options, layout, seed)


@functools.lru_cache(maxsize=1024)
def _rules(
    scale: float,
    softcap: float | None,
    band: tuple[int | None, int | None],
    offset: int,
    bias: int,
    mask: int,
    has_lengths: bool,
    dropout: tuple[int, float, int],
) -> Rules:
    bounds, (drops, p, first_key) = tuple(UNBOUNDED if bound is None else bound for bound in band), dropout
    hides = bias or mask or has_lengths or drops or bounds != (UNBOUNDED, UNBOUNDED)
    return Rules(
        positions=(*bounds, offset, first_key, round(p * 2**32)),
        hides=bool(hides),
        factors=(scale, softcap or 0.0, 1.0 / (1.0 - p) if p < 1 else 0.0),
        switches=(bias, mask, softcap is not None, drops, scale <= 0),
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _layout(layouts: Any, itemsize: int, tables: Any, rules: Rules) -> Layout:
    """From shape and strides of q, k, v and dout, and the strides of arrays over the scores."""
    (batch, heads, queries, dim), (_, kv_heads, keys, _), (*_, width) = (shape for shape, _ in layouts[:3])
    array_strides = ((0, 0, 0) if one is None else _strides(one[0], one[1], itemsize) for one in layouts)
    strides = itertools.chain(*array_strides, *tables)
    return Layout((batch, heads, kv_heads, queries, keys, dim, width), tuple(strides), rules)


def _reading(x: Any, keys: int, name: str) -> int:
    """How kernels read an array over the scores: in tiles where its rows are whole chunks of 16 bytes."""
    if x is None:
        return ABSENT
    strides = (stride for size, stride in zip(x.shape[:3], x.strides[:3], strict=True) if size > 1)
    is_whole = all(number % ALIGNED == 0 for number in (x.data.ptr, keys * x.itemsize, *strides))
    if is_whole and x.shape[3] == keys and x.strides[3] == x.itemsize:
        return IN_TILES
    note(f"the {name} is read number by number: its rows are no whole chunks of 16 bytes")
    return BY_NUMBER


def _same_dtype(x: Any, like: Any) -> Any:
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of batch, head and row, in elements."""
    pairs = zip(shape[:3], strides[:3], strict=True)
    return tuple(0 if size == 1 else stride // itemsize for size, stride in pairs)


def readable(x: Any) -> Any:
    """`x` in rows of whole chunks of 16 bytes; copied and padded with zeros only if needed."""
    width, itemsize = x.shape[3], x.itemsize
    if x.flags.c_contiguous and not (width * itemsize % ALIGNED or x.data.ptr % ALIGNED):
        return x
    whole = -(-width * itemsize // ALIGNED) * ALIGNED // itemsize
    is_aligned = x.data.ptr % ALIGNED == 0 and all(
        size == 1 or stride % ALIGNED == 0 for size, stride in zip(x.shape[:3], x.strides[:3], strict=True)
    )
    if whole == width and (width == 1 or x.strides[3] == itemsize) and is_aligned:
        return x
    note("an input is copied: its rows are no whole chunks of 16 bytes")
    return _copy(ga.contiguous(x), whole)


def pad_rows(x: Any, width: int) -> Any:
    """A contiguous array with rows padded with zeros to `width` numbers; copied only if needed."""
    return x if x.shape[3] == width else _copy(x, width)


def _copy(x: Any, width: int) -> Any:
    bits = np.dtype(f"uint{8 * x.itemsize}")  # CuPy has few functions for bfloat16
    filled = empty((*x.shape[:3], width), bits)
    filled[..., : x.shape[3]] = x.view(bits)
    filled[..., x.shape[3] :] = 0
    return filled.view(x.dtype)

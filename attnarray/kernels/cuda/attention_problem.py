"""A call of attention as its kernels take it: arrays that they can read, sizes and strides, and what to compile for."""

from __future__ import annotations

import functools
import struct
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined, note
from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.attention_plan import Tiling, held_dim
from attnarray.kernels.cuda.loader import empty
from attnarray.kernels.cuda.scoring import UNBOUNDED, long, table

MOST = 2**30  # queries, keys, and rows of queries that share keys: they are counted in 32 bits
ALIGNED = 16
PACKED = struct.Struct("=29q10i2I3f4x")  # struct Problem in attention.cuh
DOUT = slice(9, 12)  # the strides of dout among its numbers, behind those of q, k and v
SWITCHES = ("BIAS", "MASK", "SOFTCAP", "DROPOUT", "SIGNED")
PLAIN = tuple(f"{name}=0" for name in SWITCHES)


class Problem(NamedTuple):
    """Arrays that kernels can read, and the rest of the call."""

    q: Any
    k: Any
    v: Any
    dout: Any  # None in the forward pass
    options: tuple[Any, ...]  # bias, mask, keep, offsets, lengths
    strides: tuple[int, ...]
    positions: tuple[int, ...]
    sizes: tuple[int, ...]
    tail: tuple[Any, ...]
    switches: tuple[str, ...]
    dims: tuple[int, int]  # as tiles hold them

    @property
    def group_rows(self) -> int:
        """Queries of all heads that share a head of keys."""
        _, heads, kv_heads, queries, *_ = self.sizes
        return heads // max(kv_heads, 1) * queries

    @property
    def pairs(self) -> int:
        """Of a batch and a head of keys."""
        return self.sizes[0] * self.sizes[2]

    @property
    def is_plain(self) -> bool:
        """Whether scores are products times a factor, of which a band and lengths may hide some."""
        return self.switches == PLAIN

    def packed(self, parts: int = 1) -> bytes:
        return PACKED.pack(*self.strides, *self.positions, *self.sizes, parts, *self.tail)


@functools.lru_cache(maxsize=256)
def constants_of(dims: tuple[int, int], tiling: Tiling, switches: tuple[str, ...], **more: int) -> tuple[str, ...]:
    """What a kernel is compiled for."""
    numbers = {"DIM": dims[0], "VALUE_DIM": dims[1], **tiling.constants(), **more}
    return (*(f"{name}={value}" for name, value in numbers.items()), *switches)


def problem_of(q: Any, k: Any, v: Any, scoring: Any, dout: Any = None) -> Problem:
    """The call, with copies of what the kernels cannot read as it lies; Declined if they cannot do it."""
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    if max(keys, heads // max(kv_heads, 1) * queries) > MOST:
        raise Declined(f"{queries} queries of {heads} heads and {keys} keys: at most 2^30 rows of a head of keys")
    if not q.shape[3] or not v.shape[3]:
        raise Declined("heads of no numbers")
    dims = held_dim(q.shape[3]), held_dim(v.shape[3])
    q, k, v = (readable(x) for x in (q, k, v))
    dout = None if dout is None else readable(_same_dtype(dout, v))
    bias = None if scoring.bias is None else _same_dtype(scoring.bias, q)
    dropout, same = scoring.dropout, isinstance(scoring.q_offset, int)
    keep = None if dropout is None else dropout.keep
    tables = table(bias), table(scoring.mask), table(keep)
    strides = (*_strides(q), *_strides(k), *_strides(v), *((0, 0, 0) if dout is None else _strides(dout)))
    left, right = (UNBOUNDED if bound is None else bound for bound in (scoring.left, scoring.right))
    seed, p, first_key = (0, 0.0, 0) if dropout is None else (dropout.seed, dropout.p, dropout.first_key)
    return Problem(
        q, k, v, dout,
        options=(
            *(one[0] for one in tables),
            None if same else long(scoring.q_offset),
            None if scoring.kv_lengths is None else long(scoring.kv_lengths),
        ),
        strides=(*strides, *(stride for one in tables for stride in one[1:])),
        positions=(left, right, scoring.q_offset if same else 0, first_key, round(p * 2**32)),
        sizes=(batch, heads, kv_heads, queries, keys, q.shape[3], v.shape[3]),
        tail=(
            int(scoring.hides()),
            int(_has_pairs(bias, keys)), seed % 2**32, seed >> 32, scoring.scale, scoring.softcap or 0.0,
            1.0 / (1.0 - p) if p < 1 else 0.0,
        ),
        switches=_switches(scoring, keep),
        dims=dims,
    )  # fmt: skip


def _switches(scoring: Any, keep: Any) -> tuple[str, ...]:
    dropout = 0 if scoring.dropout is None else 1 if keep is None else 2
    given = scoring.bias is not None, scoring.mask is not None, scoring.softcap is not None, dropout, scoring.scale < 0
    return tuple(f"{name}={int(value)}" for name, value in zip(SWITCHES, given, strict=True))


def _has_pairs(bias: Any, keys: int) -> bool:
    """Whether the bias of every even key and the next lie side by side, at an even place."""
    if bias is None or keys % 2 or bias.shape[3] == 1:
        return False
    strides = [stride for size, stride in zip(bias.shape[:3], bias.strides[:3], strict=True) if size > 1]
    is_even = all(place % (2 * bias.itemsize) == 0 for place in (bias.data.ptr, *strides))
    return bool(bias.strides[3] == bias.itemsize and is_even)


def _same_dtype(x: Any, like: Any) -> Any:
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def _strides(x: Any) -> tuple[int, int, int]:
    """Of batch, head and row, in numbers."""
    return tuple(  # type: ignore[return-value]
        0 if size == 1 else stride // x.itemsize for size, stride in zip(x.shape[:3], x.strides[:3], strict=True)
    )


def readable(x: Any) -> Any:
    """`x` in rows of whole chunks of 16 bytes: itself where it is, else a copy, its rows filled up with zeros."""
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


def filled_up(x: Any, width: int) -> Any:
    """A contiguous array with rows of `width` numbers, zeros at their ends: itself where it has them."""
    return x if x.shape[3] == width else _copy(x, width)


def _copy(x: Any, width: int) -> Any:
    bits = np.dtype(f"uint{8 * x.itemsize}")  # CuPy has few functions for bfloat16
    filled = empty((*x.shape[:3], width), bits)
    filled[..., : x.shape[3]] = x.view(bits)
    filled[..., x.shape[3] :] = 0
    return filled.view(x.dtype)

"""Weights of linear maps packed for `linear.py`, once, when a model is prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.vector.lanes import tile_size

FLOAT32 = np.dtype(np.float32)
LINE = 64  # bytes of a cache line


class Packed(NamedTuple):
    """One map, or several of the same input beside each other."""

    weight: np.ndarray  # (panels, K, W) float32, or (panels, K, W / 2) words of two halves
    bias: np.ndarray  # (panels W,)
    panels: int
    depth: int
    halves: bool
    outputs: int

    @property
    def columns(self) -> int:
        """The outputs with those of the last panel that do not exist."""
        return self.panels * tile_size(32)[0]


def aligned_empty(shape: tuple[int, ...], dtype: Any = FLOAT32) -> np.ndarray:
    """Memory that begins with a cache line, filled with zeros."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -address(memory) % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def pack_linear(maps: Sequence[dict[str, Any]], halves: bool) -> Packed:
    """Pack maps with `weight` (N, K) and maybe `bias` (N,), whose outputs are joined."""
    width, depth = tile_size(32)[0], maps[0]["weight"].shape[1]
    outputs = sum(each["weight"].shape[0] for each in maps)
    panels = -(-outputs // width)
    weight = aligned_empty((panels, depth, width // 2 if halves else width), np.uint32 if halves else FLOAT32)
    bias = aligned_empty((panels * width,))
    joined = (
        np.concatenate([np.asarray(each["weight"], FLOAT32) for each in maps]) if len(maps) > 1 else maps[0]["weight"]
    )
    first = 0
    for each in maps:
        if each.get("bias") is not None:
            bias[first : first + each["weight"].shape[0]] = each["bias"]
        first += each["weight"].shape[0]
    for p in range(panels):
        some = np.asarray(joined[p * width : (p + 1) * width], FLOAT32)
        if halves:
            upper = np.zeros((width, depth), np.uint32)
            upper[: len(some)] = rounded_bits(some) >> 16
            weight[p] = (upper[: width // 2] | upper[width // 2 :] << 16).T
        else:
            weight[p, :, : len(some)] = some.T
    return Packed(weight, bias, panels, depth, halves, outputs)


def rounded_bits(x: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded to bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), bits & np.uint32(0xFFFF0000) | np.uint32(0x00400000), rounded).astype(np.uint32)

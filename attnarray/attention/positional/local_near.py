"""The keys of windows around given centers, gathered, and what belongs to them; sums back to all keys."""

from __future__ import annotations

import math
from functools import reduce
from operator import and_
from typing import NamedTuple

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.ops.segments import sum_segments
from attnarray.random import attention_keep_mask_at


class Around(NamedTuple):
    """Windows of the keys within `window` of a center, where the weights take a Gaussian of deviation `sigma`."""

    centers: Array  # (B, 1, T), from 0 to S
    window: int
    sigma: float

    def rows(self, rows: slice) -> Around:
        """Those of these queries."""
        return self._replace(centers=self.centers[:, :, rows])


class Near(NamedTuple):
    """The keys of the windows of some queries. R counts queries over all batches, N the keys of a window."""

    keys: Array  # (B, T, N) their numbers
    indices: Array  # (R N,) among the keys of all batches
    distances: Array  # (R, 1, 1, N) from the center
    factor: Array  # (R, 1, 1, N) of the weights: the Gaussian, and dropout
    modifiers: ScoreModifiers  # with a mask (R, 1, 1, N) of all that hides a key

    def of(self, x: Array) -> Array:
        """The rows of these keys from (B, 1, S, E): (R, 1, N, E)."""
        xp = namespace_of(x)
        rows = xp.take(xp.reshape(x, (x.shape[0] * x.shape[2], x.shape[3])), self.indices, axis=0)
        return xp.reshape(rows, (self.factor.shape[0], 1, self.factor.shape[3], x.shape[3]))

    def sum(self, rows: Array, like: Array) -> Array:
        """What rows (R, 1, N, E) add to each key: (B, 1, S, E), as `like`."""
        xp = namespace_of(rows)
        flat = xp.reshape(rows, (self.indices.shape[0], like.shape[3]))
        return xp.reshape(sum_segments(flat, self.indices, like.shape[0] * like.shape[2]), like.shape)


def near_keys(k: Array, around: Around, modifiers: ScoreModifiers) -> Near:
    """The keys within the windows of these queries, and what is done with their scores and weights."""
    centers, window, sigma = around
    xp = namespace_of(k, centers)
    S, count = k.shape[2], min(2 * window + 1, k.shape[2])
    center = centers[:, 0, :, None]  # (B, T, 1)
    lowest, highest = ends(center, S, window)
    keys = xp.clip(lowest, 0, S - count) + xp.arange(count, dtype=lowest.dtype, device=device_of(k))  # (B, T, N)
    distances = xp.astype(keys, centers.dtype) - center
    factor = gaussian(distances, sigma)
    keep = _kept(modifiers, keys)
    if keep is not None and modifiers.dropout is not None:
        p = modifiers.dropout.p
        factor = xp.where(keep, factor * (1.0 / (1.0 - p) if p < 1 else 0.0), 0.0)
    mask = reduce(and_, [(keys >= lowest) & (keys <= highest), *_rules(modifiers, keys)])
    bias = None if modifiers.bias is None else _by_key(gathered(modifiers.bias, keys))
    near = ScoreModifiers(modifiers.scale, modifiers.softcap, bias, _by_key(mask))
    return Near(keys, _among_all(keys, S), _by_key(distances), _by_key(factor), near)


def ends(center: Array, S: int, window: int) -> tuple[Array, Array]:
    """The first and the last key of a window. A whole number is added to rounded ones, so no rounding moves them."""
    xp = namespace_of(center)
    index = index_dtype(xp, center)
    known = xp.where((center >= 0) & (center <= S), center, 0.0)  # NaN is no position
    return xp.astype(xp.ceil(known), index) - window, xp.astype(xp.floor(known), index) + window


def gaussian(distances: Array, sigma: float) -> Array:
    return namespace_of(distances).exp(-0.5 * (distances / sigma) ** 2)


def _rules(modifiers: ScoreModifiers, keys: Array) -> list[Array]:
    """What the mask, the lengths and the band of positions allow of keys (B, T, N)."""
    xp = namespace_of(keys)
    allowed = [] if modifiers.mask is None else [gathered(modifiers.mask, keys)]
    if modifiers.kv_lengths is not None:
        allowed.append(keys < modifiers.kv_lengths[:, None, None])
    offset = modifiers.q_offset if isinstance(modifiers.q_offset, int) else modifiers.q_offset[:, None, None]
    position = xp.arange(keys.shape[1], dtype=keys.dtype, device=device_of(keys))[None, :, None] + offset
    if modifiers.left is not None:
        allowed.append(keys >= position - modifiers.left)
    if modifiers.right is not None:
        allowed.append(keys <= position + modifiers.right)
    return allowed


def _kept(modifiers: ScoreModifiers, keys: Array) -> Array | None:
    """Which weights dropout keeps, (B, T, N); None without dropout."""
    dropout = modifiers.dropout
    if dropout is None:
        return None
    if dropout.keep is not None:
        return gathered(dropout.keep, keys)
    return attention_keep_mask_at(
        dropout.seed, dropout.p, keys, namespace_of(keys), device_of(keys), modifiers.q_offset
    )


def by_row(x: Array) -> Array:
    """(B, 1, T, N) -> (R, 1, 1, N)."""
    return namespace_of(x).reshape(x, (x.shape[0] * x.shape[2], 1, 1, x.shape[3]))


def _by_key(x: Array) -> Array:
    """(B, T, N) -> (R, 1, 1, N)."""
    return by_row(x[:, None, :, :])


def _among_all(keys: Array, S: int) -> Array:
    """Keys (B, T, N) counted over the batches: (R N,)."""
    xp = namespace_of(keys)
    first = S * xp.arange(keys.shape[0], dtype=keys.dtype, device=device_of(keys))
    return xp.reshape(keys + first[:, None, None], (math.prod(keys.shape),))


def _entries(shape: tuple[int, ...], keys: Array) -> Array:
    """Where an array (B|1, 1, T|1, S|1) holds what belongs to keys (B, T, N): (R N,)."""
    xp = namespace_of(keys)
    b, _, t, s = shape
    rows, batches = (xp.arange(n, dtype=keys.dtype, device=device_of(keys)) for n in (keys.shape[1], keys.shape[0]))
    indices = keys * (1 if s > 1 else 0) + (rows * (s if t > 1 else 0))[:, None]
    return xp.reshape(indices + (batches * (t * s if b > 1 else 0))[:, None, None], (math.prod(keys.shape),))


def gathered(array: Array, keys: Array) -> Array:
    """The entries of an array (B|1, 1, T|1, S|1) for keys (B, T, N), in the shape of these."""
    xp = namespace_of(array)
    every = xp.reshape(array, (math.prod(array.shape),))
    return xp.reshape(xp.take(every, _entries(array.shape, keys), axis=0), keys.shape)


def sum_in_shape(dscores: Array, shape: tuple[int, ...], keys: Array) -> Array:
    """Numbers (R, 1, 1, N) of keys (B, T, N), summed into an array (B|1, 1, T|1, S|1)."""
    xp = namespace_of(dscores)
    column = xp.reshape(dscores, (math.prod(keys.shape), 1))
    return xp.reshape(sum_segments(column, _entries(shape, keys), math.prod(shape)), shape)

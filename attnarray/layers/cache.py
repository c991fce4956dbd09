"""The keys and values of the positions that a layer has seen, so that the next ones need not compute them again."""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, write_rows
from attnarray.layers.initial import zeros


class KVCache(NamedTuple):
    """Room for keys (B, Hkv, S, D) and values (B, Hkv, S, Dv), of which the first `length` positions are there."""

    key: Array
    value: Array
    length: int

    def with_next(self, key: Array, value: Array) -> KVCache:
        """The cache with the next positions, (B, Hkv, T, D), written into the same arrays (a copy where a library has
        none to write to)."""
        max_seq_len, past = self.key.shape[2], self.length + key.shape[2]
        for name, array, room in (("key", key, self.key), ("value", value, self.value)):
            expected = (*room.shape[:2], key.shape[2], room.shape[3])
            checks.shape(name, array, expected, "as the cache has room for: (B, Hkv, positions, D)")
        if past > max_seq_len:
            raise ValueError(
                f"`cache` has room for {max_seq_len} positions, holds {self.length} and was given {key.shape[2]} more. "
                "Make a longer one."
            )
        return KVCache(write_rows(self.key, self.length, key), write_rows(self.value, self.length, value), past)

    def empty_like(self, max_seq_len: int) -> KVCache:
        """An empty cache with room for `max_seq_len` positions, for the same sequences and heads, beside this one."""
        max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "how many positions there is room for")
        xp = namespace_of(self.key)
        key, value = (
            xp.zeros((*room.shape[:2], max_seq_len, room.shape[3]), dtype=room.dtype, device=device_of(room))
            for room in (self.key, self.value)
        )
        return KVCache(key, value, 0)


class DecoderCache(NamedTuple):
    """What a block that attends to a memory keeps: its own positions so far, and the memory's keys and values."""

    own: KVCache
    memory: KVCache


def check_cache(cache: Any, x: Array) -> None:
    """Check that the next positions x are (B, T, E), of as many sequences as the cache has room for."""
    if not isinstance(cache, KVCache):
        raise TypeError(f"`cache` is {checks.shown(cache)}, expected a KVCache, as `cache` of the layer makes it.")
    if x.ndim != 3 or x.shape[0] != cache.key.shape[0]:
        batch = cache.key.shape[0]
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}, expected (B, T, E): the next T positions of the {batch} sequences that "
            "`cache` has room for."
        )


def empty_cache(batch: int, max_seq_len: int, kv_heads: int, key_dim: int, value_dim: int, dtype: str) -> KVCache:
    """A cache without any position."""
    checks.one_of("dtype", dtype, checks.FLOATS)
    batch = checks.whole("batch", batch, 0, 2**31, "the number of sequences")
    max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "how many positions there is room for")
    return KVCache(
        zeros(batch, kv_heads, max_seq_len, key_dim, dtype=dtype),
        zeros(batch, kv_heads, max_seq_len, value_dim, dtype=dtype),
        0,
    )

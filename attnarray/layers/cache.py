"""Key-value caches of attention layers, for decoding step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, write_rows
from attnarray.layers.initial import zeros


class KVCache(NamedTuple):
    """Keys (B, Hkv, S, D) and values (B, Hkv, S, Dv), of which the first `length` positions are filled."""

    key: Array
    value: Array
    length: int

    def with_next(self, key: Array, value: Array) -> KVCache:
        """Return the cache with the next positions (B, Hkv, T, D) written into the same arrays, or into copies where
        arrays are immutable."""
        for name, array, stored in (("key", key, self.key), ("value", value, self.value)):
            expected = (*stored.shape[:2], key.shape[2], stored.shape[3])
            checks.shape(name, array, expected, "the shape of the cache: (B, Hkv, positions, D)")
        past = check_room(self.length, key.shape[2], self.key.shape[2])
        return KVCache(write_rows(self.key, self.length, key), write_rows(self.value, self.length, value), past)

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return int(self.key.shape[0])

    def up_to(self, length: int) -> KVCache:
        """Return the cache without the positions from `length` on; it shares the arrays."""
        return self._replace(length=length)

    def rows(self, rows: Array) -> KVCache:
        """Return a new cache of the sequences `rows` (N,)."""
        take = namespace_of(self.key).take
        return self._replace(key=take(self.key, rows, axis=0), value=take(self.value, rows, axis=0))

    def empty_like(self, max_seq_len: int) -> KVCache:
        """Return an empty cache for `max_seq_len` positions of the same sequences and heads, on the same device."""
        max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "the largest number of positions")
        xp = namespace_of(self.key)
        key, value = (
            xp.zeros((*stored.shape[:2], max_seq_len, stored.shape[3]), dtype=stored.dtype, device=device_of(stored))
            for stored in (self.key, self.value)
        )
        return KVCache(key, value, 0)


class LinearCache(NamedTuple):
    """The state of linear attention (B, Hkv, Dk, Dv), the last steps of its convolutions, and how many came before.

    A step returns a new one: its size does not depend on the length.
    """

    state: Array
    convs: dict[str, Array]
    length: int

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return int(self.state.shape[0])

    def up_to(self, length: int) -> LinearCache:
        """Return the same cache, if it has no more positions: no position can be taken out of a state."""
        if length != self.length:
            raise ValueError(
                f"`length` is {length}, but the states of linear attention hold {self.length} positions, and none can "
                "be taken out again. Keep the cache from before the last step instead: a step makes new states."
            )
        return self

    def rows(self, rows: Array) -> LinearCache:
        """Return a new cache of the sequences `rows` (N,)."""
        take = namespace_of(self.state).take
        convs = {name: take(steps, rows, axis=0) for name, steps in self.convs.items()}
        return self._replace(state=take(self.state, rows, axis=0), convs=convs)


class DecoderCache(NamedTuple):
    """The caches of a block with cross-attention: of its self-attention, and of the memory."""

    own: KVCache
    memory: KVCache


def check_room(length: int, more: int, max_seq_len: int) -> int:
    """Return the length of a cache after so many more positions, checked."""
    if length + more > max_seq_len:
        raise ValueError(
            f"`cache` has `max_seq_len` {max_seq_len}, holds {length} positions and was given {more} more. Make one "
            "with a larger `max_seq_len`."
        )
    return length + more


def check_cache(cache: Any, x: Array) -> None:
    """Check that x is (B, T, E), with the batch size of the cache."""
    if not hasattr(cache, "with_next"):
        raise TypeError(f"`cache` is {checks.shown(cache)}, expected a KVCache from the layer's `cache`.")
    if x.ndim != 3 or x.shape[0] != cache.batch:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}, expected (B, T, E): the next T positions of the {cache.batch} sequences "
            "of `cache`."
        )


def check_linear_cache(cache: Any, x: Array) -> None:
    """Check that x is (B, T, E), with the batch size of the cache."""
    if not isinstance(cache, LinearCache):
        raise TypeError(f"`cache` is {checks.shown(cache)}, expected a LinearCache from the layer's `cache`.")
    if x.ndim != 3 or x.shape[0] != cache.state.shape[0]:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}, expected (B, T, E): the next T positions of the {cache.state.shape[0]} "
            "sequences of `cache`."
        )


def empty_cache(batch: int, max_seq_len: int, num_kv_heads: int, key_dim: int, value_dim: int, dtype: str) -> KVCache:
    """Return a cache of length 0."""
    checks.choice("dtype", dtype, checks.FLOATS)
    batch = checks.whole("batch", batch, 0, 2**31, "the number of sequences")
    max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "the largest number of positions")
    return KVCache(
        zeros(batch, num_kv_heads, max_seq_len, key_dim, dtype=dtype),
        zeros(batch, num_kv_heads, max_seq_len, value_dim, dtype=dtype),
        0,
    )

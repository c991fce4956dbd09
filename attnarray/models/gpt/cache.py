"""The key-value cache of `GPT`, for generating token by token."""

from __future__ import annotations

from typing import NamedTuple

from attnarray import checks
from attnarray.backend import Array, namespace_of
from attnarray.layers.cache import KVCache
from attnarray.ops.embedding import check_range


class GPTCache(NamedTuple):
    """The key-value cache of each block, and the length of the left padding of each sequence; None for 0."""

    blocks: tuple[KVCache, ...]
    starts: Array | None

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return int(self.blocks[0].key.shape[0])

    @property
    def length(self) -> int:
        """The number of positions that are filled."""
        return self.blocks[0].length

    @property
    def max_seq_len(self) -> int:
        """The largest number of positions."""
        return int(self.blocks[0].key.shape[2])

    def up_to(self, length: int) -> GPTCache:
        """Return the cache without the positions from `length` on; it shares the arrays."""
        length = checks.whole("length", length, 0, self.length, f"the positions to keep of {self.length}")
        return self._replace(blocks=tuple(block._replace(length=length) for block in self.blocks))

    def rows(self, rows: Array) -> GPTCache:
        """Return a new cache of the sequences `rows` (N,), in this order; repetitions are allowed."""
        xp, rows = namespace_of(self.blocks[0].key), checks.integer("rows", rows)
        check_range("rows", rows, self.batch, "the sequences of the cache")
        blocks = [
            block._replace(key=xp.take(block.key, rows, axis=0), value=xp.take(block.value, rows, axis=0))
            for block in self.blocks
        ]
        return GPTCache(tuple(blocks), None if self.starts is None else xp.take(self.starts, rows, axis=0))

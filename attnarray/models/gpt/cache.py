"""What a model of text has seen of some sequences, so that the next tokens cost only themselves."""

from __future__ import annotations

from typing import NamedTuple

from attnarray import checks
from attnarray.backend import Array, namespace_of
from attnarray.layers.cache import KVCache
from attnarray.ops.embedding import check_range


class GPTCache(NamedTuple):
    """The keys and values of each block, and at which place each sequence starts: None for 0."""

    blocks: tuple[KVCache, ...]
    starts: Array | None

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return int(self.blocks[0].key.shape[0])

    @property
    def length(self) -> int:
        """How many places there are already."""
        return self.blocks[0].length

    @property
    def max_seq_len(self) -> int:
        """How many places there is room for."""
        return int(self.blocks[0].key.shape[2])

    def rows(self, rows: Array) -> GPTCache:
        """A cache of its own of the sequences numbered `rows` (N,), in this order, some more than once if wanted."""
        xp, rows = namespace_of(self.blocks[0].key), checks.integer("rows", rows)
        check_range("rows", rows, self.batch, "the sequences of the cache")
        blocks = [
            block._replace(key=xp.take(block.key, rows, axis=0), value=xp.take(block.value, rows, axis=0))
            for block in self.blocks
        ]
        return GPTCache(tuple(blocks), None if self.starts is None else xp.take(self.starts, rows, axis=0))

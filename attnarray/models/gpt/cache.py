"""The cache of `GPT`, for generating token by token."""

from __future__ import annotations

from typing import NamedTuple

from attnarray import checks
from attnarray.backend import Array, namespace_of
from attnarray.layers.cache import KVCache, LinearCache
from attnarray.layers.paged_cache import PagedKVCache
from attnarray.ops.embedding import check_range


class GPTCache(NamedTuple):
    """The cache of each block, and the length of the left padding of each sequence; None for 0.

    A block with attention has a `KVCache`, or in pages a `PagedKVCache`, one with a linear mixer a `LinearCache`.
    """

    blocks: tuple[KVCache | PagedKVCache | LinearCache, ...]
    starts: Array | None

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return self.blocks[0].batch

    @property
    def length(self) -> int:
        """The number of positions that are filled."""
        return self.blocks[0].length

    @property
    def max_seq_len(self) -> int | None:
        """The largest number of positions; None if all blocks have states, which do not grow."""
        sizes = (
            block.max_seq_len if isinstance(block, PagedKVCache) else int(block.key.shape[2])
            for block in self.blocks
            if not isinstance(block, LinearCache)
        )
        return next(sizes, None)

    @property
    def is_paged(self) -> bool:
        """Whether keys and values are in pages."""
        return any(isinstance(block, PagedKVCache) for block in self.blocks)

    @property
    def pages_in_use(self) -> int:
        """The pages of all blocks that some sequence has, those of other caches with the same pages included."""
        return sum(block.pages.pages_in_use for block in self.blocks if isinstance(block, PagedKVCache))

    @property
    def has_states(self) -> bool:
        """Whether a block has a state, which cannot forget its last positions."""
        return any(isinstance(block, LinearCache) for block in self.blocks)

    def up_to(self, length: int) -> GPTCache:
        """Return the cache without the positions from `length` on; it shares the arrays.

        A cache with states keeps all positions, or raises a ValueError.
        """
        length = checks.whole("length", length, 0, self.length, f"the positions to keep of {self.length}")
        return self._replace(blocks=tuple(block.up_to(length) for block in self.blocks))

    def rows(self, rows: Array) -> GPTCache:
        """Return a new cache of the sequences `rows` (N,), in this order; repetitions are allowed."""
        rows = checks.integer("rows", rows)
        check_range("rows", rows, self.batch, "the sequences of the cache")
        starts = None if self.starts is None else namespace_of(self.starts).take(self.starts, rows, axis=0)
        return GPTCache(tuple(block.rows(rows) for block in self.blocks), starts)

    def paged(self, page_size: int) -> GPTCache:
        """Return a cache of the same positions in pages, which `rows` shares instead of copying: see `PagedCache`."""
        page_size = checks.whole("page_size", page_size, 1, 2**31, "the positions of a page")
        made = (
            PagedKVCache.from_cache(block, page_size) if isinstance(block, KVCache) else block for block in self.blocks
        )
        return self._replace(blocks=tuple(made))

    def free(self) -> None:
        """Give pages back; a cache that has some must not be used any more."""
        for block in self.blocks:
            if isinstance(block, PagedKVCache):
                block.free()

"""Random blocks of keys, as in BigBird."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.masks.constraints import LARGEST_POSITION
from attnarray.masks.geometry import Grid, Kinds, Pairs, Sizes
from attnarray.masks.mask import Mask
from attnarray.masks.patterns import block_kinds, pick_blocks
from attnarray.random import Philox, as_seed, philox_4x32, seed_words

BLOCK_STREAM = 2**32 - 3  # of the last counter word: apart from all other uses of a seed


@dataclass(frozen=True)
class RandomBlocks(Mask):
    """Each block of queries attends to `count` random blocks of keys, the same ones on every machine.

    `Window(192, 192) | Global(128) | RandomBlocks(seed)` is BigBird's pattern with blocks of 64.

    Parameters
    ----------
    seed : int or Philox
    count : int
        Blocks of keys for each block of queries; all if there are fewer.
    size : int
        Positions in a block.
    per_head : bool
        Whether each head has blocks of its own.

    References
    ----------
    Zaheer et al., "Big Bird: transformers for longer sequences", 2020, arXiv:2007.14062.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.RandomBlocks(0, count=1, size=2).to_dense(4, 6).sum(axis=1).tolist()
    [2, 2, 2, 2]
    """

    seed: int | Philox
    count: int = 3
    size: int = 64
    per_head: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", as_seed(self.seed))
        meanings = {"count": "the number of blocks of keys", "size": "the positions of a block"}
        for name, meaning in meanings.items():
            value = checks.whole(f"RandomBlocks.{name}", getattr(self, name), 1, LARGEST_POSITION, meaning)
            object.__setattr__(self, name, value)
        checks.flag("RandomBlocks.per_head", self.per_head)

    def allows(self, pairs: Pairs) -> Any:
        rows, columns = pairs.q // self.size, pairs.k // self.size
        first, past = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        return pick_blocks(self._table(first, past, pairs.sizes), pairs, rows - first, columns)

    def kinds(self, grid: Grid) -> Kinds:
        if grid.is_part:
            raise ValueError(
                "`RandomBlocks` draws among all keys, of which a part is given here. Draw once, and give the table: "
                "attnarray.Blocks(table, size)."
            )
        row, last_row = grid.q_first // self.size, grid.q_last // self.size
        first = int(row.min())
        table = self._table(first, int(last_row.max()) + 1, grid.sizes)
        return block_kinds(table, row - first, last_row - first, grid.k_first // self.size, grid.k_last // self.size)

    def _table(self, first: int, past: int, sizes: Sizes) -> np.ndarray:
        """The chosen blocks of keys (1, H|1, rows, K): those with the smallest random numbers."""
        heads, columns = sizes.heads if self.per_head else 1, -(-sizes.keys // self.size)
        row, column = np.arange(first, past)[:, None], np.arange(columns)
        head = np.arange(heads)[:, None, None]
        counters = row & 0xFFFFFFFF, column, head, np.asarray(BLOCK_STREAM)
        drawn: Any = philox_4x32(counters, seed_words(as_seed(self.seed)))[0]
        words = np.broadcast_to(drawn, (heads, past - first, columns))
        table = np.zeros(words.shape, bool)
        chosen = np.argsort(words, axis=-1, kind="stable")[..., : self.count]
        np.put_along_axis(table, chosen, True, axis=-1)
        return table[None]

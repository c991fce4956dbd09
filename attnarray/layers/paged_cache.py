"""A key-value cache in pages, which sequences share: beams and common prompts are stored once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from attnarray.backend import Array, device_of, dtype_name, namespace_of, to_numpy, write_rows
from attnarray.layers.cache import KVCache, check_room
from attnarray.layers.initial import zeros
from attnarray.masks import Mask

MOST = 2**31


class PagedCache:
    """Keys and values of many sequences, in pages of `page_size` positions that are given out when they are needed.

    Each sequence has a table of its pages. `fork` gives a new sequence the same pages: a page that several have is
    copied when one of them writes to it. Nothing is written when pages do not suffice.

    Parameters
    ----------
    num_pages : int
        The most pages in use at a time; memory is taken when a page is first used.
    page_size : int
        Positions in a page.
    num_kv_heads, key_dim : int
    value_dim : int, optional
        That of the keys by default.
    dtype : str

    References
    ----------
    Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023,
    arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> cache = aa.layers.PagedCache(num_pages=8, page_size=4, num_kv_heads=2, key_dim=8, dtype="float64")
    >>> prompt = cache.add()
    >>> k, v = np.random.default_rng(0).standard_normal((2, 2, 6, 8))  # heads, positions, dim
    >>> cache.append(prompt, k, v)
    >>> beam = cache.fork(prompt)
    >>> cache.append(beam, k[:, :1], v[:, :1])
    >>> cache.length(prompt), cache.length(beam), cache.pages_in_use
    (6, 7, 3)
    """

    def __init__(
        self, num_pages: int, page_size: int, num_kv_heads: int, key_dim: int, value_dim: int | None = None,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        self.num_pages = checks.whole("num_pages", num_pages, 1, MOST, "the most pages in use at a time")
        self.page_size = checks.whole("page_size", page_size, 1, MOST, "the positions of a page")
        self.num_kv_heads = checks.whole("num_kv_heads", num_kv_heads, 1, MOST, "the heads of keys and values")
        self.key_dim = checks.whole("key_dim", key_dim, 1, MOST, "the numbers of a key")
        value_dim = key_dim if value_dim is None else value_dim
        self.value_dim = checks.whole("value_dim", value_dim, 1, MOST, "the numbers of a value")
        checks.choice("dtype", dtype, checks.FLOATS)
        self.dtype = dtype
        self._pages: list[tuple[Any, Any]] = []  # keys (Hkv, page_size, D) and values of each page
        self._owners: list[int] = []  # how many sequences have a page
        self._unused: list[int] = []  # pages that were used and are free
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0

    @property
    def pages_in_use(self) -> int:
        """How many pages some sequence has."""
        return len(self._pages) - len(self._unused)

    @property
    def free_pages(self) -> int:
        """How many pages can still be given out."""
        return self.num_pages - self.pages_in_use

    def add(self) -> int:
        """Begin an empty sequence, and return its number."""
        return self._new([], 0)

    def fork(self, sequence: int) -> int:
        """Begin a sequence with the same positions, and return its number; no page is copied."""
        table = self.table(sequence)
        for page in table:
            self._owners[page] += 1
        return self._new(list(table), self._lengths[sequence])

    def free(self, sequence: int) -> None:
        """End a sequence; its pages that no other has are free."""
        for page in self.table(sequence):
            self._release(page)
        del self._tables[sequence], self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all positions from `length` on, such as those of a draft that was refused."""
        table = self._table(sequence)
        limits = f"the number of positions to keep of the {self._lengths[sequence]}"
        length = checks.whole("length", length, 0, self._lengths[sequence], limits)
        kept = -(-length // self.page_size)
        for page in table[kept:]:
            self._release(page)
        del table[kept:]
        self._lengths[sequence] = length

    def length(self, sequence: int) -> int:
        """The number of positions of a sequence."""
        self._table(sequence)
        return self._lengths[sequence]

    def table(self, sequence: int) -> tuple[int, ...]:
        """The pages of a sequence, in order."""
        return tuple(self._table(sequence))

    def append(self, sequence: int, key: Array, value: Array) -> None:
        """Write the keys (Hkv, T, D) and values (Hkv, T, Dv) of the next positions of a sequence.

        Raises
        ------
        ValueError
            If pages do not suffice, or shapes do not fit; then nothing is written.
        """
        table, length = self._table(sequence), self.length(sequence)
        namespace = checks.namespace(key=key, value=value)
        for name, array, dim in (("key", key, self.key_dim), ("value", value, self.value_dim)):
            count = key.shape[1] if key.ndim == 3 else -1
            checks.shape(name, array, (self.num_kv_heads, count, dim), "(Hkv, positions, dim) of the cache")
            dtype = checks.floating(**{name: array})
            if dtype != self.dtype:
                raise TypeError(f"`{name}` has dtype {dtype}, but the cache has {self.dtype}. Convert it first.")
        past = length + key.shape[1]
        shared = past > length and length % self.page_size != 0 and self._owners[table[-1]] > 1
        needed = -(-past // self.page_size) - len(table) + shared
        if needed > self.free_pages:
            raise ValueError(
                f"{key.shape[1]} more positions of sequence {sequence} need {needed} pages of {self.page_size} "
                f"positions, but {self.free_pages} of the {self.num_pages} are free. Free sequences, or make a cache "
                "of more pages; nothing was written."
            )
        if shared:
            page = table[-1]
            own, other = (namespace.asarray(x, copy=True) for x in self._pages[page])
            table[-1] = self._take((own, other))
            self._release(page)
        start = length
        while start < past:
            stop = min(past, (start // self.page_size + 1) * self.page_size)
            self._write(table, start, stop, length, key, value)
            start = stop
        self._lengths[sequence] = past

    def contents(self, sequence: int) -> tuple[Any, Any]:
        """The keys (Hkv, S, D) and values (Hkv, S, Dv) of a sequence, as new arrays."""
        pages = [self._pages[page] for page in self._table(sequence)] or [self._empty(0)]
        xp, length = namespace_of(pages[0][0]), self._lengths[sequence]
        key, value = (xp.concat(list(parts), axis=1)[:, :length, :] for parts in zip(*pages, strict=True))
        return key, value

    def attention(self, query: Array, sequences: list[int], attn_mask: Mask | None = None, **options: Any) -> Any:
        """Attention of the last T positions of some sequences (N, H, T, D) to all of their own: (N, H, T, Dv).

        Append the keys and values of these positions first. It is causal, and equal to attention from a contiguous
        cache; `attn_mask` intersects with that, such as `Tree` for drafts. Options are those of
        `scaled_dot_product_attention`.
        """
        checks.required(query=query)
        if query.ndim != 4 or query.shape[0] != len(sequences):
            raise ValueError(
                f"`query` has shape {tuple(query.shape)}, expected (N, H, T, D) with the {len(sequences)} `sequences`."
            )
        own = [f"`{name}`" for name in ("is_causal", "q_offset", "kv_lengths", "layout") if name in options]
        if own:
            raise TypeError(f"`PagedCache.attention` sets {', '.join(own)} itself: leave it out.")
        xp, outs = checks.namespace(query=query), []
        for n, sequence in enumerate(sequences):
            offset = self.length(sequence) - query.shape[2]
            if offset < 0:
                raise ValueError(
                    f"`query` has {query.shape[2]} positions, but sequence {sequence} has {self.length(sequence)}. "
                    "Append their keys and values first."
                )
            key, value = self.contents(sequence)
            arrays = query[n : n + 1, ...], key[None, ...], value[None, ...]
            outs.append(scaled_dot_product_attention(*arrays, attn_mask, is_causal=True, q_offset=offset, **options))
        none = xp.zeros((0, *query.shape[1:3], self.value_dim), dtype=query.dtype)
        return xp.concat(outs, axis=0) if outs else none

    def _new(self, table: list[int], length: int) -> int:
        sequence, self._next = self._next, self._next + 1
        self._tables[sequence], self._lengths[sequence] = table, length
        return sequence

    def _table(self, sequence: int) -> list[int]:
        if sequence not in self._tables:
            known = ", ".join(map(str, self._tables)) or "none"
            raise ValueError(f"`sequence` is {checks.shown(sequence)}, expected one of the cache: {known}.")
        return self._tables[sequence]

    def _empty(self, size: int) -> tuple[Any, Any]:
        heads, dtype = self.num_kv_heads, self.dtype
        return zeros(heads, size, self.key_dim, dtype=dtype), zeros(heads, size, self.value_dim, dtype=dtype)

    def _take(self, content: tuple[Any, Any]) -> int:
        """Give out a page."""
        if self._unused:
            page = self._unused.pop()
            self._pages[page], self._owners[page] = content, 1
            return page
        self._pages.append(content)
        self._owners.append(1)
        return len(self._pages) - 1

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if self._owners[page] == 0:
            self._unused.append(page)

    def _write(self, table: list[int], start: int, past: int, first: int, key: Array, value: Array) -> None:
        """Write the positions [start, past), which are in one page; `key` and `value` begin at position `first`."""
        if start % self.page_size == 0:
            xp = namespace_of(key)
            sizes, kind = (self.num_kv_heads, self.page_size), {"dtype": key.dtype, "device": device_of(key)}
            new = xp.zeros((*sizes, self.key_dim), **kind), xp.zeros((*sizes, self.value_dim), **kind)
            table.append(self._take(new))
        (keys, values), rows, at = self._pages[table[-1]], slice(start - first, past - first), start % self.page_size
        self._pages[table[-1]] = write_rows(keys, at, key[:, rows, :]), write_rows(values, at, value[:, rows, :])


class PagedKVCache:
    """Some sequences of a `PagedCache`, of equal length, in place of a `KVCache`: steps of a layer write into pages.

    `key` and `value` are gathered when they are asked for.
    """

    def __init__(self, pages: PagedCache, sequences: Iterable[int], length: int, max_seq_len: int) -> None:
        self.pages, self.sequences, self.length, self.max_seq_len = pages, tuple(sequences), length, max_seq_len

    @classmethod
    def from_cache(cls, cache: KVCache, page_size: int) -> PagedKVCache:
        """Return the positions of a cache in pages of their own."""
        (batch, heads, max_seq_len, dim), value_dim = cache.key.shape, cache.value.shape[3]
        pages = PagedCache(MOST, page_size, heads, dim, value_dim, dtype_name(cache.key.dtype))
        new = cls(pages, [pages.add() for _ in range(batch)], 0, max_seq_len)
        return new.with_next(*(x[:, :, : cache.length, :] for x in (cache.key, cache.value)))

    def with_next(self, key: Array, value: Array) -> PagedKVCache:
        """Return the cache with the next positions (B, Hkv, T, D) written into its pages."""
        past = check_room(self.length, key.shape[2], self.max_seq_len)
        for n, sequence in enumerate(self.sequences):
            self.pages.truncate(sequence, self.length)
            self.pages.append(sequence, key[n, ...], value[n, ...])
        return PagedKVCache(self.pages, self.sequences, past, self.max_seq_len)

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return len(self.sequences)

    @property
    def key(self) -> Any:
        """The keys (B, Hkv, S, D) of all positions, as a new array."""
        return self._gathered(0)

    @property
    def value(self) -> Any:
        """The values (B, Hkv, S, Dv) of all positions, as a new array."""
        return self._gathered(1)

    def up_to(self, length: int) -> PagedKVCache:
        """Return the cache without the positions from `length` on; it shares the pages."""
        return PagedKVCache(self.pages, self.sequences, length, self.max_seq_len)

    def rows(self, rows: Array) -> PagedKVCache:
        """Return a new cache of the sequences `rows` (N,), which have the same pages until they are written to."""
        forks = [self.pages.fork(self.sequences[n]) for n in to_numpy(rows).tolist()]
        return PagedKVCache(self.pages, forks, self.length, self.max_seq_len)

    def free(self) -> None:
        """Give the pages back; the cache must not be used any more."""
        for sequence in self.sequences:
            self.pages.free(sequence)

    def _gathered(self, which: int) -> Any:
        parts = [self.pages.contents(sequence)[which][None, :, : self.length, :] for sequence in self.sequences]
        none = self.pages._empty(self.length)[which][None, ...][:0, ...]
        return namespace_of(*parts, none).concat(parts or [none], axis=0)

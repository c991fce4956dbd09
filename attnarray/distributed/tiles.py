"""Attention of a rank's queries over the keys of one part, tile by tile, and what becomes of its partial results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from attnarray.attention.dot_product.partial import Partial
from attnarray.attention.engine import attention, attention_backward
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.products import hiding_product
from attnarray.backend import Array, accumulator_dtype, device_of, namespace_of, operand_dtype
from attnarray.distributed.masks import PartMask
from attnarray.distributed.sequence import Band, Part, Segment
from attnarray.random import attention_keep_mask

BLOCKS = 4  # of a segment's queries; between two of them messages make progress
SHORTEST_BLOCK = 512
LARGEST_KEEP_MASK = 2**20  # entries of a keep-mask that array code makes


class Block(NamedTuple):
    """Queries at consecutive positions."""

    rows: slice  # of the rank's own queries
    positions: Segment


class Tile(NamedTuple):
    """A block of queries and a segment of the keys of a part."""

    block: int
    columns: slice  # of the keys of the part
    positions: Segment


class Queries(NamedTuple):
    """The queries of a rank, (B, H, T, D), and all that changes the scores of these queries and every key."""

    q: Array
    modifiers: ScoreModifiers  # their positions count from the first key of the whole, as if T began at position 0
    blocks: list[Block]
    band: Band
    first_head: int = 0  # of all heads, on which dropout depends
    mask: PartMask | None = None

    def tiles(self, part: Part) -> Iterator[Tile]:
        """The tiles in which a query may see a key, by position."""
        first = 0
        for segment in part:
            columns = slice(first, first + segment.length)
            first += segment.length
            for n, block in enumerate(self.blocks):
                if self.band.sees(block.positions, segment):
                    yield Tile(n, columns, segment)

    def tile_modifiers(self, tile: Tile) -> ScoreModifiers:
        """The modifiers of a tile; the sinks stay with the merge."""
        rows, positions = self.blocks[tile.block]
        first, keys = tile.positions.start, slice(*tile.positions)
        whole = self.modifiers.rows(rows.start, rows.stop)
        lengths, dropout = whole.kv_lengths, whole.dropout
        if lengths is not None:
            xp = namespace_of(lengths)
            lengths = xp.maximum(lengths - first, xp.zeros_like(lengths))
        own = whole._replace(
            bias=_columns(whole.bias, keys),
            mask=_columns(whole.mask, keys),
            q_offset=self.modifiers.q_offset + positions.start - first,
            kv_lengths=lengths,
            sinks=None,
            dropout=None if dropout is None else dropout._replace(keep=_columns(dropout.keep, keys), first_key=first),
        )
        if self.mask is not None:
            own = self.mask.modifiers(own, self.q[:, :, rows, :], rows.start, tile.positions, (0, self.first_head))
        return self._with_keep_mask(own, rows.stop - rows.start, tile.positions.length)

    def _with_keep_mask(self, own: ScoreModifiers, queries: int, keys: int) -> ScoreModifiers:
        """Dropout of heads that are not the first by an explicit mask: kernels count them from 0."""
        dropout = own.dropout
        if dropout is None or dropout.keep is not None or not self.first_head:
            return own
        xp, shape = namespace_of(self.q), (*self.q.shape[:2], queries, keys)
        keep = attention_keep_mask(
            dropout.seed, dropout.p, shape, xp, device_of(self.q), own.q_offset + dropout.first_key, dropout.first_key,
            self.first_head,
        )  # fmt: skip
        return own._replace(dropout=dropout._replace(keep=keep))


def _columns(array: Array | None, keys: slice) -> Array | None:
    return array if array is None or array.shape[3] == 1 else array[:, :, :, keys]


def make_queries(
    q: Array,
    modifiers: ScoreModifiers,
    part: Part,
    band: Band,
    first_head: int = 0,
    mask: PartMask | None = None,
) -> Queries:
    """The queries of a rank in blocks."""
    keys = band.length if band.length < math.inf else part[-1].stop
    longest = math.inf
    if modifiers.dropout is not None and modifiers.dropout.keep is None and first_head:
        longest = max(LARGEST_KEEP_MASK // max(int(q.shape[0] * q.shape[1] * keys), 1), 1)
    blocks, first = [], 0
    for segment in part:
        size = int(min(max(-(-segment.length // BLOCKS), SHORTEST_BLOCK), longest))
        for start in range(segment.start, segment.stop, size):
            stop = min(start + size, segment.stop)
            row = first + start - segment.start
            blocks.append(Block(slice(row, row + stop - start), Segment(start, stop)))
        first += segment.length
    return Queries(q, modifiers, blocks, band, first_head, mask)


class Results:
    """The merged results of the blocks of queries, in the dtype of sums."""

    def __init__(self, queries: Queries, features: int) -> None:
        q, sinks = queries.q, queries.modifiers.sinks
        xp = namespace_of(q)
        self._queries, self._features, self._wide = queries, features, accumulator_dtype(xp, q.dtype)
        self._blocks: list[Partial] = []
        for rows, _ in queries.blocks:
            shape = (*q.shape[:2], rows.stop - rows.start)
            lse = xp.full(shape, -math.inf, dtype=self._wide, device=device_of(q))
            if sinks is not None:  # a sink is one more key, whose value is 0
                lse = xp.zeros_like(lse) + xp.astype(sinks, self._wide)[None, :, None]
            out = xp.zeros((*shape, features), dtype=self._wide, device=device_of(q))
            self._blocks.append(Partial(out, lse))

    def add(self, part: Part, k: Array, v: Array, poll: Callable[[], None]) -> None:
        """Merge the attention over the keys of one part."""
        queries = self._queries
        for tile in queries.tiles(part):
            q = queries.q[:, :, queries.blocks[tile.block].rows, :]
            operands = [_operand(x) for x in (q, k[:, :, tile.columns, :], v[:, :, tile.columns, :])]
            out, lse = attention(operands[0], operands[1], operands[2], queries.tile_modifiers(tile))
            xp = namespace_of(out)
            own = Partial(xp.astype(out, self._wide, copy=False), xp.astype(lse, self._wide, copy=False))
            self._blocks[tile.block] = merge(self._blocks[tile.block], own)
            poll()

    def joined(self) -> tuple[Array, Array]:
        """The output in the dtype of the queries, and the lse in that of sums."""
        q = self._queries.q
        xp = namespace_of(q)
        if not self._blocks:
            return (
                xp.zeros((*q.shape[:3], self._features), dtype=q.dtype, device=device_of(q)),
                xp.zeros(q.shape[:3], dtype=self._wide, device=device_of(q)),
            )
        out = xp.concat([block.out for block in self._blocks], axis=2)
        return xp.astype(out, q.dtype, copy=False), xp.concat([block.lse for block in self._blocks], axis=2)


def merge(a: Partial, b: Partial) -> Partial:
    """`merge_partials` of two."""
    xp = namespace_of(a.out)
    row_max = xp.maximum(a.lse, b.lse)
    row_max = xp.where(xp.isfinite(row_max), row_max, 0.0)
    exps = xp.exp(a.lse - row_max), xp.exp(b.lse - row_max)
    row_sum = exps[0] + exps[1]
    nonzero = xp.where(row_sum == 0, 1.0, row_sum)
    out = hiding_product((exps[0] / nonzero)[..., None], a.out) + hiding_product((exps[1] / nonzero)[..., None], b.out)
    return Partial(out, xp.where(row_sum == 0, a.lse, row_max + xp.log(nonzero)))


class Gradients:
    """The gradients of a rank's queries and bias, summed over parts; those of the keys of each part."""

    def __init__(self, queries: Queries, dout: Array, dlse: Array | None, out: Array, lse: Array) -> None:
        self._queries, self._dout, self._dlse, self._out, self._lse = queries, dout, dlse, out, lse
        self._wide = accumulator_dtype(namespace_of(dout), dout.dtype)
        self._dq: dict[int, Array] = {}
        self._dbias: dict[tuple[int, int], Array] = {}

    def add(self, part: Part, k: Array, v: Array, poll: Callable[[], None]) -> list[Array]:
        """Add the gradients of one part of the keys; return dk and dv of this rank's queries."""
        xp, queries = namespace_of(k), self._queries
        sums: dict[tuple[str, int], Array] = {}
        for tile in queries.tiles(part):
            dk, dv = self._add_tile(tile, k[:, :, tile.columns, :], v[:, :, tile.columns, :])
            self._sum(sums, ("k", tile.columns.start), dk)
            self._sum(sums, ("v", tile.columns.start), dv)
            poll()
        found: list[list[Array]] = [[], []]
        first = 0
        for segment in part:
            for name, like, segments in zip("kv", (k, v), found, strict=True):
                zeros = None if segment.length and (name, first) in sums else self._zeros(like, segment.length)
                segments.append(sums[name, first] if zeros is None else zeros)
            first += segment.length
        return [xp.concat(segments, axis=2) for segments in found]

    def _add_tile(self, tile: Tile, k: Array, v: Array) -> tuple[Array, Array]:
        """Add the gradients of queries and bias of a tile; return those of its keys and values."""
        queries, rows = self._queries, self._queries.blocks[tile.block].rows
        dout, q, out = (_operand(x[:, :, rows, :]) for x in (self._dout, queries.q, self._out))
        dlse = None if self._dlse is None else self._dlse[:, :, rows]
        lse, modifiers = self._lse[:, :, rows], queries.tile_modifiers(tile)
        dq, dk, dv, dbias, _ = attention_backward(dout, dlse, q, _operand(k), _operand(v), out, lse, modifiers)
        self._sum(self._dq, tile.block, dq)
        if dbias is not None:
            self._sum(self._dbias, self._bias_tile(tile), dbias)
        return dk, dv

    def _zeros(self, like: Array, length: int) -> Array:
        shape = (*like.shape[:2], length, like.shape[3])
        return namespace_of(like).zeros(shape, dtype=self._wide, device=device_of(like))

    def _widened(self, x: Array) -> Any:
        return namespace_of(x).astype(x, self._wide, copy=False)

    def _sum(self, sums: dict[Any, Array], key: Any, addend: Array) -> None:
        wide = self._widened(addend)
        sums[key] = sums[key] + wide if key in sums else wide

    def _bias_tile(self, tile: Tile) -> tuple[int, int]:
        """Where the gradient of the bias goes: 0 for an axis that the bias does not have."""
        shape = self._bias.shape
        return tile.block if shape[2] != 1 else 0, tile.positions.start if shape[3] != 1 else 0

    @property
    def _bias(self) -> Any:
        return self._queries.modifiers.bias

    def query(self) -> Any:
        q, blocks = self._queries.q, self._queries.blocks
        if not blocks:
            return namespace_of(q).zeros_like(q)
        dq = [self._dq.get(n, self._zeros(q, b.rows.stop - b.rows.start)) for n, b in enumerate(blocks)]
        return namespace_of(q).astype(namespace_of(q).concat(dq, axis=2), q.dtype, copy=False)

    def bias(self, keys: list[Segment]) -> Any:
        """The gradient of the bias; `keys` are the segments of all parts."""
        bias, blocks = self._bias, self._queries.blocks
        if bias is None:
            return None
        xp = namespace_of(bias)
        columns = sorted(segment for segment in keys if segment.length) if bias.shape[3] != 1 else [Segment(0, 1)]
        rows = [(n, b.rows.stop - b.rows.start) for n, b in enumerate(blocks)] if bias.shape[2] != 1 else [(0, 1)]
        if not columns or not rows:
            return xp.zeros_like(bias)
        strips = []
        for n, length in rows:
            tiles = [self._dbias.get((n, segment.start)) for segment in columns]
            shapes = [(*bias.shape[:2], length, segment.length) for segment in columns]
            strips.append(xp.concat([
                xp.zeros(shape, dtype=self._wide, device=device_of(bias)) if tile is None else tile
                for shape, tile in zip(shapes, tiles, strict=True)
            ], axis=3))  # fmt: skip
        return xp.astype(xp.concat(strips, axis=2), bias.dtype, copy=False)


def _operand(x: Array) -> Any:
    """In the dtype of products, so that partial results are not rounded to 16 bits."""
    return namespace_of(x).astype(x, operand_dtype(x), copy=False)

"""A call on Dask arrays as blocks: which there are, what each takes, and trees of sums."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import attention_problem
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.backend import dtype_name
from attnarray.dispatch import KernelMode, kernel_mode
from attnarray.distributed.dask.blocks import Block
from attnarray.distributed.masks import PartMask, elements, split_mask
from attnarray.distributed.sequence import Band, Segment, position_band
from attnarray.masks import Dense, Mask
from attnarray.masks.geometry import Sizes

FAN_IN = 8  # parts that one task merges
OVER_SCORES = ("bias", "mask", "keep")


class BlockedCall(NamedTuple):
    """The arrays of a call, with matching chunks, and the numbers of all of it."""

    q: Any
    k: Any
    v: Any
    scores: dict[str, Any]  # arrays with four axes, in chunks of the scores or of 1
    modifiers: ScoreModifiers  # without arrays over the scores
    sinks: Any
    band: Band
    kernels: KernelMode
    mask: PartMask | None  # what is asked about pairs

    @property
    def queries(self) -> tuple[list[Segment], list[Segment], list[Segment]]:
        """The blocks of batches, query heads and queries."""
        batch, heads, rows = (segments(chunks) for chunks in self.q.chunks[:3])
        return batch, heads, rows

    @property
    def keys(self) -> list[Segment]:
        """The blocks of keys."""
        return segments(self.k.chunks[2])

    def blocks_of_keys(self, t: int) -> list[int]:
        """The blocks of keys of which a block of queries may see some, by position."""
        rows = self.queries[2][t]
        return [s for s, keys in enumerate(self.keys) if self.band.sees(rows, keys)]

    def block(self, b: int, h: int, t: int, s: int) -> Block:
        """The numbers of one block."""
        (batch, heads, rows), keys, whole = self.queries, self.keys, self.modifiers
        first = keys[s].start
        q_offset, lengths, dropout = whole.q_offset, whole.kv_lengths, whole.dropout
        if not isinstance(q_offset, int):
            q_offset = q_offset[slice(*batch[b])]
        if lengths is not None:
            lengths = np.maximum(np.asarray(lengths)[slice(*batch[b])] - first, 0)
        own = whole._replace(
            q_offset=q_offset + rows[t].start - first,
            kv_lengths=lengths,
            dropout=None if dropout is None else dropout._replace(first_key=first),
        )
        return Block(own, batch[b].start, heads[h].start, rows[t].start, keys[s], self.kernels, self.mask)

    @property
    def token(self) -> tuple[Any, ...]:
        """What distinguishes the call from others."""
        numbers = [np.asarray(x).tolist() for x in (self.modifiers.q_offset, self.modifiers.kv_lengths, self.sinks)]
        plain = repr(self.modifiers._replace(q_offset=0, kv_lengths=None))
        names = [array.name for array in (self.q, self.k, self.v, *self.scores.values())]
        return plain, numbers, names, list(self.scores), self.kernels, self.mask and self.mask.mask

    def arguments(self, b: int, h: int, t: int, s: int) -> list[Any]:
        """The keys of a block's arrays over the scores, None for what is not given."""
        return [None if name not in self.scores else block_key(self.scores[name], (b, h, t, s)) for name in OVER_SCORES]


def segments(chunks: Sequence[int]) -> list[Segment]:
    ends = list(itertools.accumulate(chunks, initial=0))
    return [Segment(*pair) for pair in itertools.pairwise(ends)]


def block_key(array: Any, index: Sequence[int]) -> tuple[Any, ...]:
    """The key of the chunk with these numbers; 0 along axes with a single chunk."""
    return (array.name, *(n if count > 1 else 0 for n, count in zip(index, array.numblocks, strict=True)))


def tree(
    graph: dict[Any, Any],
    name: str,
    index: tuple[Any, ...],
    keys: list[Any],
    first: Callable[..., Any],
    then: Callable[..., Any],
) -> list[Any]:
    """Join keys in groups, by tasks that are added to the graph, until one task can take them all.

    The first level joins by `first`, which at least one task does; all others by `then`.
    """
    join = first
    for level in itertools.count():
        groups = [keys[n : n + FAN_IN] for n in range(0, len(keys), FAN_IN)]
        keys = [(name, *index, level, n) for n in range(len(groups))]
        graph.update({key: (join, group) for key, group in zip(keys, groups, strict=True)})
        if len(keys) <= FAN_IN:
            return keys
        join = then
    return keys


def blocked_call(
    arrays: tuple[Any, Any, Any], attn_mask: Any, dropout_p: float, is_causal: bool, options: dict[str, Any]
) -> BlockedCall:
    """Check a call on Dask arrays, and bring its arrays to matching chunks."""
    q, k, v = arrays
    for name, array in zip(("query", "key", "value"), arrays, strict=True):
        _check_array(name, array)
    attn_mask, asked, dense = _dense(attn_mask)
    given = {"attn_mask": dense, "bias": options.get("bias"), "dropout_mask": options.get("dropout_mask")}
    like = {name: None if x is None else unfilled(x) for name, x in given.items()}
    checked = {**options, "bias": like["bias"], "dropout_mask": like["dropout_mask"]}
    mask = like["attn_mask"] if attn_mask is None else attn_mask
    modifiers = attention_problem(
        unfilled(q), unfilled(k), unfilled(v), mask, dropout_p, is_causal, **checked
    ).modifiers
    part = None if asked is None else PartMask(asked, Sizes((q.shape[0],), q.shape[1], q.shape[2], k.shape[2]))
    if part is not None:
        part.check(unfilled(q))
    _check_chunks(q, k, v)
    is_bias = dense is not None and dtype_name(dense.dtype) != "bool"
    over = {
        "bias": dense if is_bias else given["bias"],
        "mask": None if is_bias else dense,
        "keep": given["dropout_mask"],
    }
    chunks = (*q.chunks[:3], k.chunks[2])
    scores = {name: _matching(x, chunks) for name, x in over.items() if x is not None}
    dropout = modifiers.dropout
    numbers = modifiers._replace(
        bias=None, mask=None, sinks=None, dropout=None if dropout is None else dropout._replace(keep=None)
    )
    band = position_band(modifiers)
    return BlockedCall(q, k, v, scores, numbers, options.get("sinks"), band, kernel_mode(), part)


def _dense(attn_mask: Any) -> tuple[Mask | None, Mask | None, Any]:
    """The parts of a mask: what constrains positions and lengths, what is asked about pairs, and an array."""
    if not isinstance(attn_mask, Mask):
        return None, None, attn_mask
    if any(isinstance(element, Dense) for element in elements(attn_mask)):
        raise ValueError(
            "`attn_mask` holds Dense, whose array is not divided into chunks. Give a boolean Dask array of its own."
        )
    return *split_mask(attn_mask), None


def _check_array(name: str, array: Any) -> None:
    import dask.array as da

    if not isinstance(array, da.Array):
        hint = "Make one with dask.array.from_array(x, chunks=...)."
        raise TypeError(f"`{name}` is {checks.shown(array)}, expected a Dask array (B, H, T, D). {hint}")
    if array.ndim != 4:
        raise ValueError(f"`{name}` has shape {array.shape}, expected four axes: (B, H, T, D).")
    if any(size != size for size in array.shape):
        raise ValueError(f"`{name}` has chunks of unknown size; call its compute_chunk_sizes() first.")


def unfilled(array: Any) -> np.ndarray:
    """A NumPy array of the same shape and dtype without memory of its own, for checks."""
    dtype = np.dtype(str(dtype_name(array.dtype))) if dtype_name(array.dtype) != "bfloat16" else array.dtype
    return np.broadcast_to(np.zeros((), dtype), array.shape)


def _check_chunks(q: Any, k: Any, v: Any) -> None:
    """Check that chunks of keys fit to each other and to those of the queries."""
    for name, array in (("query", q), ("key", k), ("value", v)):
        if array.numblocks[3] > 1:
            raise ValueError(
                f"`{name}` is divided along its last axis into {array.chunks[3]}, expected one chunk: "
                f"{name}.rechunk({{3: -1}})."
            )
    if k.chunks[:3] != v.chunks[:3]:
        raise ValueError(
            f"`key` has chunks {k.chunks[:3]} of batch, heads and keys but `value` has {v.chunks[:3]}; they must be "
            "equal: value.rechunk({axis: key.chunks[axis] for axis in range(3)})."
        )
    if q.chunks[0] != k.chunks[0]:
        raise ValueError(f"`key` has chunks {k.chunks[0]} of the batch but `query` has {q.chunks[0]}; rechunk one.")
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    expected = tuple(size * group for size in k.chunks[1])
    if q.chunks[1] != expected:
        raise ValueError(
            f"`query` has chunks {q.chunks[1]} of the heads, expected {expected}: those of the key, {k.chunks[1]}, "
            f"times {group} query heads for each. A chunk must hold whole groups: query.rechunk({{1: {expected}}})."
        )


def _matching(x: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """An array over the scores with four axes and the chunks of the scores, or 1."""
    import dask.array as da

    array = da.asarray(x)
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return array.rechunk(tuple((1,) if size == 1 else own for size, own in zip(array.shape, chunks, strict=True)))


class Layer(NamedTuple):
    """Tasks that several arrays share."""

    name: str
    graph: Any  # a HighLevelGraph

    def whole(self, chunks: Any, dtype: Any, like: Any) -> Any:
        """The Dask array of the layer's own tasks."""
        import dask.array as da

        return da.Array(self.graph, self.name, chunks=chunks, meta=_meta(like, dtype, len(chunks)))

    def array(self, name: str, tasks: dict[Any, Any], chunks: Any, dtype: Any, like: Any) -> Any:
        """The Dask array of tasks (name, ...) on top of the layer; `like` is an array that they may take, too."""
        import dask.array as da
        from dask.highlevelgraph import HighLevelGraph

        below = like.__dask_graph__()
        layers = {**below.layers, **self.graph.layers, name: tasks}
        needs = {**below.dependencies, **self.graph.dependencies, name: {self.name, *like.__dask_layers__()}}
        graph = HighLevelGraph(layers, needs)
        return da.Array(graph, name, chunks=chunks, meta=_meta(like, dtype, len(chunks)))


def _meta(like: Any, dtype: Any, ndim: int) -> Any:
    """An empty array of the library of another one's chunks."""
    return like._meta.astype(dtype).reshape((0,) * ndim)


def make_layer(name: str, tasks: dict[Any, Any], arrays: list[Any]) -> Layer:
    """The layer of tasks that take chunks of these Dask arrays."""
    from dask.highlevelgraph import HighLevelGraph

    return Layer(name, HighLevelGraph.from_collections(name, tasks, dependencies=arrays))


def task_name(prefix: str, *parts: Any) -> str:
    """A name that is the same for the same call, so that Dask knows what it has computed."""
    from dask.base import tokenize

    return f"{prefix}-{tokenize(*parts)}"


def indices(*counts: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, counts))


bound = functools.partial  # hides numbers from Dask, which would look for keys in tuples

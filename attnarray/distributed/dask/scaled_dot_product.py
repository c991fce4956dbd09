"""Scaled dot-product attention of Dask arrays: a graph over blocks of batches, heads, queries and keys."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import SDPAGrads
from attnarray.attention.options import Options, known_options
from attnarray.backend import accumulator_dtype, to_numpy
from attnarray.distributed.dask import blocks
from attnarray.distributed.dask.graph import (
    BlockedCall,
    Layer,
    block_key,
    blocked_call,
    bound,
    indices,
    make_layer,
    task_name,
    tree,
)
from attnarray.masks import Mask


class DaskAttentionContext(NamedTuple):
    """What the backward needs: the blocked call, and the output and lse as Dask arrays."""

    call: BlockedCall
    out: Any  # (B, H, T, Dv)
    lse: Any  # (B, H, T)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[Options],
) -> Any:
    r"""Scaled dot-product attention of Dask arrays, of which a part at a time is in memory.

    .. math:: o_i = \sum_n e^{\mathrm{lse}_{in} - \mathrm{lse}_i} o_{in}

    with the partial results o_in of the chunk n of the keys, which are merged along a tree.

    Parameters
    ----------
    query : (B, H, T, D) dask.array.Array
        Of NumPy or CuPy chunks, in chunks along the first three axes.
    key, value : (B, Hkv, S, D), (B, Hkv, S, Dv)
        With equal chunks. Those of the batch are the query's, those of the heads the query's divided by H / Hkv.
    attn_mask, bias, dropout_mask : Dask or NumPy arrays, optional
        As in `attnarray.scaled_dot_product_attention`; they are divided into the chunks of the scores. Any `Mask` but
        `Dense` is taken, too, and asked about the pairs of each block.
    dropout_p, is_causal, **options
        As there, but for `layout`, which is "BHTD". Dropout is the same for any chunks.

    Returns
    -------
    (B, H, T, Dv) dask.array.Array
        In the chunks of the query. Nothing is computed before its `compute`, `persist` or `store`.

    Raises
    ------
    TypeError
        If an array is no Dask array.
    ValueError
        If shapes or chunks do not fit; the message gives the call of `rechunk`.

    Notes
    -----
    Blocks of which no query sees a key, by is_causal, window, q_offset and kv_lengths, are no part of the graph. A task
    holds a chunk of queries, one of keys and values, and the results for them; choose chunks of some 100 MB.

    Examples
    --------
    >>> import dask.array as da
    >>> from attnarray.distributed import dask as dask_attention
    >>> x = da.ones((1, 8, 4096, 64), chunks=(1, 4, 1024, 64))
    >>> dask_attention.scaled_dot_product_attention(x, x, x).compute().shape
    (1, 8, 4096, 64)
    """
    return scaled_dot_product_attention_fwd(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]


def scaled_dot_product_attention_fwd(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, DaskAttentionContext]:
    """`scaled_dot_product_attention` and the context for its backward.

    Compute outputs and gradients together, by one `dask.compute`, or `persist` the context's arrays: else the forward
    is computed twice.
    """
    known_options(options, Options)
    checks.choice("layout", options.get("layout", "BHTD"), ("BHTD",))
    call = blocked_call((query, key, value), attn_mask, dropout_p, is_causal, dict(options))
    q, k, v = call.q, call.k, call.v
    tasks: dict[Any, Any] = {}
    name = task_name("attention", *call.token)
    for b, h, t in indices(*q.numblocks[:3]):
        parts = []
        for s in call.blocks_of_keys(t):
            arrays = (q.name, b, h, t, 0), (k.name, b, h, s, 0), (v.name, b, h, s, 0)
            task = bound(blocks.partial_block, call.block(b, h, t, s))
            tasks[f"{name}-partial", b, h, t, s] = (task, *arrays, *call.arguments(b, h, t, s))
            parts.append((f"{name}-partial", b, h, t, s))
        parts = tree(tasks, f"{name}-merged", (b, h, t), parts, blocks.merged, blocks.merged)
        last = bound(blocks.finished, features=v.shape[3], sinks=_of_heads(call, h))
        tasks[name, b, h, t] = (last, parts, (q.name, b, h, t, 0))
    layer = make_layer(name, tasks, [q, k, v, *call.scores.values()])
    rows = {index: (name, *index) for index in indices(*q.numblocks[:3])}
    outs = {(f"{name}-out", *index, 0): (operator.itemgetter(0), key) for index, key in rows.items()}
    lses = {(f"{name}-lse", *index): (operator.itemgetter(1), key) for index, key in rows.items()}
    out = layer.array(f"{name}-out", outs, (*q.chunks[:3], v.chunks[3]), q.dtype, q)
    lse = layer.array(f"{name}-lse", lses, q.chunks[:3], accumulator_dtype(np, q.dtype), q)
    return out, DaskAttentionContext(call, out, lse)


def scaled_dot_product_attention_bwd(dout: Any, ctx: DaskAttentionContext, dlse: Any = None) -> SDPAGrads[Any]:
    r"""The gradients of attention as Dask arrays, with the chunks of their inputs.

    For each block of queries and of keys they are those of `attnarray.scaled_dot_product_attention_bwd` with the lse
    and :math:`\delta_i` of all keys,

    .. math:: dq_i = \sum_n \sum_{j \in n} g_{ij} k_j, \qquad dk_j = \sum_m \sum_{i \in m} g_{ij} q_i, \qquad
        dv_j = \sum_m \sum_{i \in m} p_{ij}\, do_i

    summed along trees over the chunks n of the keys or m of the queries.

    Parameters
    ----------
    dout : (B, H, T, Dv) dask.array.Array
        In any chunks.
    ctx : DaskAttentionContext
    dlse : (B, H, T) dask.array.Array, optional
        A cotangent of `ctx.lse`.

    Returns
    -------
    SDPAGrads
        query, key, value, bias, sinks; None for what was not given. The bias has four axes if it was a mask's array.
    """
    checks.context("ctx", ctx, DaskAttentionContext)
    call = ctx.call
    dout = _cotangent("dout", dout, ctx.out)
    dlse = None if dlse is None else _cotangent("dlse", dlse, ctx.lse)
    tasks: dict[Any, Any] = {}
    name = task_name("attention-gradients", *call.token, dout.name, None if dlse is None else dlse.name)
    for b, h, t in indices(*call.q.numblocks[:3]):
        row, dlse_key = (b, h, t, 0), None if dlse is None else (dlse.name, b, h, t)
        for s in call.blocks_of_keys(t):
            keys = (call.k.name, b, h, s, 0), (call.v.name, b, h, s, 0)
            tasks[name, b, h, t, s] = (
                bound(blocks.gradients_block, call.block(b, h, t, s)), (dout.name, *row), dlse_key,
                (call.q.name, *row), *keys, (ctx.out.name, *row), (ctx.lse.name, b, h, t),
                *call.arguments(b, h, t, s),
            )  # fmt: skip
        if call.sinks is not None:
            task = bound(blocks.sinks_block, sinks=_of_heads(call, h))
            tasks[f"{name}-sinks", b, h, t] = (
                task,
                (dout.name, *row),
                dlse_key,
                (ctx.out.name, *row),
                (ctx.lse.name, b, h, t),
            )
    arrays = [call.q, call.k, call.v, dout, ctx.out, ctx.lse, *call.scores.values()]
    made = _Gradients(call, make_layer(name, tasks, [*arrays, *([] if dlse is None else [dlse])]))
    return SDPAGrads(made.query(), made.key(1), made.key(2), made.bias(), made.sinks())


class _Gradients(NamedTuple):
    """The tasks of all blocks, each of which gives (dq, dk, dv, dbias), and the sums over them."""

    call: BlockedCall
    layer: Layer

    def query(self) -> Any:
        rows = indices(*self.call.q.numblocks[:3])
        return self._sums("query", 0, {(*row, 0): list(self._blocks(*row)) for row in rows}, self.call.q)

    def key(self, item: int) -> Any:
        """The gradient of the keys (1) or of the values (2)."""
        array = (self.call.q, self.call.k, self.call.v)[item]
        lists: dict[Any, list[Any]] = {(*index, 0): [] for index in indices(*array.numblocks[:3])}
        for row in indices(*self.call.q.numblocks[:3]):
            for key in self._blocks(*row):
                lists[key[1], key[2], key[4], 0].append(key)
        return self._sums(("query", "key", "value")[item], item, lists, array)

    def bias(self) -> Any:
        bias = self.call.scores.get("bias")
        if bias is None:
            return None
        lists: dict[Any, list[Any]] = {index: [] for index in indices(*bias.numblocks)}
        for row in indices(*self.call.q.numblocks[:3]):
            for key in self._blocks(*row):
                lists[block_key(bias, key[1:])[1:]].append(key)
        return self._sums("bias", 3, lists, bias)

    def sinks(self) -> Any:
        import dask.array as da

        if self.call.sinks is None:
            return None
        like = da.asarray(self.call.sinks).rechunk((self.call.q.chunks[1],))
        lists: dict[Any, list[Any]] = {(h,): [] for h in range(self.call.q.numblocks[1])}
        for b, h, t in indices(*self.call.q.numblocks[:3]):
            lists[(h,)].append((f"{self.layer.name}-sinks", b, h, t))
        return self._sums("sinks", None, lists, like)

    def _blocks(self, b: int, h: int, t: int) -> Iterator[tuple[Any, ...]]:
        """The keys of the tasks of a block of queries."""
        return ((self.layer.name, b, h, t, s) for s in self.call.blocks_of_keys(t))

    def _sums(self, what: str, item: int | None, lists: dict[Any, list[Any]], like: Any) -> Any:
        """The Dask array like another one whose chunks are the sums over the tasks in `lists`."""
        tasks: dict[Any, Any] = {}
        name = f"{self.layer.name}-{what}"
        for index, keys in lists.items():
            first, then = bound(blocks.summed, item=item), bound(blocks.summed, item=None)
            parts = tree(tasks, f"{name}-sum", index, keys, first, then)
            tasks[name, *index] = (blocks.narrowed, parts, (like.name, *index))
        return self.layer.array(name, tasks, like.chunks, like.dtype, like)


def _of_heads(call: BlockedCall, h: int) -> Any:
    """The sinks of a block of heads."""
    return None if call.sinks is None else to_numpy(call.sinks)[slice(*call.queries[1][h])]


def _cotangent(name: str, array: Any, like: Any) -> Any:
    import dask.array as da

    if not isinstance(array, da.Array):
        raise TypeError(f"`{name}` is {checks.shown(array)}, expected a Dask array of shape {like.shape}.")
    checks.shape(name, array, like.shape, "the shape of the output" if name == "dout" else "the shape of the lse")
    checks.floating(**{name: array, "output": like})
    return array.rechunk(like.chunks)

"""What the tasks of a graph compute: one block of queries and one of keys, and sums of their results."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from attnarray.attention.dot_product.partial import Partial
from attnarray.attention.engine import attention, attention_backward
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import sinks_gradient
from attnarray.attention.products import hiding_product
from attnarray.backend import Array, accumulator_dtype, device_of, library_name, namespace_of, operand_dtype
from attnarray.dispatch import KernelMode, ignoring_fp_errors, use_kernels
from attnarray.distributed.masks import PartMask
from attnarray.distributed.sequence import Segment
from attnarray.distributed.tiles import merge
from attnarray.random import attention_keep_mask


class Block(NamedTuple):
    """The numbers of one block of queries and keys; its arrays over scores are arguments of the task."""

    modifiers: ScoreModifiers
    first_batch: int
    first_head: int
    first_query: int
    keys: Segment
    kernels: KernelMode  # of the caller, as tasks run in other processes
    mask: PartMask | None  # what is asked about pairs


def _modifiers(block: Block, q: Array, k: Array, bias: Any, mask: Any, keep: Any) -> ScoreModifiers:
    """The modifiers of a block, with arrays on the device of the queries."""
    xp, own = namespace_of(q), block.modifiers

    def moved(x: Any) -> Any:
        return xp.asarray(x, device=device_of(q)) if hasattr(x, "shape") and library_name(q) != "numpy" else x

    dropout = own.dropout
    if dropout is not None and keep is None and (block.first_head or block.first_batch):
        shape = (*q.shape[:3], k.shape[2])
        keep = attention_keep_mask(
            dropout.seed, dropout.p, shape, xp, device_of(q), moved(own.q_offset) + dropout.first_key,
            dropout.first_key, block.first_head, block.first_batch,
        )  # fmt: skip
    own = own._replace(
        bias=bias,
        mask=mask,
        q_offset=moved(own.q_offset),
        kv_lengths=moved(own.kv_lengths),
        dropout=None if dropout is None else dropout._replace(keep=keep),
    )
    if block.mask is None:
        return own
    return block.mask.modifiers(own, q, block.first_query, block.keys, (block.first_batch, block.first_head))


def _operand(x: Array) -> Any:
    return namespace_of(x).astype(x, operand_dtype(x), copy=False)


def _wide(x: Any) -> Any:
    xp = namespace_of(x)
    return xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)


@ignoring_fp_errors
def partial_block(block: Block, q: Array, k: Array, v: Array, bias: Any, mask: Any, keep: Any) -> Partial:
    """Output and lse of a block of queries over a block of keys, in the dtype of sums."""
    arrays = _operand(q), _operand(k), _operand(v)
    with use_kernels(block.kernels):
        out, lse = attention(arrays[0], arrays[1], arrays[2], _modifiers(block, q, k, bias, mask, keep))
    return Partial(_wide(out), lse)


@ignoring_fp_errors
def merged(parts: Sequence[Partial]) -> Partial:
    """Some partial results as one."""
    return functools.reduce(merge, parts)


@ignoring_fp_errors
def finished(parts: Sequence[Partial], q: Array, features: int, sinks: Any) -> Partial:
    """The results of all keys, in the dtype of the queries: also where there is no part, and with sinks."""
    xp, shape = namespace_of(q), tuple(q.shape[:3])
    wide = accumulator_dtype(xp, q.dtype)
    if not parts or sinks is not None:
        lse = xp.full(shape, -math.inf, dtype=wide, device=device_of(q))
        if sinks is not None:  # one more key, whose value is 0
            lse = xp.zeros_like(lse) + xp.asarray(sinks, dtype=wide, device=device_of(q))[None, :, None]
        parts = [Partial(xp.zeros((*shape, features), dtype=wide, device=device_of(q)), lse), *parts]
    out, lse = merged(parts)
    return Partial(xp.astype(out, q.dtype, copy=False), lse)


@ignoring_fp_errors
def gradients_block(
    block: Block, dout: Array, dlse: Any, q: Array, k: Array, v: Array, out: Array, lse: Array,
    bias: Any, mask: Any, keep: Any,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """dq, dk, dv and dbias of a block of queries and a block of keys; `out` and `lse` are those of all keys."""
    modifiers = _modifiers(block, q, k, bias, mask, keep)
    dout, q, k, v, out = (_operand(x) for x in (dout, q, k, v, out))
    with use_kernels(block.kernels):
        dq, dk, dv, dbias, _ = attention_backward(dout, dlse, q, k, v, out, lse, modifiers)
    return _wide(dq), _wide(dk), _wide(dv), None if dbias is None else _wide(dbias)


def summed(parts: Sequence[Any], item: int | None) -> Any:
    """The sum of arrays, or of one of the gradients of blocks."""
    arrays = [part if item is None else part[item] for part in parts]
    return functools.reduce(lambda a, b: a + b, arrays)


def narrowed(parts: Sequence[Any], like: Array) -> Any:
    """The sum in the shape and dtype of `like`; zeros where there is no part."""
    xp = namespace_of(like)
    if not parts:
        return xp.zeros_like(like)
    return xp.astype(summed(parts, None), like.dtype, copy=False)


def narrowed_item(parts: Sequence[Any], like: Array) -> Any:
    """The first gradient of a task in the dtype of `like`."""
    return namespace_of(like).astype(parts[0][0], like.dtype, copy=False)


@ignoring_fp_errors
def sinks_block(dout: Array, dlse: Any, out: Array, lse: Array, sinks: Any) -> Any:
    """The gradient of the sinks of a block of queries."""
    xp = namespace_of(dout)
    delta = xp.sum(hiding_product(_wide(out), _wide(dout)), axis=-1)
    delta = delta if dlse is None else delta - _wide(dlse)
    return sinks_gradient(lse, delta, xp.asarray(sinks, dtype=lse.dtype, device=device_of(dout)))

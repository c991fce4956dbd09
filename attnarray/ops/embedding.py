"""Embedding: one learned vector per integer, and the check that integers stay within a range."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, index_dtype, namespace_of, scatter_add, to_numpy
from attnarray.dispatch import accelerated


class EmbeddingContext(NamedTuple, Generic[ArrayT]):
    indices: Array
    size: int
    width: int


class EmbeddingGrads(NamedTuple, Generic[ArrayT]):
    weight: ArrayT


def embedding(indices: Array, weight: ArrayT) -> ArrayT:
    r"""Look up rows of `weight` by `indices`.

    .. math:: y_{n} = W_{i_n}

    Parameters
    ----------
    indices : (...) integer
        From 0 to V - 1.
    weight : (V, E) floating
        One vector per index.

    Returns
    -------
    (..., E) array
        The dtype of `weight`.

    Raises
    ------
    TypeError
        If `indices` is not integer, `weight` not floating, or they are not of one library.
    ValueError
        If `weight` does not have two axes or an index is out of range; the message names the first such index.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.embedding(np.array([1, 1, 0]), np.array([[0.0, 0.5], [2.0, 3.0]])).tolist()
    [[2.0, 3.0], [2.0, 3.0], [0.0, 0.5]]
    """
    return embedding_fwd(indices, weight)[0]


def embedding_fwd(indices: Array, weight: ArrayT) -> tuple[ArrayT, EmbeddingContext[ArrayT]]:
    """`embedding` and the context for `embedding_bwd`: the indices and V."""
    _check(indices, weight)
    rows = _embedding(weight, indices)  # (N, E)
    out = namespace_of(rows).reshape(rows, (*indices.shape, weight.shape[1]))
    return out, EmbeddingContext(indices, *weight.shape)


def embedding_bwd(dout: Array, ctx: EmbeddingContext[ArrayT]) -> EmbeddingGrads[ArrayT]:
    r"""The gradient of the embedding: each row is the sum over the occurrences of its index.

    .. math:: dW_v = \sum_{n:\, i_n = v} dy_n
    """
    checks.context("ctx", ctx, EmbeddingContext)
    checks.namespace(dout=dout, indices=ctx.indices)
    checks.floating(dout=dout)
    checks.shape("dout", dout, (*ctx.indices.shape, ctx.width), "the shape of the output")
    return EmbeddingGrads(_embedding_backward(dout, ctx.indices, ctx.size))


@accelerated
def _embedding(weight: Array, indices: Array) -> Any:
    """The rows (N, E) of all indices."""
    xp = namespace_of(indices, weight)
    flat = xp.astype(xp.reshape(indices, (math.prod(indices.shape),)), index_dtype(xp, indices), copy=False)  # (N,)
    return xp.take(weight, flat, axis=0)


@accelerated
def _embedding_backward(dout: Array, indices: Array, size: int) -> Any:
    """The gradient of `embedding`, for V = `size`."""
    xp = namespace_of(dout, indices)
    count = math.prod(indices.shape)
    flat = xp.astype(xp.reshape(indices, (count,)), index_dtype(xp, indices), copy=False)  # (N,)
    rows = xp.reshape(dout, (count, dout.shape[-1]))  # (N, E)
    rows = xp.astype(rows, accumulator_dtype(xp, dout.dtype), copy=False)
    return xp.astype(scatter_add(rows, flat, size), dout.dtype, copy=False)  # (V, E)


def _check(indices: Array, weight: Array) -> None:
    namespace_of(indices, weight)
    checks.integer("indices", indices)
    checks.floating(weight=weight)
    if weight.ndim != 2:
        raise ValueError(f"`weight` has {weight.ndim} axes, expected two: (V, E). {checks.shapes(weight=weight)}")
    check_range("indices", indices, weight.shape[0], "the rows of `weight`")


def check_range(name: str, indices: Array, count: int, what: str, *, ignored: int | None = None) -> None:
    """Check 0 <= index < count for all `indices` other than `ignored`; `what` is the meaning of `count`."""
    xp, wide = namespace_of(indices), checks.integer(name, indices)  # in a dtype that `count` fits
    outside = (wide < 0) | (wide >= count)
    if ignored is not None:
        outside = outside & (wide != ignored)
    if not bool(xp.any(outside)):
        return
    host = to_numpy(outside)
    index = tuple(int(axis[0]) for axis in host.nonzero()) if host.ndim else ()
    value = int(to_numpy(indices)[index])
    expected = f"expected 0 to {count - 1}" if count else "but there is no valid index"
    also = "" if ignored is None else f", or {ignored} to ignore it"
    where = f" at position {index}" if index else ""
    raise ValueError(f"`{name}` holds {value}{where}, {expected} ({what}: {count}){also}.")

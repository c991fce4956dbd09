"""What fused kernels know of masks: a band of positions, lengths, documents and boolean arrays."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of

# Sums of two positions fit into 32 bits, the widest integers that every library has.
LARGEST_POSITION = 2**30
POSITION = "a position, or a distance of positions"


class Constraints(NamedTuple):
    """Any masks as a band of positions, lengths, documents, boolean arrays and others: all must allow a key."""

    left: int | None = None
    right: int | None = None
    lengths: tuple[Any, ...] = ()
    documents: tuple[Any, ...] = ()
    dense: tuple[Array, ...] = ()
    others: tuple[Any, ...] = ()


def smaller(a: int | None, b: int | None) -> int | None:
    """The tighter of two bounds, where None, or anything beyond all positions, is unbounded."""
    tighter = b if a is None else a if b is None else min(a, b)
    return None if tighter is not None and tighter >= LARGEST_POSITION else tighter


def position(name: str, value: Any) -> int:
    """Check for a position, or an offset between positions."""
    return checks.whole(name, value, -LARGEST_POSITION, LARGEST_POSITION, POSITION)


def band(
    left: int | None, right: int | None, queries: int, keys: int, q_offset: int | Array, like: Array
) -> Array | None:
    """The boolean band (..., T, S), or None where it allows everything; `q_offset` is an int or (..., 1, 1)."""
    if left is None and right is None:
        return None
    xp = namespace_of(like)
    kind = {"device": device_of(like)}
    i = xp.arange(queries, **kind)[:, None] + q_offset  # (..., T, 1)
    j = xp.arange(keys, **kind)[None, :]  # (1, S)
    bounds = []
    if left is not None:
        bounds.append(j >= i - left)
    if right is not None:
        bounds.append(j <= i + right)
    return reduce(operator.and_, bounds)


def within(lengths: int | Array, keys: int, like: Array) -> Array:
    """Keys below the length: (S,) for one int, (*batch, 1, 1, S) for an array (*batch,)."""
    j = namespace_of(like).arange(keys, device=device_of(like))
    return j < (lengths if isinstance(lengths, int) else lengths[..., None, None, None])

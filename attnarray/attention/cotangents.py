"""Cotangents of the log-sum-exp and of the weights, from a caller's layout to the canonical one."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.backend import Array, accumulator_dtype, namespace_of


def lse_cotangent(dlse: Array | None, ctx: Any) -> Array | None:
    """A cotangent of the lse, checked, as (B, H, T)."""
    if dlse is None:
        return None
    batch, heads, queries, _ = ctx.q.shape
    shape = ctx.layout.scores_shape(heads, queries, 1)[:-1]
    return _reshaped("dlse", dlse, shape, "the shape of the lse", (batch, heads, queries), ctx)


def weights_cotangent(dweights: Array | None, ctx: Any) -> Array | None:
    """A cotangent of the weights, checked, in canonical layout."""
    if dweights is None:
        return None
    layout = ctx.layout
    (batch, heads, queries, _), keys = ctx.q.shape, ctx.k.shape[2]
    shape = layout.scores_shape(heads, queries, keys)
    return _reshaped("dweights", dweights, shape, "the shape of the weights", (batch, heads, queries, keys), ctx)


def _reshaped(
    name: str, array: Array, expected: tuple[int, ...], because: str, shape: tuple[int, ...], ctx: Any
) -> Array:
    """A cotangent, checked, in canonical layout and the dtype of sums."""
    checks.shape(name, array, expected, because)
    checks.floating(**{name: array})
    xp = namespace_of(array)
    return xp.astype(xp.reshape(array, shape), accumulator_dtype(xp, ctx.q.dtype), copy=False)

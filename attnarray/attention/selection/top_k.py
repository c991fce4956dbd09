"""Which keys have the k largest scores: the choice of hard attention."""

from __future__ import annotations

from typing import Any

from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.dispatch import accelerated


@accelerated
def top_k_indices(x: Any, k: int) -> Array:
    """The indices of the k largest numbers of each row, from left to right; of equal ones the first come first.

    Parameters
    ----------
    x : (..., N) floating, without NaN
    k : int
        1 to N.

    Returns
    -------
    (..., k) integers
    """
    xp = namespace_of(x)
    if k > 1:
        return xp.sort(xp.argsort(-x, axis=-1, stable=True)[..., :k], axis=-1)
    positions = xp.arange(x.shape[-1], dtype=index_dtype(xp, x), device=device_of(x))
    largest = xp.max(x, axis=-1, keepdims=True)
    return xp.min(xp.where(x == largest, positions, x.shape[-1]), axis=-1, keepdims=True)


@accelerated
def choice_mask(indices: Array, keys: int) -> Array:
    """(..., k) indices as a mask (..., keys) that is True there; -1 is none."""
    xp = namespace_of(indices)
    positions = xp.arange(keys, dtype=indices.dtype, device=device_of(indices))
    mask = indices[..., :1] == positions
    for n in range(1, indices.shape[-1]):
        mask = mask | (indices[..., n : n + 1] == positions)
    return mask

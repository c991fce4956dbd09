"""Writing a sequence step by step, the most likely token each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.models.generation.sampling import finite_or_certain


def greedily(
    step: Callable[[Array, Any], tuple[Array, Any]], state: Any, source: Array, start: int, count: int,
    end: int | None, vocab_size: int,
) -> Array:  # fmt: skip
    """Up to `count` tokens (B, N) by ``logits (B, 1, V), state = step(tokens (B, 1), state)``, the first after `start`.

    Where `end` comes, the rest of that row is `end`; where it has come in all rows, the sequence ends.

    Raises
    ------
    ValueError
        If the logits of a row that has not ended hold NaN, or -inf for every token.
    """
    start = checks.whole("start", start, 0, vocab_size - 1, "the token before the first one")
    if end is not None:
        end = checks.whole("end", end, 0, vocab_size - 1, "the token that ends a sequence")
    xp = namespace_of(source)
    told = xp.full((source.shape[0], 1), start, dtype=index_dtype(xp, source), device=device_of(source))
    ended = xp.zeros(told.shape, dtype=xp.bool, device=device_of(source))
    found = [told[:, :0]]
    for _ in range(count):
        logits, state = step(told, state)
        known = finite_or_certain(logits, None if end is None else ~ended)
        told = xp.astype(xp.argmax(known, axis=-1), told.dtype)  # (B, 1)
        if end is not None:
            told = xp.where(ended, xp.full_like(told, end), told)
            ended = ended | (told == end)
        found.append(told)
        if end is not None and bool(xp.all(ended)):
            break
    return xp.concat(found, axis=1)  # (B, N)

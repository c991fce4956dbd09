"""Greedy decoding: the most likely token at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.models.generation.sampling import finite_or_certain


def greedy_decode(
    step: Callable[[Array, Any], tuple[Array, Any]], state: Any, source: Array, start: int, count: int,
    end: int | None, vocab_size: int,
) -> Any:  # fmt: skip
    """Generate up to `count` tokens (B, N) after `start` by ``logits (B, 1, V), state = step(tokens (B, 1), state)``.

    After `end`, the rest of a row is `end`; decoding stops when all rows have ended.

    Raises
    ------
    ValueError
        If the logits of a row that has not ended hold NaN, or -inf for every token.
    """
    start = checks.whole("start", start, 0, vocab_size - 1, "the token before the first one")
    if end is not None:
        end = checks.whole("end", end, 0, vocab_size - 1, "the token that ends a sequence")
    xp = namespace_of(source)
    token = xp.full((source.shape[0], 1), start, dtype=index_dtype(xp, source), device=device_of(source))
    ended = xp.zeros(token.shape, dtype=xp.bool, device=device_of(source))
    found = [token[:, :0]]
    for _ in range(count):
        logits, state = step(token, state)
        certain = finite_or_certain(logits, None if end is None else ~ended)
        token = xp.astype(xp.argmax(certain, axis=-1), token.dtype)  # (B, 1)
        if end is not None:
            token = xp.where(ended, xp.full_like(token, end), token)
            ended = ended | (token == end)
        found.append(token)
        if end is not None and bool(xp.all(ended)):
            break
    return xp.concat(found, axis=1)  # (B, N)

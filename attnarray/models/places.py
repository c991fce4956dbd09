"""Sequences of tokens, and which places of padded ones there are."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_name, namespace_of
from attnarray.masks import Dense, Mask
from attnarray.ops.embedding import check_range


def check_tokens(tokens: Array, vocab_size: int | None = None) -> Array:
    """Check for integers (B, T), from 0 to V - 1 where V is given; return them in the index dtype."""
    tokens = checks.integer("tokens", tokens)
    if tokens.ndim != 2:
        raise ValueError(f"`tokens` has shape {tuple(tokens.shape)}, expected (B, T): sequences of token ids.")
    if vocab_size is not None:
        check_range("tokens", tokens, vocab_size, "the vocabulary")
    return tokens


def check_starts(starts: Any, batch: int, past: int, like: Array) -> Array | None:
    """`starts` (B,), from 0 to `past`, beside the array `like`; None stays None."""
    if starts is None:
        return None
    array = checks.beside("starts", checks.integers("starts", starts), "tokens", like)
    checks.shape("starts", array, (batch,), "where each of the B sequences begins")
    check_range("starts", array, past + 1, "the places where a sequence may begin")
    return array


def check_lengths(name: str, lengths: Any, tokens: Array) -> Array | None:
    """How much of each of the tokens (B, T) there is, (B,), from 0 to T, beside them; None stays None."""
    if lengths is None:
        return None
    array = checks.beside(name, checks.integers(name, lengths), "tokens", tokens)
    checks.shape(name, array, (tokens.shape[0],), "how much there is of each of the B sequences")
    check_range(name, array, tokens.shape[1] + 1, "the lengths that a sequence may have")
    return array


def attention_mask(attn_mask: Array | Mask | None, starts: Array | None, places: int) -> Array | Mask | None:
    """What `attn_mask` allows of so many places, from where each sequence begins."""
    if attn_mask is not None and not isinstance(attn_mask, Mask):
        if checks.is_array(attn_mask) and dtype_name(attn_mask.dtype) in checks.FLOATS:
            raise TypeError(
                f"`attn_mask` has dtype {dtype_name(attn_mask.dtype)}, expected bool (True = attend): a floating mask "
                "is a bias, and this model takes none. `Encoder` does."
            )
        checks.boolean("attn_mask", attn_mask)
    if starts is None:
        return attn_mask
    every = namespace_of(starts).arange(places, dtype=starts.dtype, device=device_of(starts))
    exists = Dense(every >= starts[:, None, None, None])  # (B, 1, 1, S)
    return exists if attn_mask is None else exists & (attn_mask if isinstance(attn_mask, Mask) else Dense(attn_mask))

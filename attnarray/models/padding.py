"""Validation of batches of tokens, and of their padding."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_name, namespace_of
from attnarray.masks import Dense, Mask
from attnarray.ops.embedding import check_range


def check_tokens(tokens: Array, vocab_size: int | None = None, name: str = "tokens") -> Array:
    """Check for integers (B, T), from 0 to `vocab_size` - 1 if given; return them in the index dtype."""
    tokens = checks.integer(name, tokens)
    if tokens.ndim != 2:
        raise ValueError(f"`{name}` has shape {tuple(tokens.shape)}, expected (B, T): sequences of token ids.")
    if vocab_size is not None:
        check_range(name, tokens, vocab_size, "the vocabulary")
    return tokens


def token_positions(tokens: Array, vocab_size: int, first: int, starts: Any, parallel: Any) -> tuple[Any, int]:
    """Check tokens (B, T); return their positions (T,) if sequences are divided, and the number of all."""
    checks.context_parallel(parallel)

    def length() -> int:
        check_tokens(tokens, vocab_size)
        if parallel is not None and starts is not None:
            raise ValueError("`starts` is given with `context_parallel`: pad divided sequences on the right.")
        return int(tokens.shape[1])

    return (None, first + length()) if parallel is None else parallel.positions(length)


def check_starts(starts: Any, batch: int, past: int, like: Array) -> Array | None:
    """Return `starts` (B,), checked to be from 0 to `past`, in the library of `like`; None stays None."""
    if starts is None:
        return None
    array: Any = checks.same_device("starts", checks.integers("starts", starts), "tokens", like)
    checks.shape("starts", array, (batch,), "the length of the left padding of each of the B sequences")
    check_range("starts", array, past + 1, "the positions where a sequence may begin")
    return array


def check_lengths(name: str, lengths: Any, tokens: Array, total: int | None = None) -> Array | None:
    """Return `lengths` (B,) of tokens (B, T), checked to be from 0 to T, or `total`, in the library of the tokens; None
    stays None.
    """
    if lengths is None:
        return None
    array: Any = checks.same_device(name, checks.integers(name, lengths), "tokens", tokens)
    checks.shape(name, array, (tokens.shape[0],), "the length of each of the B sequences")
    total = tokens.shape[1] if total is None else total
    check_range(name, array, total + 1, "the possible lengths of a sequence")
    return array


def attention_mask(attn_mask: Array | Mask | None, starts: Array | None, keys: int) -> Array | Mask | None:
    """Return `attn_mask`, restricted to the keys from `starts` on."""
    if attn_mask is not None and not isinstance(attn_mask, Mask):
        if checks.is_array(attn_mask) and dtype_name(attn_mask.dtype) in checks.FLOATS:
            raise TypeError(
                f"`attn_mask` has dtype {dtype_name(attn_mask.dtype)}, expected bool (True = attend): a floating mask "
                "is a bias, which this model does not take; `Encoder` does."
            )
        checks.boolean("attn_mask", attn_mask)
    if starts is None:
        return attn_mask
    indices = namespace_of(starts).arange(keys, dtype=starts.dtype, device=device_of(starts))
    exists = Dense(indices >= starts[:, None, None, None])  # (B, 1, 1, S)
    return exists if attn_mask is None else exists & (attn_mask if isinstance(attn_mask, Mask) else Dense(attn_mask))

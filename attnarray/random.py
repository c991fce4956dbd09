"""Counter-based random numbers: Philox 4x32-10. A number depends on its seed and counter alone.

So dropout gives the same bits on every array library, kernel and tile size, and a context keeps a seed, not a mask.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, Namespace, asarray, creation_namespace, dtype_name

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
ROUNDS = 10

# The last counter word separates the uses of one seed; attention dropout has the batch there, which is never so large.
FLAT_STREAM = WORD
SEED_STREAM = WORD - 1
NOISE_HEADS = 2**31  # added to the head where attention draws noise and not dropout


def philox_4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Four 32-bit words for each counter, as int64 arrays.

    Parameters
    ----------
    counter : four int64 arrays that broadcast together
        32-bit words.
    key : two ints
        32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def _multiply(word: Array, multiplier: int) -> tuple[Array, Array]:
    product = word * multiplier  # wraps to negative numbers, but its 64 bits are those of the unsigned product
    return (product >> 32) & WORD, product & WORD


def seed_words(seed: int) -> tuple[int, int]:
    """The 64-bit seed as the two words of a Philox key."""
    return seed & WORD, (seed >> 32) & WORD


def threshold(p: float) -> int:
    """A word below this is dropped: P(word < threshold) = p to 32 bits."""
    return round(p * 2**32)


def attention_keep_mask(
    seed: int, p: float, shape: tuple[int, int, int, int], xp: Namespace, device: Any, query: int | Array, key: int,
    head: int = 0, batch: int = 0,
) -> Array:  # fmt: skip
    """The keep-mask (B, H, T, S) of attention dropout; `query`, `key`, `head` and `batch` are the first ones.

    Query position i and key position j of head h and batch b take word j % 4 of the counter (j // 4, i, h, b), and are
    kept when it is >= p * 2^32. `query` is an int or one per batch (B,).
    """
    return _attention_words(seed, shape, xp, device, query, key, head, batch) >= threshold(p)


def attention_noise(
    seed: int, shape: tuple[int, int, int, int], xp: Namespace, device: Any, query: int | Array, key: int
) -> Array:
    """Gumbel noise -log(-log u) for every score (B, H, T, S), float64, with a uniform u in (0, 1) of 32 random bits.

    Counters as in `attention_keep_mask`, but with 2^31 added to the head, so that dropout of one seed is independent.
    """
    words = _attention_words(seed, shape, xp, device, query, key, NOISE_HEADS)
    return -xp.log(-xp.log((xp.astype(words, xp.float64) + 0.5) * 2.0**-32))


def _attention_words(
    seed: int,
    shape: tuple[int, int, int, int],
    xp: Namespace,
    device: Any,
    query: int | Array,
    key: int,
    first_head: int,
    first_batch: int = 0,
) -> Array:
    """The word of each score (B, H, T, S)."""
    b, h, t, s = shape
    first_block, past_block = key // 4, -(-(key + s) // 4)
    first_row = query if isinstance(query, int) else xp.astype(query, xp.int64)[:, None, None, None]
    words = philox_4x32(
        (
            _arange(xp, device, first_block, past_block)[None, None, None, :],
            (_arange(xp, device, 0, t)[None, None, :, None] + first_row) & WORD,
            _arange(xp, device, first_head, first_head + h)[None, :, None, None],
            _arange(xp, device, first_batch, first_batch + b)[:, None, None, None],
        ),
        seed_words(seed),
    )
    every = xp.reshape(xp.stack(words, axis=-1), (b, h, t, 4 * (past_block - first_block)))
    start = key - 4 * first_block
    return every[:, :, :, start : start + s]


def attention_keep_mask_at(seed: int, p: float, keys: Array, xp: Namespace, device: Any, query: int | Array) -> Array:
    """The bits of `attention_keep_mask` for head 0 and the keys at positions `keys` (B, T, N) of each query."""
    b, t, _ = keys.shape
    first_row = query if isinstance(query, int) else xp.astype(query, xp.int64)[:, None, None]
    rows = (_arange(xp, device, 0, t)[None, :, None] + first_row) & WORD
    keys = xp.astype(keys, xp.int64)
    head = xp.zeros_like(keys)
    words = philox_4x32((keys >> 2, rows, head, head + _arange(xp, device, 0, b)[:, None, None]), seed_words(seed))
    own = words[3]
    for n in (0, 1, 2):
        own = xp.where(keys & 3 == n, words[n], own)
    return own >= threshold(p)


def keep_mask(seed: int, p: float, shape: tuple[int, ...], xp: Namespace, device: Any) -> Array:
    """The keep-mask of elementwise dropout: word n % 4 of block n // 4 for the n-th element in row-major order."""
    return xp.reshape(_words(seed, math.prod(shape), xp, device) >= threshold(p), shape)


def _words(seed: int, count: int, xp: Namespace, device: Any) -> Array:
    block = _arange(xp, device, 0, -(-count // 4))
    zero = xp.zeros_like(block)
    words = philox_4x32((block & WORD, block >> 32, zero, zero + FLAT_STREAM), seed_words(seed))
    return xp.reshape(xp.stack(words, axis=-1), (-1,) if count else (0,))[:count]


def _arange(xp: Namespace, device: Any, start: int, stop: int) -> Array:
    if dtype_name(xp.arange(0, device=device).dtype) != "int64":
        raise RuntimeError(
            "Random numbers need 64-bit integers, which this library has switched off. For JAX: "
            'jax.config.update("jax_enable_x64", True).'
        )
    return xp.arange(start, stop, dtype=xp.int64, device=device)


@dataclass(frozen=True)
class Philox:
    """A random generator without state: the same call gives the same numbers; `fold_in` and `split` derive others.

    Numbers are the same on every backend (normal ones up to the rounding of log and cos).

    Parameters
    ----------
    seed : int
        0 to 2^64 - 1.

    Raises
    ------
    ValueError
        If the seed is not such a number.

    Examples
    --------
    >>> import attnarray as aa
    >>> rng = aa.Philox(7)
    >>> weights, biases = rng.split(2)
    >>> weights.normal((2, 3)).shape
    (2, 3)
    """

    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.seed, numbers.Integral) or not 0 <= int(self.seed) < 2**64:
            raise ValueError(f"`seed` is {self.seed!r}, expected an integer from 0 to 2^64 - 1.")

    def fold_in(self, data: int) -> Philox:
        """The generator for part `data` (a step, a layer, ...) of this one."""
        counter = tuple(np.array([word], dtype=np.int64) for word in (*seed_words(int(data)), 0, SEED_STREAM))
        low, high, _, _ = philox_4x32(counter, seed_words(int(self.seed)))  # type: ignore[arg-type]
        return Philox(int(low[0]) | int(high[0]) << 32)

    def split(self, count: int) -> tuple[Philox, ...]:
        """`count` independent generators."""
        return tuple(self.fold_in(n) for n in range(count))

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: str = "float32") -> Any:
        """Uniform numbers in [low, high) with 32 random bits each, on the current backend (see `use_backend`)."""
        xp = creation_namespace()
        words = _words(int(self.seed), math.prod(shape), xp, None)
        unit = xp.astype(words, xp.float64) * 2.0**-32
        rounded = asarray(xp.reshape(low + (high - low) * unit, shape), dtype)
        return xp.where(rounded < high, rounded, xp.full_like(rounded, low))  # a short dtype may round up to `high`

    def normal(self, shape: tuple[int, ...], std: float = 1.0, dtype: str = "float32") -> Any:
        """Normal numbers with mean 0 by Box and Muller's method, on the current backend (see `use_backend`)."""
        xp = creation_namespace()
        count = math.prod(shape)
        words = xp.astype(_words(int(self.seed), 2 * count, xp, None), xp.float64)
        radius = xp.sqrt(-2.0 * xp.log((words[:count] + 0.5) * 2.0**-32))
        numbers_ = radius * xp.cos(2.0 * math.pi * 2.0**-32 * words[count:])
        return asarray(xp.reshape(std * numbers_, shape), dtype)


def as_seed(rng: Any) -> int:
    """The seed of an `rng` argument: a `Philox` or a plain int."""
    if isinstance(rng, Philox):
        return int(rng.seed)
    seed = checks.integral(rng)
    if seed is None or not 0 <= seed < 2**64:
        given = checks.shown(rng)
        raise ValueError(f"`rng` is {given}, expected attnarray.Philox(seed) or a seed from 0 to 2^64 - 1.")
    return seed

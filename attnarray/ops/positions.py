"""Positional encodings: sinusoids added to inputs, biases added to scores, buckets of distances."""

from __future__ import annotations

import math
from typing import Any

from attnarray import checks
from attnarray.backend import (
    Array,
    asarray,
    creation_namespace,
    device_of,
    dtype_called,
    dtype_name,
    index_dtype,
    namespace_of,
)
from attnarray.masks import LARGEST_POSITION, POSITION, position


def sinusoidal(
    positions: int | Array, dim: int, *, base: float = 10_000.0, interleaved: bool = True, dtype: str = "float32"
) -> Any:
    r"""The sinusoids of positions, to be added to the inputs of a model.

    .. math:: y_{t,2n} = \sin(t\, \omega_n), \qquad y_{t,2n+1} = \cos(t\, \omega_n), \qquad \omega_n = b^{-2n / d}

    Parameters
    ----------
    positions : int or (...) array
        That many positions from 0 on, or the positions t themselves: any real numbers, also negative ones.
    dim : int
        d, even.
    base : float
        b; the wave lengths go from 2 pi to nearly 2 pi b.
    interleaved : bool
        Whether sines and cosines alternate, as in the paper. Else all sines, then all cosines, as in Transformer-XL and
        many others.
    dtype : str
        Of the result.

    Returns
    -------
    (..., dim) array
        On the current backend (see `use_backend`) for a number of positions, else on that of `positions`. Angles
        are computed in float64 where the library has it, so that large positions are exact.

    Raises
    ------
    ValueError
        If `dim` is odd or not positive, `base` not above 0, or the number of positions negative.
    TypeError
        If `positions` is neither an integer nor an array of numbers.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, section 3.5.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.sinusoidal(3, 4).round(3).tolist()[1]
    [0.8410000205039978, 0.5400000214576721, 0.009999999776482582, 1.0]
    """
    dim = even("dim", dim, "a sine and a cosine for each frequency")
    angles = position_angles(_positions(positions), dim, checks.positive("base", base))  # (..., dim / 2)
    xp = namespace_of(angles)
    pair = xp.sin(angles), xp.cos(angles)
    y = xp.stack(pair, axis=-1) if checks.flag("interleaved", interleaved) else xp.concat(pair, axis=-1)
    return xp.astype(xp.reshape(y, (*angles.shape[:-1], dim)), dtype_called(xp, dtype))


def alibi_slopes(num_heads: int, *, dtype: str = "float32") -> Any:
    r"""The slope of each head for attention with linear biases.

    .. math:: m_h = 2^{-8 h / H}, \qquad h = 1 \dots H

    if H is a power of two. Else those of the next smaller power P, and then the first H - P of every other one of 2 P.

    Returns
    -------
    (heads,) array on the current backend

    References
    ----------
    Press, Smith and Lewis, "Train short, test long: attention with linear biases enables input length extrapolation",
    2021, arXiv:2108.12409.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    num_heads = checks.whole("num_heads", num_heads, 1, 2**31, "the number of heads")
    whole = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (n + 1) / whole) for n in range(whole)]
    slopes += [2.0 ** (-8.0 * (n + 1) / (2 * whole)) for n in range(0, 2 * (num_heads - whole), 2)]
    return asarray(slopes, dtype=dtype)


def alibi(
    num_heads: int, queries: int, keys: int, *, q_offset: int = 0, causal: bool = False, dtype: str = "float32"
) -> Any:
    r"""The bias of attention with linear biases: each head penalizes distance by its own slope.

    .. math:: b_{hij} = -m_h\, |i + \mathrm{offset} - j|

    Parameters
    ----------
    num_heads, queries, keys : int
        H, T, S.
    q_offset : int
        Query i has position i + q_offset, as in `scaled_dot_product_attention`.
    causal : bool
        For attention with `is_causal=True`: one row for all queries, m_h (j - S + 1). For keys up to
        the query, it differs from the above by one number for each query, which does not change the softmax; so it is
        equivalent and T times smaller. (With a sink, that number does change the softmax.)
    dtype : str
        Of the result.

    Returns
    -------
    (H, T, S) array, or (H, 1, S) with `causal`, on the current backend
        To be given as `bias`. No gradient is needed: nothing in it is learned.

    Raises
    ------
    ValueError
        If a size is not an integer >= 0, or `num_heads` is 0.

    References
    ----------
    Press, Smith and Lewis, 2021, arXiv:2108.12409; see `alibi_slopes`.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.alibi(8, 3, 3)[0].tolist()
    [[-0.0, -0.5, -1.0], [-0.5, -0.0, -0.5], [-1.0, -0.5, -0.0]]
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 8, 5, 4), np.float32)
    >>> aa.scaled_dot_product_attention(q, k, v, is_causal=True, bias=aa.alibi(8, 5, 5, causal=True)).shape
    (2, 8, 5, 4)
    """
    slopes = alibi_slopes(num_heads, dtype="float64")[:, None, None]  # (H, 1, 1)
    offsets = _offsets(queries, keys, q_offset)  # (T, S)
    xp, keys = namespace_of(slopes), offsets.shape[1]
    if checks.flag("causal", causal):
        offsets = xp.arange(keys)[None, None, :] - (keys - 1)
        return asarray(slopes * xp.astype(offsets, xp.float64), dtype=dtype)
    return asarray(-slopes * xp.astype(xp.abs(offsets), xp.float64)[None, :, :], dtype=dtype)


def relative_buckets(
    queries: int,
    keys: int,
    *,
    q_offset: int = 0,
    buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Any:
    r"""The bucket of the distance between each query and key, as in T5: exact if small, coarse if large.

    With n = position of the query less that of the key, where n < 0 counts as 0, and N buckets:

    .. math::
        \mathrm{bucket}(n) = \begin{cases} n & n < E \\ \min\Bigl(N - 1,\; E + \Bigl\lfloor
        \tfrac{\log(n / E)}{\log(M / E)} (N - E) \Bigr\rfloor \Bigr) & n \ge E \end{cases}
        \qquad E = \lfloor N / 2 \rfloor

    If `bidirectional`, half the buckets are for keys up to the query, by \|n\|, and the others for those after it.

    Parameters
    ----------
    queries, keys : int
        T, S.
    q_offset : int
        Query i has position i + q_offset.
    buckets : int
        N, or 2 N if bidirectional.
    max_distance : int
        M: from there on all distances share a bucket.
    bidirectional : bool
        Whether keys after the query have buckets of their own. If not, they are all in bucket 0: mask them.

    Returns
    -------
    (T, S) int64 array on the current backend
        From 0 to buckets - 1. The limits of the buckets are computed in integers, so rounding does not shift them.

    Raises
    ------
    ValueError
        If `buckets` is too small, or odd though it is halved, or `max_distance` does not exceed E.

    References
    ----------
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2019,
    arXiv:1910.10683, section 2.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> found = aa.relative_buckets(4, 4, buckets=8, max_distance=8)
    >>> found.tolist()
    [[0, 5, 6, 6], [1, 0, 5, 6], [2, 1, 0, 5], [2, 2, 1, 0]]

    A learned bias for each bucket and head, and its gradient:

    >>> table = np.zeros((8, 2))
    >>> rows, table_ctx = aa.embedding_fwd(found, table)  # (T, S, H)
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 3))
    >>> bias = np.moveaxis(rows, -1, 0)  # (H, T, S)
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q[None], k[None], v[None], bias=bias)
    >>> dbias = aa.scaled_dot_product_attention_bwd(out, ctx).bias
    >>> aa.embedding_bwd(np.moveaxis(dbias, 0, -1), table_ctx).weight.shape
    (8, 2)
    """
    distances = _offsets(queries, keys, q_offset)  # (T, S)
    each = _buckets_per_direction(buckets, checks.flag("bidirectional", bidirectional))
    exact = each // 2
    largest = checks.whole("max_distance", max_distance, 1, LARGEST_POSITION, "from there on all distances are alike")
    if largest <= exact:
        raise ValueError(
            f"`max_distance` is {max_distance}, expected more than {exact}, the distances with buckets of their own."
        )
    xp = namespace_of(distances)
    zero = xp.zeros_like(distances)
    nearest = xp.abs(distances) if bidirectional else xp.maximum(distances, zero)
    found = xp.minimum(nearest, zero + exact)
    for limit in _limits(exact, each - exact, largest):
        found = found + xp.astype(nearest >= limit, found.dtype)
    return found + each * xp.astype(distances < 0, found.dtype) if bidirectional else found


def _buckets_per_direction(buckets: int, bidirectional: bool) -> int:
    least = 4 if bidirectional else 2
    buckets = checks.whole("buckets", buckets, least, LARGEST_POSITION, "how many buckets of distances there are")
    if bidirectional and buckets % 2:
        raise ValueError(f"`buckets` is {buckets}, expected an even number: half of them are for each direction.")
    return buckets // 2 if bidirectional else buckets


def _limits(exact: int, coarse: int, largest: int) -> list[int]:
    """The least distances of the coarse buckets after their first: exact (largest / exact)^(b / coarse), rounded up."""
    limits = []
    for b in range(1, coarse):
        power = exact ** (coarse - b) * largest**b  # of the limit, to the power of `coarse`
        limit = max(1, int(math.exp(math.log(power) / coarse)))
        while limit**coarse >= power:
            limit -= 1
        while limit**coarse < power:
            limit += 1
        limits.append(limit)
    return limits


def check_positions(name: str, value: int | Array) -> int | Array:
    """`position` for an integer, or for an array of them in the index dtype."""
    if isinstance(value, int):
        return position(name, value)
    return checks.within(name, value, -LARGEST_POSITION, LARGEST_POSITION, POSITION)


def even(name: str, value: int, because: str) -> int:
    """Check for an even number above 0."""
    number = checks.whole(name, value, 1, 2**31, because)
    if number % 2:
        raise ValueError(f"`{name}` is {number}, expected an even number: {because}.")
    return number


def position_angles(positions: Array, dim: int, base: float, divisor: float = 1.0) -> Array:
    """t / divisor b^(-2n / d) for each position t and n < d / 2: (..., d / 2), in float64 where the library has it."""
    xp = namespace_of(positions)
    exact = xp.float64 if index_dtype(xp, positions) == xp.int64 else xp.float32
    powers = xp.arange(0, dim, 2, dtype=exact, device=device_of(positions)) / dim
    frequencies = xp.exp(-math.log(base) * powers) / divisor  # (d / 2,)
    return xp.astype(positions, exact)[..., None] * frequencies


def _positions(given: Any) -> Array:
    count = checks.integral(given)
    if count is not None:
        checks.whole("positions", count, 0, LARGEST_POSITION, "how many positions there are, or an array of them")
        return creation_namespace().arange(count)
    if not checks.is_array(given):
        checks.require_array("positions", given, "an integer or an array of positions")
    if not dtype_name(given.dtype).startswith(("int", "uint", *checks.FLOATS)):
        raise TypeError(f"`positions` has dtype {dtype_name(given.dtype)}, expected integers or floating numbers.")
    return given


def _offsets(queries: int, keys: int, q_offset: int) -> Array:
    """Position of each query less that of each key: (T, S)."""
    queries = checks.whole("queries", queries, 0, LARGEST_POSITION, "T")
    keys = checks.whole("keys", keys, 0, LARGEST_POSITION, "S")
    first = checks.whole("q_offset", q_offset, -LARGEST_POSITION, LARGEST_POSITION, "the position of the first query")
    xp = creation_namespace()
    return xp.arange(queries)[:, None] + first - xp.arange(keys)[None, :]

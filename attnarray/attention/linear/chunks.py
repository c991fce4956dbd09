"""Sequences in chunks of steps, decays to their borders, and the inverse of the triangular matrix of delta rules."""

from __future__ import annotations

from typing import Any, NamedTuple

from attnarray.attention.linear.decays import pair_products, sums_after, sums_to
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated


class Chunks(NamedTuple):
    """The arrays of linear attention in N chunks of C steps; query heads are in G groups, one for each key head.

    Of the last chunk the missing steps are 0 in all arrays, which leaves the state alone.
    """

    q: Array  # (B, Hkv, G, N, C, Dk)
    k: Array  # (B, Hkv, 1, N, C, Dk)
    v: Array  # (B, Hkv, 1, N, C, Dv)
    decay: Array | None  # (B, Hkv, 1, N, C, 1) or (B, Hkv, 1, N, C, Dk)
    beta: Array | None  # (B, Hkv, 1, N, C, 1)


def to_chunks(x: Array, heads: int, size: int) -> Any:
    """(B, H, T, N) -> (B, heads, H / heads, chunks, size, N), with zeros after the last step; at least one chunk."""
    xp = namespace_of(x)
    B, H, T, width = x.shape
    count = max(1, -(-T // size))
    if count * size > T:
        x = xp.concat([x, xp.zeros((B, H, count * size - T, width), dtype=x.dtype, device=device_of(x))], axis=2)
    return xp.reshape(x, (B, heads, H // heads if heads else 1, count, size, width))


def from_chunks(x: Array, shape: tuple[int, ...]) -> Any:
    """The reverse of `to_chunks`: an array of `shape` (B, H, T, N)."""
    xp = namespace_of(x)
    B, H, T, width = shape
    return xp.reshape(x, (B, H, x.shape[3] * x.shape[4], width))[:, :, :T, :]


class Borders(NamedTuple):
    """q and k with the decays between their steps and the borders of the chunk; None of no decay."""

    q: Array  # (B, Hkv, G, N, C, Dk), decayed from the start of the chunk
    k: Array  # (B, Hkv, 1, N, C, Dk), decayed from the start
    k_end: Array  # decayed to the end
    start: Array | None  # (B, Hkv, 1, N, C, 1 or Dk), the factors from the start up to each step
    end: Array | None  # from each step to the end
    whole: Array | None  # (B, Hkv, 1, N, 1, 1 or Dk), from start to end


def to_borders(c: Chunks) -> Borders:
    """q and k decayed to the borders of their chunks."""
    if c.decay is None:
        return Borders(c.q, c.k, c.k, None, None, None)
    xp = namespace_of(c.q)
    start, end = xp.exp(sums_to(c.decay)), xp.exp(sums_after(c.decay))
    return Borders(c.q * start, c.k * start, c.k * end, start, end, start[..., -1:, :])


def solver(c: Chunks) -> tuple[Any, Any]:
    r"""M and the inverse of I + diag(beta) M, both (..., C, C), M the products of each step's key with earlier ones."""
    xp = namespace_of(c.k)
    products = xp.tril(pair_products(c.k, c.k, c.decay), k=-1)
    return products, unit_lower_inverse(products * c.beta)


def unit_lower_inverse(below: Array) -> Any:
    r"""The inverse of I + L for L (..., C, C) strictly lower triangular, C a power of 2: halves, then wholes of them.

    .. math:: \begin{pmatrix} A & 0 \\ L & B \end{pmatrix}^{-1} =
        \begin{pmatrix} A^{-1} & 0 \\ -B^{-1} L A^{-1} & B^{-1} \end{pmatrix}
    """
    xp, C = namespace_of(below), below.shape[-1]
    if C == 1:
        return xp.ones_like(below)
    half = C // 2
    halves = xp.stack([below[..., :half, :half], below[..., half:, half:]], axis=-3)
    inverses = unit_lower_inverse(halves)
    first, second = inverses[..., 0, :, :], inverses[..., 1, :, :]
    corner = -xp.matmul(second, xp.matmul(below[..., half:, :half], first))
    top = xp.concat([first, xp.zeros_like(first)], axis=-1)
    return xp.concat([top, xp.concat([corner, second], axis=-1)], axis=-2)


@accelerated
def scan_chunks(
    S: Array, whole: Array | None, x: Array, p: Array | None, q: Array | None, r: Array | None, reverse: bool = False
) -> tuple[Any, Any, Any]:
    r"""The state from chunk to chunk: the sequential part of a pass, of every rule and in both directions.

    .. math:: U_n = X_n + P_n S_n, \qquad S_{n + 1} = \mathrm{diag}(w_n) S_n + Q_n^T U_n + R_n

    Parameters
    ----------
    S : (B, Hkv, 1, Dk, Dv)
    whole : (B, Hkv, 1, N, 1, 1 or Dk), or None
        w, the factors of whole chunks.
    x : (B, Hkv, 1, N, C, Dv)
    p, q : (B, Hkv, 1, N, C, Dk), or None for 0
    r : (B, Hkv, 1, N, Dk, Dv), or None for 0
    reverse : bool
        Whether to go from the last chunk to the first.

    Returns
    -------
    last : the shape of S
    states : (B, Hkv, 1, N, Dk, Dv)
        Before each chunk in this order.
    u : the shape of x
    """
    xp, count = namespace_of(S, x), x.shape[3]
    states, updates = [], []
    for n in reversed(range(count)) if reverse else range(count):
        states.append(S)
        u = chunk(x, n) if p is None else chunk(x, n) + xp.matmul(chunk(p, n), S)
        updates.append(u)
        S = S if whole is None else S * chunk(whole, n).mT
        S = S if q is None else S + xp.matmul(chunk(q, n).mT, u)
        S = S if r is None else S + chunk(r, n)
    if reverse:
        states, updates = states[::-1], updates[::-1]
    return S, xp.stack(states, axis=3), x if p is None else xp.stack(updates, axis=3)


def times(x: Array, factor: Array | None) -> Any:
    """x times a factor; without one, x."""
    return x if factor is None else x * factor


def sum_groups(x: Array) -> Any:
    """The sum over the query heads of each key head: (B, Hkv, G, ...) -> (B, Hkv, 1, ...)."""
    return x if x.shape[2] == 1 else namespace_of(x).sum(x, axis=2, keepdims=True)


def chunk(x: Array | None, n: int) -> Any:
    """One of the chunks: (B, Hkv, 1, N, ...) -> (B, Hkv, 1, ...)."""
    return None if x is None else x[:, :, :, n, :, :]

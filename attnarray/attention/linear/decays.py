"""Products of pairs of steps of a chunk, each weighted by the decays of the steps between the two.

Decays are logarithms <= 0. Every sum here is over one segment of steps, never the difference of two longer sums: its
exponential neither overflows nor loses digits, and a decay of -inf resets the state.
"""

from __future__ import annotations

from typing import Any

from attnarray.backend import Array, device_of, namespace_of


def sums_to(x: Array) -> Any:
    """The sums over the steps up to each: (..., C, N) -> (..., C, N)."""
    xp = namespace_of(x)
    sums = xp.cumulative_sum if hasattr(xp, "cumulative_sum") else xp.cumsum  # NumPy 2.0 has the older name alone
    return sums(x, axis=-2)


def sums_from(x: Array) -> Any:
    """The sums over each step and those after it."""
    xp = namespace_of(x)
    return xp.flip(sums_to(xp.flip(x, axis=-2)), axis=-2)


def sums_before(x: Array) -> Any:
    """The sums over the steps before each."""
    return moved(sums_to(x), first=True)


def sums_after(x: Array) -> Any:
    """The sums over the steps after each."""
    return moved(sums_from(x), first=False)


def moved(x: Array, first: bool) -> Any:
    """x by one step towards the end, or the start, with 0 at the free place."""
    zero = namespace_of(x).zeros_like(x[..., :1, :])
    parts = [zero, x[..., :-1, :]] if first else [x[..., 1:, :], zero]
    return namespace_of(x).concat(parts, axis=-2)


def pair_products(q: Array, k: Array, decay: Array | None) -> Any:
    r"""The products of each step t of q with the steps s up to it of k.

    .. math:: P_{ts} = \sum_d q_{td}\, k_{sd} \exp\Bigl(\sum_{s < r \le t} g_{rd}\Bigr) \quad (s \le t)

    Parameters
    ----------
    q, k : (..., C, D)
        C is a power of 2 if decays differ between key dimensions.
    decay : (..., C, 1) or (..., C, D), optional

    Returns
    -------
    (..., C, C) array
        0 above the diagonal.
    """
    xp = namespace_of(q, k)
    if decay is not None and decay.shape[-1] != 1:
        return _products_by_halves(q, k, decay)
    products = xp.tril(xp.matmul(q, k.mT))
    return products if decay is None else products * _pair_factors(decay)


def pair_products_backward(dproducts: Array, q: Array, k: Array, decay: Array | None) -> tuple[Any, Any, Any]:
    r"""The gradients of q, k and decay, where every entry of the gradient of decay is a sum without cancellation.

    .. math:: dg_r = \sum_{s < r \le t} dP_{ts}\, P_{ts}

    Entries of `dproducts` above the diagonal are ignored. Axes that were broadcast are not summed.
    """
    xp = namespace_of(dproducts, q, k)
    if decay is not None and decay.shape[-1] != 1:
        return _backward_by_halves(dproducts, q, k, decay)
    weighted = xp.tril(dproducts)
    if decay is None:
        return xp.matmul(weighted, k), xp.matmul(weighted.mT, q), None
    weighted = weighted * _pair_factors(decay)
    through = xp.tril(weighted * xp.matmul(q, k.mT), k=-1)  # (..., C, C): pairs s < t
    ddecay = xp.sum(xp.tril(sums_from(through), k=-1), axis=-1, keepdims=True)
    return xp.matmul(weighted, k), xp.matmul(weighted.mT, q), ddecay


def _pair_factors(decay: Array) -> Any:
    """exp of the sum of the decays (..., C, 1) after s up to t: (..., C, C), 0 above the diagonal."""
    xp, C = namespace_of(decay), decay.shape[-2]
    step = xp.arange(C, device=device_of(decay))
    between = xp.where(step[:, None] > step[None, :], decay, xp.zeros_like(decay))
    return xp.tril(xp.exp(sums_to(between)))


def _products_by_halves(q: Array, k: Array, decay: Array) -> Any:
    """Pairs of a late and an early half meet at the border between them, where one product serves all of them.

    The decays after s up to the border and from there up to t are applied to k and to q: neither factor is above 1.
    Then the same in each half.
    """
    xp, C = namespace_of(q, k), q.shape[-2]
    found = xp.sum(q * k, axis=-1)[..., None, None]  # (..., C, 1, 1)
    half = 1
    while half < C:
        late, early = _meeting(q, k, decay, half)
        below = xp.matmul(late, early.mT)  # (..., C / 2 half, half, half)
        pairs = xp.reshape(found, (*found.shape[:-3], found.shape[-3] // 2, 2, half, half))
        top = xp.concat([pairs[..., 0, :, :], xp.zeros_like(below)], axis=-1)
        found = xp.concat([top, xp.concat([below, pairs[..., 1, :, :]], axis=-1)], axis=-2)
        half *= 2
    return found[..., 0, :, :]


def _meeting(q: Array, k: Array, decay: Array, half: int) -> tuple[Any, Any]:
    """q of the late halves and k of the early ones, decayed to the border between them: (..., n, half, D)."""
    early, late = _factors(decay, half)
    return _halves(q, half)[..., 1, :, :] * late, _halves(k, half)[..., 0, :, :] * early


def _factors(decay: Array, half: int) -> tuple[Any, Any]:
    xp, parts = namespace_of(decay), _halves(decay, half)
    return xp.exp(sums_after(parts[..., 0, :, :])), xp.exp(sums_to(parts[..., 1, :, :]))


def _halves(x: Array, half: int) -> Any:
    """(..., C, N) -> (..., C / (2 half), 2, half, N)"""
    return namespace_of(x).reshape(x, (*x.shape[:-2], x.shape[-2] // (2 * half), 2, half, x.shape[-1]))


def _backward_by_halves(dproducts: Array, q: Array, k: Array, decay: Array) -> tuple[Any, Any, Any]:
    xp, C = namespace_of(dproducts, q, k), q.shape[-2]
    blocks, half = dproducts[..., None, :, :], C // 2  # blocks on the diagonal: (..., n, 2 half, 2 half)
    dq, dk, ddecay = (xp.zeros_like(x) for x in (q, k, decay))
    while half:
        early, late = _factors(decay, half)
        q_late, k_early = _meeting(q, k, decay, half)
        below = blocks[..., half:, :half]
        dq_late, dk_early = xp.matmul(below, k_early), xp.matmul(below.mT, q_late)
        dq = dq + _joined(None, dq_late * late)
        dk = dk + _joined(dk_early * early, None)
        ddecay = ddecay + _joined(sums_before(k_early * dk_early), sums_from(q_late * dq_late))
        blocks = xp.stack([blocks[..., :half, :half], blocks[..., half:, half:]], axis=-3)
        blocks = xp.reshape(blocks, (*blocks.shape[:-4], blocks.shape[-4] * 2, half, half))
        half //= 2
    same = blocks[..., 0]  # (..., C, 1)
    return dq + same * k, dk + same * q, ddecay


def _joined(early: Array | None, late: Array | None) -> Any:
    """Halves (..., n, half, N) -> (..., C, N); None is 0."""
    given = early if early is not None else late
    assert given is not None
    xp = namespace_of(given)
    parts = [xp.zeros_like(given) if part is None else part for part in (early, late)]
    both = xp.stack(parts, axis=-3)
    return xp.reshape(both, (*both.shape[:-4], both.shape[-4] * 2 * both.shape[-2], both.shape[-1]))

"""Parts of a layer of linear attention: decays from a projection, steps of padding, heads that share a key."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, device_of, namespace_of
from attnarray.magnitude import sum_wide


class Gates(NamedTuple):
    """z, softplus(z) and the decays g = -e^A softplus(z), in canonical order of the caller: (*batch, T, Hkv [, Dk])."""

    z: Any
    softplus: Any
    decay: Any


def make_gates(z: Array, rate: Array, dims: int | None) -> Gates:
    """The decays of the projection z (*batch, T, Hkv), or (*batch, T, Hkv Dk) with Dk = `dims`, and A (Hkv,)."""
    xp, z, factor = namespace_of(z), wide(z), namespace_of(z).exp(wide(rate))
    if dims is not None:
        z, factor = xp.reshape(z, (*z.shape[:-1], factor.shape[0], dims)), factor[:, None]
    softplus = xp.log1p(xp.exp(-xp.abs(z))) + xp.maximum(z, xp.zeros_like(z))
    return Gates(z, softplus, -factor * softplus)


def gates_backward(ddecay: Any, dvalue: Array, gates: Gates, rate: Array, values: Array | None) -> tuple[Any, ...]:
    r"""The gradients of z, of A and of the values, which were multiplied by s = softplus(z) unless `values` is None.

    .. math:: ds = -e^A dg + \sum dv' v, \qquad dA = \sum dg\, g, \qquad dz = ds\, \sigma(z)
    """
    xp, (z, softplus, decay) = namespace_of(gates.z), gates
    by_dim = z.ndim == dvalue.ndim
    dg: Any = wide(ddecay)
    factor: Any = xp.exp(wide(rate))
    per_head = xp.sum(dg * decay, axis=-1) if by_dim else dg * decay  # (*batch, T, Hkv)
    drate = narrow(sum_wide(per_head, tuple(range(per_head.ndim - 1))), rate)
    ds, like = -dg * (factor[:, None] if by_dim else factor), dvalue
    if values is not None:
        ds = ds + xp.sum(wide(dvalue) * wide(values), axis=-1)
        dvalue = dvalue * narrow(softplus, dvalue)[..., None]
    small = xp.exp(-xp.abs(z))  # the logistic function without overflow
    dz = ds * xp.where(z < 0, small, xp.ones_like(z)) / (1.0 + small)
    if by_dim:
        dz = xp.reshape(dz, (*dz.shape[:-2], dz.shape[-2] * dz.shape[-1]))
    return narrow(dz, like), drate, dvalue


def fixed_decays(x: Array, heads: int) -> Any:
    """The logarithms of RetNet's factors 1 - 2^(-5 - h), (*batch, T, heads)."""
    host = np.log1p(-(2.0 ** (-5.0 - np.arange(heads))))
    factors = namespace_of(x).asarray(host, dtype=x.dtype, device=device_of(x))
    return namespace_of(x).broadcast_to(factors, (*x.shape[:-1], heads))


def existing_steps(starts: Any, lengths: Any, x: Array, first: int) -> Any:
    """Which steps of x, before which there were `first`, are no padding: (*batch, T, 1); None if all are."""
    xp, T = namespace_of(x), x.shape[-2]
    step = xp.arange(first, first + T, device=device_of(x))[:, None]
    exists = None
    if starts is not None:
        exists = step >= _ends("starts", starts, x, 2**31, "the length of the left padding of each sequence")
    if lengths is not None:
        within = step < _ends("lengths", lengths, x, T, "the number of steps of each sequence")
        exists = within if exists is None else exists & within
    return exists


def _ends(name: str, given: Any, x: Array, most: int, meaning: str) -> Any:
    """Positions where sequences begin or end: an integer, or (*batch, 1, 1)."""
    given = checks.same_device(name, checks.integers(name, given), "x", x)
    if isinstance(given, int):
        return checks.whole(name, given, 0, most, meaning)
    checks.shape(name, given, tuple(x.shape[:-2]), meaning)
    return checks.within(name, given, 0, most, meaning)[..., None, None]


def hide(x: Any, exists: Any) -> Any:
    """x with 0 in the padding."""
    return x if exists is None else namespace_of(x).where(exists, x, namespace_of(x).zeros_like(x))


def repeat_heads(x: Any, count: int) -> Any:
    """Each head of x (*batch, T, H, D) `count` times, one after the other."""
    if count == 1:
        return x
    *others, H, D = x.shape
    xp = namespace_of(x)
    return xp.reshape(xp.broadcast_to(x[..., None, :], (*others, H, count, D)), (*others, H * count, D))


def repeat_heads_backward(dx: Any, count: int) -> Any:
    """The sum over the copies of each head."""
    if count == 1:
        return dx
    *others, H, D = dx.shape
    xp = namespace_of(dx)
    return narrow(xp.sum(xp.reshape(wide(dx), (*others, H // count, count, D)), axis=-2), dx)

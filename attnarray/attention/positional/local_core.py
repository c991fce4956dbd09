"""Attention around given centres, on canonical arrays (B, 1, T, D): a query reads the keys of its window alone.

The keys are gathered, so that every query is a batch row of its own, with the N keys that a window may have: R = B T
rows against N keys. Cost and memory grow with T N, not with T S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from attnarray.attention.core import (
    bias_gradient,
    dot_products,
    hiding_product,
    join,
    query_blocks,
    times,
    transposed_times,
)
from attnarray.attention.form import Form
from attnarray.attention.positional.local_near import by_row, ends, gaussian, near_keys, sum_in_shape
from attnarray.attention.scoring import Scoring, gradients_of_dots, weights_from_dots, weights_from_lse
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated


class AroundContext(NamedTuple):
    """What the backward of predictive attention needs: inputs as (B, 1, T, N), where it looked, output and lse."""

    q: Array
    k: Array
    v: Array
    centers: Array
    window: int
    sigma: float
    out: Array
    lse: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None

    def weights_of_rows(self, start: int, stop: int) -> Array:
        """The weights of the queries [start, stop), the Gaussian among them: (B, 1, rows, S)."""
        lse, centers = (x[:, :, start:stop] for x in (self.lse, self.centers))
        dots = dot_products(self.q[:, :, start:stop, :], self.k)
        return dense_weights(dots, lse, centers, self.window, self.sigma, self.scoring.rows(start, stop))


@accelerated
def attend_around(
    q: Array, k: Array, v: Array, centers: Array, window: int, sigma: float, scoring: Scoring
) -> tuple[Array, Array]:
    r"""The forward pass: the Gaussian stands outside the softmax.

    .. math::
        o_i = \sum_{|j - c_i| \le w} p_{ij}\, g_{ij}\, v_j, \qquad g_{ij} = e^{-(j - c_i)^2 / 2 \sigma^2}, \qquad
        p_i = \mathrm{softmax}_{|j - c_i| \le w}(s_{ij})

    Parameters
    ----------
    q : (B, 1, T, D) float32 or float64, k : (B, 1, S, D), v : (B, 1, S, Dv)
    centers : (B, 1, T)
        c, from 0 to S.
    window : int
        w.
    sigma : float
    scoring : Scoring

    Returns
    -------
    out : (B, 1, T, Dv)
    lse : (B, 1, T)
        Of the scores within the window.
    """
    xp = namespace_of(q, k, v, centers)
    outs, lses = [], []
    for start, stop in _blocks(q, v, k.shape[2], window):
        near = near_keys(k, centers[:, :, start:stop], window, sigma, scoring.rows(start, stop))
        weights, lse = weights_from_dots(dot_products(by_row(q[:, :, start:stop, :]), near.of(k)), near.scoring)
        out = times(xp.where(weights == 0, 0.0, weights * near.factor), near.of(v), True)  # (R, 1, 1, Dv)
        outs.append(xp.reshape(out, (q.shape[0], 1, stop - start, v.shape[3])))
        lses.append(xp.reshape(lse, (q.shape[0], 1, stop - start)))
    return join(outs), join(lses)


@accelerated
def attend_around_backward(
    dout: Array, q: Array, k: Array, v: Array, centers: Array, out: Array, lse: Array, window: int, sigma: float,
    scoring: Scoring,
) -> tuple[Array, Array, Array, Array, Array | None]:  # fmt: skip
    r"""The backward pass. Scores and weights are computed again, for the windows of a block of queries at a time.

    .. math::
        a_{ij} = g_{ij}\, do_i \cdot v_j, \quad ds_{ij} = p_{ij} (a_{ij} - do_i \cdot o_i), \quad
        dc_i = \sum_j p_{ij}\, a_{ij}\, (j - c_i) / \sigma^2, \quad dv_j = \sum_i p_{ij}\, g_{ij}\, do_i

    .. math:: dq_i = \sum_j ds_{ij} k_j, \qquad dk_j = \sum_i ds_{ij} q_i

    with ds carried through softcap and scale before the last two. A centre moves the Gaussian; that it also moves the
    window makes steps, whose gradient is 0.

    Returns
    -------
    dq, dk, dv, dcenters : the shapes of q, k, v, centers
    dbias : the shape of scoring.bias, or None
    """
    xp = namespace_of(dout, q, k, v, centers)
    delta = xp.sum(hiding_product(out, dout), axis=-1)  # (B, 1, T)
    dqs, dcenters, dbiases = [], [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for start, stop in _blocks(q, v, k.shape[2], window):
        block = scoring.rows(start, stop)
        near = near_keys(k, centers[:, :, start:stop], window, sigma, block)
        rows, drows, keys = by_row(q[:, :, start:stop, :]), by_row(dout[:, :, start:stop, :]), near.of(k)
        dweights = dot_products(drows, near.of(v))  # (R, 1, 1, N)
        dweights = xp.where(near.factor == 0, 0.0, dweights * near.factor)
        moved = dweights * (near.distances / sigma**2)  # before a kernel overwrites dweights
        lses, deltas = (by_row(x[:, :, start:stop, None])[..., 0] for x in (lse, delta))
        weights, ddots, dscores = gradients_of_dots(dot_products(rows, keys), dweights, lses, deltas, near.scoring)
        dqs.append(xp.reshape(times(ddots, keys, True), (q.shape[0], 1, stop - start, q.shape[3])))
        dk = dk + near.sum(transposed_times(ddots, rows, 1, True), k)
        used = xp.where(weights == 0, 0.0, weights * near.factor)
        dv = dv + near.sum(transposed_times(used, drows, 1, True), v)
        moved = xp.sum(xp.where(weights == 0, 0.0, weights * moved), axis=-1)  # (R, 1, 1)
        dcenters.append(xp.reshape(moved, (q.shape[0], 1, stop - start)))
        if dscores is not None and block.bias is not None:
            dbiases.append(sum_in_shape(dscores, block.bias.shape, near.keys))
    return join(dqs), dk, dv, join(dcenters), bias_gradient(dbiases, scoring.bias)


def _blocks(q: Array, v: Array, keys: int, window: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries, so that the gathered keys and values of a range are held at a time."""
    return query_blocks(q[:, :, :, :1], v[:, :, : min(2 * window + 1, keys), :], q.shape[3] + v.shape[3])


def dense_weights(dots: Array, lse: Array, centers: Array, window: int, sigma: float, scoring: Scoring) -> Array:
    """The weights of queries against all keys, from dot products (B, 1, T, S), before dropout."""
    xp = namespace_of(dots, centers)
    center = centers[..., None]  # (B, 1, T, 1)
    lowest, highest = ends(center, dots.shape[3], window)
    keys = xp.arange(dots.shape[3], dtype=lowest.dtype, device=device_of(dots))
    inside = (keys >= lowest) & (keys <= highest)
    mask = inside if scoring.mask is None else inside & scoring.mask
    weights = weights_from_lse(dots, lse, scoring._replace(mask=mask))
    return xp.where(weights == 0, 0.0, weights * gaussian(xp.astype(keys, centers.dtype) - center, sigma))

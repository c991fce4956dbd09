"""Attention around given centers, on canonical arrays (B, 1, T, D): a query reads the keys of its window alone.

The keys are gathered, so that every query is a batch row of its own, with the N keys that a window may have: R = B T
rows against N keys. Cost and memory grow with T N, not with T S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from attnarray.attention.blocks import join, query_blocks, total_gradient
from attnarray.attention.layout import Layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import masked_softmax, masked_softmax_backward, masked_softmax_from_lse
from attnarray.attention.positional.local_near import by_row, ends, gaussian, near_keys, sum_in_shape
from attnarray.attention.products import dot_products, hiding_product, weighted_sum, weighted_sum_over_queries
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
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None

    def weights_of_rows(self, rows: slice) -> Array:
        """The weights of some queries, the Gaussian among them: (B, 1, rows, S)."""
        lse, centers = (x[:, :, rows] for x in (self.lse, self.centers))
        products, modifiers = dot_products(self.q[:, :, rows, :], self.k), self.modifiers.rows(rows.start, rows.stop)
        return dense_weights(products, lse, centers, self.window, self.sigma, modifiers)


@accelerated
def attend_around(
    q: Array, k: Array, v: Array, centers: Array, window: int, sigma: float, modifiers: ScoreModifiers
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
    modifiers : ScoreModifiers

    Returns
    -------
    out : (B, 1, T, Dv)
    lse : (B, 1, T)
        Of the scores within the window.
    """
    xp = namespace_of(q, k, v, centers)
    outs, lses = [], []
    for rows in _blocks(q, v, k.shape[2], window):
        near = near_keys(k, centers[:, :, rows], window, sigma, modifiers.rows(rows.start, rows.stop))
        weights, lse = masked_softmax(dot_products(by_row(q[:, :, rows, :]), near.of(k)), near.modifiers)
        out = weighted_sum(hiding_product(weights, near.factor), near.of(v), True)  # (R, 1, 1, Dv)
        outs.append(xp.reshape(out, (q.shape[0], 1, rows.stop - rows.start, v.shape[3])))
        lses.append(xp.reshape(lse, centers[:, :, rows].shape))
    return join(outs), join(lses)


@accelerated
def attend_around_backward(
    dout: Array, q: Array, k: Array, v: Array, centers: Array, out: Array, lse: Array, window: int, sigma: float,
    modifiers: ScoreModifiers,
) -> tuple[Array, Array, Array, Array, Array | None]:  # fmt: skip
    r"""The backward pass. Scores and weights are computed again, for the windows of a block of queries at a time.

    .. math::
        a_{ij} = g_{ij}\, do_i \cdot v_j, \quad ds_{ij} = p_{ij} (a_{ij} - do_i \cdot o_i), \quad
        dc_i = \sum_j p_{ij}\, a_{ij}\, (j - c_i) / \sigma^2, \quad dv_j = \sum_i p_{ij}\, g_{ij}\, do_i

    .. math:: dq_i = \sum_j ds_{ij} k_j, \qquad dk_j = \sum_i ds_{ij} q_i

    with ds carried through softcap and scale before the last two. A center moves the Gaussian; that it also moves the
    window makes steps, whose gradient is 0.

    Returns
    -------
    dq, dk, dv, dcenters : the shapes of q, k, v, centers
    dbias : the shape of modifiers.bias, or None
    """
    xp = namespace_of(dout, q, k, v, centers)
    delta = xp.sum(hiding_product(out, dout), axis=-1)  # (B, 1, T)
    dqs, dcenters, dbiases = [], [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for rows in _blocks(q, v, k.shape[2], window):
        block = modifiers.rows(rows.start, rows.stop)
        near = near_keys(k, centers[:, :, rows], window, sigma, block)
        q_rows, dout_rows, keys = by_row(q[:, :, rows, :]), by_row(dout[:, :, rows, :]), near.of(k)
        dweights = hiding_product(near.factor, dot_products(dout_rows, near.of(v)))  # (R, 1, 1, N)
        through_center = dweights * (near.distances / sigma**2)  # before a kernel overwrites dweights
        lses, deltas = (by_row(x[:, :, rows, None])[..., 0] for x in (lse, delta))
        scores = dot_products(q_rows, keys)
        weights, dscores, dmodified = masked_softmax_backward(scores, dweights, lses, deltas, near.modifiers)
        dqs.append(xp.reshape(weighted_sum(dscores, keys, True), q[:, :, rows, :].shape))
        dk = dk + near.sum(weighted_sum_over_queries(dscores, q_rows, 1, True), k)
        dv = dv + near.sum(weighted_sum_over_queries(hiding_product(weights, near.factor), dout_rows, 1, True), v)
        dcenter = xp.sum(hiding_product(weights, through_center), axis=-1)  # (R, 1, 1)
        dcenters.append(xp.reshape(dcenter, centers[:, :, rows].shape))
        if dmodified is not None and block.bias is not None:
            dbiases.append(sum_in_shape(dmodified, block.bias.shape, near.keys))
    return join(dqs), dk, dv, join(dcenters), total_gradient(dbiases, modifiers.bias)


def _blocks(q: Array, v: Array, keys: int, window: int) -> Iterator[slice]:
    """Ranges of queries, so that the gathered keys and values of a range are held at a time."""
    return query_blocks(q[:, :, :, :1], v[:, :, : min(2 * window + 1, keys), :], q.shape[3] + v.shape[3])


def dense_weights(
    scores: Array, lse: Array, centers: Array, window: int, sigma: float, modifiers: ScoreModifiers
) -> Array:
    """The weights of queries against all keys, from scores (B, 1, T, S), before dropout."""
    xp = namespace_of(scores, centers)
    center = centers[..., None]  # (B, 1, T, 1)
    lowest, highest = ends(center, scores.shape[3], window)
    keys = xp.arange(scores.shape[3], dtype=lowest.dtype, device=device_of(scores))
    inside = (keys >= lowest) & (keys <= highest)
    mask = inside if modifiers.mask is None else inside & modifiers.mask
    weights = masked_softmax_from_lse(scores, lse, modifiers._replace(mask=mask))
    return xp.where(weights == 0, 0.0, weights * gaussian(xp.astype(keys, centers.dtype) - center, sigma))

"""Graph attention on canonical arrays (B, nodes, H, F): scores of edges, and sums of values over the edges of a node.

Block by block of edges: what exists for each edge and feature is never held for all edges at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from attnarray.attention.blocks import BLOCK_ELEMENTS
from attnarray.attention.products import hiding_matmul
from attnarray.backend import Array, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.segments import sum_segments

Gradients = tuple[Array, Array, Array | None, Array]


@accelerated
def gatv2_scores(q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array, slope: float) -> Any:
    r"""The scores of GATv2 for each edge from j to i.

    .. math:: e_e = \sum_c w_c\, \mathrm{LeakyReLU}(q_{ic} + k_{jc} + f_{ec})

    Parameters
    ----------
    q : (B, N, H, F) float32 or float64, k : (B, M, H, F), f : (B, E, H, F) or None, w : (H, F)
    sources, targets : (E,) integer
        Rows of k, and rows of q.
    slope : float
        Of LeakyReLU below 0.

    Returns
    -------
    (B, E, H)
    """
    xp = namespace_of(q, k, w)
    scores = []
    for start, stop in _blocks(q, sources):
        hidden = _hidden(q, k, f, sources, targets, start, stop)  # (B, edges, H, F)
        scores.append(xp.sum(leaky(hidden, slope) * w, axis=-1))
    return xp.concat(scores, axis=1)


@accelerated
def gatv2_scores_backward(
    dscores: Array, q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array, slope: float
) -> Gradients:
    r"""The gradients of `gatv2_scores` with respect to q, k, f and w. The hidden layer is computed again.

    .. math::
        dz_{ec} = de_e\, w_c \cdot \{1 \text{ where } z_{ec} > 0, \text{ else slope}\}, \quad
        dq_i = \sum_{e: i} dz_e, \quad dk_j = \sum_{e: j} dz_e, \quad df_e = dz_e, \quad
        dw = \sum_e de_e\, \mathrm{LeakyReLU}(z_e)

    Where a score has gradient 0, the edge does not matter, even if it holds NaN.

    Parameters
    ----------
    dscores : (B, E, H)
    q, k, f, w, sources, targets, slope
        As in `gatv2_scores`.

    Returns
    -------
    dq, dk, df, dw : the shapes of q, k, f, w
    """
    xp = namespace_of(dscores, q, k, w)
    dq, dk, dfs, dw = xp.zeros_like(q), xp.zeros_like(k), [], xp.zeros_like(w)
    for start, stop in _blocks(q, sources):
        hidden = _hidden(q, k, f, sources, targets, start, stop)  # (B, edges, H, F)
        ds = dscores[:, start:stop, :, None]
        slopes = xp.where(hidden > 0, ds * w, slope * ds * w)
        dhidden = xp.where(ds == 0, 0.0, slopes)
        dq = dq + sum_rows(dhidden, targets[start:stop], q.shape[1])
        dk = dk + sum_rows(dhidden, sources[start:stop], k.shape[1])
        dfs.append(dhidden)
        dw = dw + xp.sum(xp.where(ds == 0, 0.0, ds * leaky(hidden, slope)), axis=(0, 1))
    return dq, dk, None if f is None else xp.concat(dfs, axis=1), dw


@accelerated
def gat_scores(q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array, slope: float) -> Any:
    """The scores of GAT, LeakyReLU(w . [q_i; k_j; f_e]): (B, E, H); w is (H, 2 F), or (H, 3 F) with f."""
    return leaky(_sums_of_products(q, k, f, w, sources, targets), slope)


@accelerated
def gat_scores_backward(
    dscores: Array, q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array, slope: float
) -> Gradients:
    """The gradients of `gat_scores`: each part of w meets the nodes, and only numbers per head meet the edges."""
    xp = namespace_of(dscores, q, k, w)
    sums = _sums_of_products(q, k, f, w, sources, targets)
    dsums = xp.where(dscores == 0, 0.0, xp.where(sums > 0, dscores, slope * dscores))  # (B, E, H)
    dnodes = [sum_segments(dsums, targets, q.shape[1]), sum_segments(dsums, sources, k.shape[1])]
    dproducts = [*dnodes, *([] if f is None else [dsums])]
    dxs, dws = [], []
    for x, part, dproduct in zip((q, k) if f is None else (q, k, f), _parts(w, q.shape[3]), dproducts, strict=False):
        dxs.append(dproduct[..., None] * part)
        rows = xp.permute_dims(xp.reshape(dproduct, (math.prod(dproduct.shape[:2]), 1, dproduct.shape[2])), (2, 1, 0))
        dws.append(hiding_matmul(rows, by_head(x), True)[:, 0, :])  # (H, F)
    return dxs[0], dxs[1], None if f is None else dxs[2], xp.concat(dws, axis=1)


@accelerated
def aggregate(weights: Array, v: Array, sources: Array, targets: Array, count: int) -> Array:
    r"""The sums of the values over the edges that end in a node.

    .. math:: o_i = \sum_{e:\, j \to i} p_e v_j

    A weight of zero hides what it multiplies, even NaN.

    Parameters
    ----------
    weights : (B, E, H) float32 or float64
    v : (B, M, H, Fv)
    sources, targets : (E,) integer
        Rows of v, and rows of the result.
    count : int
        The number N of nodes that edges end in.

    Returns
    -------
    (B, N, H, Fv)
    """
    xp = namespace_of(weights, v)
    out: Any = 0.0
    for start, stop in _blocks(v, sources):
        each = weights[:, start:stop, :, None]
        terms = xp.where(each == 0, 0.0, each * take_rows(v, sources[start:stop]))  # (B, edges, H, Fv)
        out = sum_rows(terms, targets[start:stop], count) + out
    return out


@accelerated
def aggregate_backward(dout: Array, weights: Array, v: Array, sources: Array, targets: Array) -> tuple[Array, Array]:
    r"""The gradients of `aggregate` with respect to the weights, which may be NaN where a weight is 0, and v.

    .. math:: dp_e = do_i \cdot v_j, \quad dv_j = \sum_{e:\, j \to i} p_e\, do_i

    Parameters
    ----------
    dout : (B, N, H, Fv)
    weights, v, sources, targets
        As in `aggregate`.

    Returns
    -------
    dweights : (B, E, H), dv : (B, M, H, Fv)
    """
    xp = namespace_of(dout, weights, v)
    dweights, dv = [], xp.zeros_like(v)
    for start, stop in _blocks(v, sources):
        each, drows = weights[:, start:stop, :, None], take_rows(dout, targets[start:stop])
        dweights.append(xp.sum(drows * take_rows(v, sources[start:stop]), axis=-1))
        terms = xp.where(each == 0, 0.0, each * drows)  # (B, edges, H, Fv)
        dv = dv + sum_rows(terms, sources[start:stop], v.shape[1])
    return xp.concat(dweights, axis=1), dv


def leaky(x: Array, slope: float) -> Array:
    """LeakyReLU."""
    return namespace_of(x).where(x > 0, x, slope * x)


def take_rows(x: Array, places: Array) -> Array:
    """The nodes that the edges name: (B, nodes, ...) -> (B, E, ...)."""
    return namespace_of(x).take(x, places, axis=1) if places.shape[0] else x[:, :0, ...]


def sum_rows(x: Array, places: Array, count: int) -> Array:
    """The sums (B, count, H, F) of what edges (B, E, H, F) bring to the nodes that they name."""
    xp = namespace_of(x)
    B, E, H, F = x.shape
    return xp.reshape(sum_segments(xp.reshape(x, (B, E, H * F)), places, count), (B, count, H, F))


def _blocks(x: Array, places: Array) -> Iterator[tuple[int, int]]:
    """Ranges of edges, at least one, so that an array of all features of a range stays small."""
    edges = places.shape[0]
    size = max(1, BLOCK_ELEMENTS // max(1, math.prod((x.shape[0], *x.shape[2:]))))
    for start in range(0, max(edges, 1), size):
        yield start, min(start + size, edges)


def _hidden(q: Array, k: Array, f: Array | None, sources: Array, targets: Array, start: int, stop: int) -> Array:
    """q_i + k_j + f_e of the edges [start, stop): (B, edges, H, F)."""
    total = take_rows(q, targets[start:stop]) + take_rows(k, sources[start:stop])
    return total if f is None else total + f[:, start:stop, ...]


def _sums_of_products(q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array) -> Array:
    """w . [q_i; k_j; f_e], each product taken where its numbers are: (B, E, H)."""
    xp = namespace_of(q, k, w)
    w_query, w_key, w_edge = _parts(w, q.shape[3])
    products = [
        xp.reshape(xp.permute_dims(xp.matmul(by_head(x), part[..., None])[..., 0], (1, 0)), x.shape[:3])
        for x, part in zip((q, k, f), (w_query, w_key, w_edge), strict=True)
        if x is not None
    ]  # (B, N, H), (B, M, H) and (B, E, H)
    total = take_rows(products[0], targets) + take_rows(products[1], sources)
    return total if f is None else total + products[2]


def by_head(x: Array) -> Array:
    """(B, N, H, F) -> (H, B N, F)."""
    B, N, H, F = x.shape
    return namespace_of(x).permute_dims(namespace_of(x).reshape(x, (B * N, H, F)), (1, 0, 2))


def _parts(w: Array, features: int) -> tuple[Array, Array, Array]:
    """What of w (H, 2 F or 3 F) meets the query, the key and the edge."""
    return w[:, :features], w[:, features : 2 * features], w[:, 2 * features :]

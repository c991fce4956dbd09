"""Graph attention (GAT and GATv2): each node attends over the edges that end in it.

Computed in blocks of edges: arrays over edges and features are never held for all edges at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.blocks import ranges
from attnarray.attention.graph.options import GraphScore, checked_dropout, checked_graph
from attnarray.attention.products import hiding_matmul
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors
from attnarray.ops.dropout import DropoutContext, _dropout
from attnarray.ops.segments import _segment_softmax, _segment_softmax_backward, sum_segments
from attnarray.random import Philox


class GraphContext(NamedTuple, Generic[ArrayT]):
    """The context of the backward: the inputs as (B, nodes, H, F), and the weights of the edges (B, E, H)."""

    q: ArrayT
    k: ArrayT
    v: ArrayT
    score_vector: ArrayT
    edge_features: ArrayT | None
    sources: Array
    targets: Array
    weights: ArrayT
    score: GraphScore
    negative_slope: float
    dropout: DropoutContext | None
    batch: tuple[int, ...]


class GraphGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    score_vector: ArrayT
    edge_features: ArrayT | None


def graph_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    edges: Array,
    edge_features: ArrayT | None = None,
    *,
    score: GraphScore = "gatv2",
    negative_slope: float = 0.2,
    edge_mask: Array | None = None,
    dropout_p: float = 0.0,
    rng: Philox | int | None = None,
    dropout_mask: Array | None = None,
) -> ArrayT:
    r"""Attention over the edges of a graph, with the scores of GAT or of GATv2, by heads.

    .. math::
        o_i = \sum_{e:\, j \to i} p_e v_j, \qquad p_e = \frac{e^{s_e}}{\sum_{e':\, j' \to i} e^{s_{e'}}}, \qquad
        s_e = \begin{cases}
            a^T \mathrm{LeakyReLU}(q_i + k_j + f_e) & \text{gatv2} \\
            \mathrm{LeakyReLU}(a^T [q_i; k_j; f_e]) & \text{gat}
        \end{cases}

    In GAT the ranking of neighbors is the same for every query node; in GATv2 it depends on the node.

    Parameters
    ----------
    query : (*batch, N, H, F) floating
        The queries of the nodes that edges end in: W_t h_i. 16-bit types are computed in float32.
    key : (*batch, M, H, F)
        The keys of the nodes that edges come from: W_s h_j. In most graphs they are the same nodes, and M = N.
    value : (*batch, M, H, Fv)
        The values; in both papers they are the keys.
    score_vector : (H, F) for "gatv2"; (H, 2 F) for "gat", (H, 3 F) with edge features
        a, for "gat" the concatenated parts for query, key and edge.
    edges : (2, E) integer
        Row 0 the source j, a row of key and value; row 1 the target i, a row of query. In any order. An edge that is
        given twice counts twice. A node has a self-loop only if that is given: see `add_self_loops`.
    edge_features : (*batch, E, H, F), optional
        f, projected to the heads as the nodes are.
    score : {"gatv2", "gat"}
    negative_slope : float
        Of LeakyReLU below 0.
    edge_mask : bool, broadcastable to (*batch, E), optional
        True where an edge exists.
    dropout_p : float
        The probability to drop the weight of an edge.
    rng : Philox or int, optional
        The seed of dropout; element n of the weights (*batch, E, H), in row-major order, draws number n.
    dropout_mask : bool, broadcastable to (*batch, E, H), optional
        True = keep, instead of `rng`.

    Returns
    -------
    (*batch, N, H, Fv) of the dtype of query
        A node without edges gives 0. Nodes without an edge that exists are ignored, even if they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, an edge names a node that does not exist, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    References
    ----------
    Veličković et al., "Graph attention networks", 2017, arXiv:1710.10903.
    Brody, Alon and Yahav, "How attentive are graph attention networks?", 2021, arXiv:2105.14491.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> nodes = np.random.default_rng(0).standard_normal((4, 2, 8))  # N 4, H 2, F 8
    >>> edges = np.array([[0, 2, 3], [1, 1, 0]])  # 0 -> 1, 2 -> 1, 3 -> 0
    >>> out, ctx = aa.graph_attention_fwd(nodes, nodes, nodes, np.ones((2, 8)), edges)
    >>> out.shape, np.array_equal(out[0], nodes[3]), int(np.count_nonzero(out[2:]))
    ((4, 2, 8), True, 0)
    >>> aa.graph_attention_weights(ctx).shape
    (3, 2)

    All graphs of a batch have these edges. Different graphs are one graph of several parts:

    >>> other = np.array([[0, 1], [1, 2]])  # of a graph whose nodes follow these four
    >>> np.concatenate([edges, other + 4], axis=1).tolist()
    [[0, 2, 3, 4, 5], [1, 1, 0, 5, 6]]
    """
    return graph_attention_fwd(
        query, key, value, score_vector, edges, edge_features, score=score, negative_slope=negative_slope,
        edge_mask=edge_mask, dropout_p=dropout_p, rng=rng, dropout_mask=dropout_mask,
    )[0]  # fmt: skip


@ignoring_fp_errors
def graph_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    score_vector: ArrayT,
    edges: Array,
    edge_features: ArrayT | None = None,
    *,
    score: GraphScore = "gatv2",
    negative_slope: float = 0.2,
    edge_mask: Array | None = None,
    dropout_p: float = 0.0,
    rng: Philox | int | None = None,
    dropout_mask: Array | None = None,
) -> tuple[ArrayT, GraphContext[ArrayT]]:
    """`graph_attention`, with the same options, and the context for its backward."""
    named = {"query": query, "key": key, "value": value, "score_vector": score_vector, "edge_features": edge_features}
    batch, sources, targets, slope = checked_graph(named, edges, score, negative_slope, edge_mask, dropout_mask)
    weights_shape = (*batch, edges.shape[1], query.shape[-2])
    dropout = checked_dropout(dropout_p, rng, dropout_mask, weights_shape)
    xp = namespace_of(query)
    q, k, v = (_canonical(x, batch) for x in (query, key, value))
    f = None if edge_features is None else _canonical(edge_features, batch)
    mask = None
    if edge_mask is not None:
        mask = _canonical(xp.broadcast_to(edge_mask, weights_shape[:-1]), batch)[..., None]  # (B, E, 1)
    scores = (gat_scores if score == "gat" else gatv2_scores)(
        wide(q), wide(k), None if f is None else wide(f), wide(score_vector), sources, targets, slope
    )
    weights = _segment_softmax(scores, targets, q.shape[1], mask)
    ctx = GraphContext(q, k, v, score_vector, f, sources, targets, weights, score, slope, dropout, batch)
    out = aggregate(_dropped(weights, ctx), wide(v), sources, targets, q.shape[1])
    return narrow(xp.reshape(out, (*batch, *out.shape[1:])), query), ctx


@ignoring_fp_errors
def graph_attention_bwd(dout: Array, ctx: GraphContext[ArrayT], dweights: Array | None = None) -> GraphGrads[ArrayT]:
    r"""The gradients of graph attention; the hidden layer of the scores is computed again.

    .. math::
        dv_j = \sum_{e:\, j \to i} p_e\, do_i, \qquad dp_e = do_i \cdot v_j, \qquad
        ds_e = p_e \Bigl(dp_e - \sum_{e':\, j' \to i} p_{e'}\, dp_{e'}\Bigr)

    and with :math:`l'` = 1 where the argument of LeakyReLU is above 0, else its slope:

    .. math::
        \text{gatv2:} \quad & dz_e = ds_e\, a \odot l'(z_e), \quad z_e = q_i + k_j + f_e, \quad
        da = \sum_e ds_e\, \mathrm{LeakyReLU}(z_e) \\
        \text{gat:} \quad & dz_e = ds_e\, l'(a^T z_e)\, a, \quad z_e = [q_i; k_j; f_e], \quad
        da = \sum_e ds_e\, l'(a^T z_e)\, z_e

    where dq_i is the sum of (its part of) dz over the edges that end in i, dk_j that over those that come from j, and
    df_e the dz of the edge.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : GraphContext
    dweights : (*batch, E, H), optional
        A cotangent of the weights before dropout, as `graph_attention_weights` returns them.

    Returns
    -------
    GraphGrads
        query, key, value, score_vector, edge_features (None if they were not given).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> nodes = np.random.default_rng(0).standard_normal((4, 2, 8))
    >>> out, ctx = aa.graph_attention_fwd(nodes, nodes, nodes, np.ones((2, 8)), np.array([[0, 2, 3], [1, 1, 0]]))
    >>> aa.graph_attention_bwd(np.ones_like(out), ctx).value[:, 0, 0].sum()  # the weights of two nodes that attend
    np.float64(2.0)
    """
    checks.context("ctx", ctx, GraphContext)
    q, k, v, w = (wide(x) for x in (ctx.q, ctx.k, ctx.v, ctx.score_vector))
    f = None if ctx.edge_features is None else wide(ctx.edge_features)
    checks.cotangent(dout, (*ctx.batch, *q.shape[1:3], v.shape[3]), ctx.q)
    do = wide(_canonical(dout, ctx.batch))
    ddropped, dv = aggregate_backward(do, _dropped(ctx.weights, ctx), v, ctx.sources, ctx.targets)
    dp = _dropped(ddropped, ctx)
    if dweights is not None:
        checks.shape("dweights", dweights, (*ctx.batch, *ctx.weights.shape[1:]), "the shape of the weights")
        checks.floating(dweights=dweights)
        checks.namespace(dweights=dweights, query=ctx.q)
        dp = dp + wide(_canonical(dweights, ctx.batch))
    dscores = _segment_softmax_backward(dp, ctx.weights, ctx.targets, q.shape[1])
    backward = gat_scores_backward if ctx.score == "gat" else gatv2_scores_backward
    dq, dk, df, dw = backward(dscores, q, k, f, w, ctx.sources, ctx.targets, ctx.negative_slope)
    found = (None if x is None else restore(narrow(x, ctx.q), ctx.batch) for x in (dq, dk, dv, df))
    dquery, dkey, dvalue, dedge_features = found
    return GraphGrads(dquery, dkey, dvalue, narrow(dw, ctx.q), dedge_features)


@accelerated
def aggregate(weights: Array, v: Array, sources: Array, targets: Array, count: int) -> Array:
    r"""The sums of the values over the edges that end in a node.

    .. math:: o_i = \sum_{e:\, j \to i} p_e v_j

    A weight of 0 gives 0 even if the value is NaN.

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
    for block in _edge_blocks(v, sources):
        each = weights[:, block, :, None]
        terms = xp.where(each == 0, 0.0, each * take_rows(v, sources[block]))  # (B, edges, H, Fv)
        out = sum_rows(terms, targets[block], count) + out
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
    for block in _edge_blocks(v, sources):
        each, drows = weights[:, block, :, None], take_rows(dout, targets[block])
        dweights.append(xp.sum(drows * take_rows(v, sources[block]), axis=-1))
        terms = xp.where(each == 0, 0.0, each * drows)  # (B, edges, H, Fv)
        dv = dv + sum_rows(terms, sources[block], v.shape[1])
    return xp.concat(dweights, axis=1), dv


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
    for block in _edge_blocks(q, sources):
        hidden = _hidden(q, k, f, sources, targets, block)  # (B, edges, H, F)
        scores.append(xp.sum(leaky(hidden, slope) * w, axis=-1))
    return xp.concat(scores, axis=1)


@accelerated
def gatv2_scores_backward(
    dscores: Array, q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array, slope: float
) -> tuple[Array, Array, Array | None, Array]:
    r"""The gradients of `gatv2_scores` with respect to q, k, f and w. The hidden layer is recomputed.

    .. math::
        dz_{ec} = de_e\, w_c \cdot \{1 \text{ where } z_{ec} > 0, \text{ else slope}\}, \quad
        dq_i = \sum_{e: i} dz_e, \quad dk_j = \sum_{e: j} dz_e, \quad df_e = dz_e, \quad
        dw = \sum_e de_e\, \mathrm{LeakyReLU}(z_e)

    Where a score has gradient 0, the edge is ignored, even if it holds NaN.

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
    for block in _edge_blocks(q, sources):
        hidden = _hidden(q, k, f, sources, targets, block)  # (B, edges, H, F)
        ds = dscores[:, block, :, None]
        slopes = xp.where(hidden > 0, ds * w, slope * ds * w)
        dhidden = xp.where(ds == 0, 0.0, slopes)
        dq = dq + sum_rows(dhidden, targets[block], q.shape[1])
        dk = dk + sum_rows(dhidden, sources[block], k.shape[1])
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
) -> tuple[Array, Array, Array | None, Array]:
    """The gradients of `gat_scores`: nodes are multiplied with the parts of w, edges only with one number per head."""
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


def leaky(x: Array, slope: float) -> Array:
    """LeakyReLU."""
    return namespace_of(x).where(x > 0, x, slope * x)


def take_rows(x: Array, indices: Array) -> Array:
    """The node of each edge: (B, nodes, ...) -> (B, E, ...)."""
    return namespace_of(x).take(x, indices, axis=1) if indices.shape[0] else x[:, :0, ...]


def sum_rows(x: Array, indices: Array, count: int) -> Array:
    """The sums (B, count, H, F) of edges (B, E, H, F) over the edges of each node."""
    xp = namespace_of(x)
    B, E, H, F = x.shape
    return xp.reshape(sum_segments(xp.reshape(x, (B, E, H * F)), indices, count), (B, count, H, F))


def _edge_blocks(x: Array, indices: Array) -> Iterator[slice]:
    """Ranges of edges, so that an array of all features of a range stays small."""
    return ranges(indices.shape[0], math.prod((x.shape[0], *x.shape[2:])))


def _hidden(q: Array, k: Array, f: Array | None, sources: Array, targets: Array, block: slice) -> Array:
    """q_i + k_j + f_e of a block of edges: (B, edges, H, F)."""
    total = take_rows(q, targets[block]) + take_rows(k, sources[block])
    return total if f is None else total + f[:, block, ...]


def _sums_of_products(q: Array, k: Array, f: Array | None, w: Array, sources: Array, targets: Array) -> Array:
    """w . [q_i; k_j; f_e], with one product per node, not per edge: (B, E, H)."""
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
    """The parts of w (H, 2 F or 3 F) for the query, the key and the edge."""
    return w[:, :features], w[:, features : 2 * features], w[:, 2 * features :]


def _canonical(x: ArrayT, batch: tuple[int, ...]) -> ArrayT:
    """(*batch, ...) -> (B, ...)."""
    return namespace_of(x).reshape(x, (math.prod(batch), *x.shape[len(batch) :]))


def restore(x: Array, batch: tuple[int, ...]) -> Any:
    return namespace_of(x).reshape(x, (*batch, *x.shape[1:]))


def _dropped(weights: Array, ctx: GraphContext) -> Array:
    """Weights (B, E, H) after dropout, or their gradient before it."""
    if ctx.dropout is None:
        return weights
    shaped = restore(weights, ctx.batch)
    return _canonical(_dropout(shaped, ctx.dropout.p, ctx.dropout.seed, ctx.dropout.mask), ctx.batch)

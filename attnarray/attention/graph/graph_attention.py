"""Graph attention (GAT and GATv2): each node attends over the edges that end in it."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.graph.core import (
    aggregate,
    aggregate_backward,
    gat_scores,
    gat_scores_backward,
    gatv2_scores,
    gatv2_scores_backward,
)
from attnarray.attention.graph.options import GraphScore, checked_dropout, checked_graph
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.ops.dropout import DropoutContext, _dropout
from attnarray.ops.segments import _segment_softmax, _segment_softmax_backward
from attnarray.random import Philox


class GraphContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the inputs as (B, nodes, H, F), and the weights of the edges (B, E, H)."""

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

    In GAT the order of the neighbors is the same for every node that asks; in GATv2 it depends on the node.

    Parameters
    ----------
    query : (*batch, N, H, F) floating
        What the nodes that edges end in ask with: W_t h_i. 16-bit types are computed in float32.
    key : (*batch, M, H, F)
        Of the nodes that edges come from: W_s h_j. In most graphs they are the same nodes, and M = N.
    value : (*batch, M, H, Fv)
        In both papers the key.
    score_vector : (H, F) for "gatv2"; (H, 2 F) for "gat", (H, 3 F) with edge features
        a, for "gat" the parts for query, key and edge side by side.
    edges : (2, E) integer
        Row 0 the source j, a row of key and value; row 1 the target i, a row of query. In any order. An edge that is
        given twice counts twice. A node has an edge to itself only if that is given: see `add_self_loops`.
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
        A node without edges gives 0. Nodes without an edge that exists do not matter, even when they hold NaN.

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

    >>> other = np.array([[0, 1], [1, 2]])  # of a graph whose nodes come after these four
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
def graph_attention_bwd(dout: Array, ctx: GraphContext[ArrayT]) -> GraphGrads[ArrayT]:
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
    dscores = _segment_softmax_backward(_dropped(ddropped, ctx), ctx.weights, ctx.targets, q.shape[1])
    backward = gat_scores_backward if ctx.score == "gat" else gatv2_scores_backward
    dq, dk, df, dw = backward(dscores, q, k, f, w, ctx.sources, ctx.targets, ctx.negative_slope)
    found = (None if x is None else restore(narrow(x, ctx.q), ctx.batch) for x in (dq, dk, dv, df))
    dquery, dkey, dvalue, dedge_features = found
    return GraphGrads(dquery, dkey, dvalue, narrow(dw, ctx.q), dedge_features)


def _canonical(x: ArrayT, batch: tuple[int, ...]) -> ArrayT:
    """(*batch, ...) -> (B, ...)."""
    return namespace_of(x).reshape(x, (math.prod(batch), *x.shape[len(batch) :]))


def restore(x: Array, batch: tuple[int, ...]) -> Any:
    return namespace_of(x).reshape(x, (*batch, *x.shape[1:]))


def _dropped(weights: Array, ctx: GraphContext) -> Array:
    """Weights (B, E, H) after dropout, or what their gradient is before it."""
    if ctx.dropout is None:
        return weights
    shaped = restore(weights, ctx.batch)
    return _canonical(_dropout(shaped, ctx.dropout.p, ctx.dropout.seed, ctx.dropout.mask), ctx.batch)

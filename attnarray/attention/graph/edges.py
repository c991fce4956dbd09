"""What belongs to the edges of a graph: their attention weights, and the edges from nodes to themselves."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention.graph.graph_attention import GraphContext, restore
from attnarray.attention.graph.options import check_edges
from attnarray.backend import ArrayT, device_of


def graph_attention_weights(ctx: Any) -> Any:
    r"""The attention weights of the edges in a forward pass of graph attention.

    .. math:: p_e = e^{s_e} \Big/ \sum_{e':\, j' \to i} e^{s_{e'}}

    Parameters
    ----------
    ctx : GraphContext
        From `graph_attention_fwd`, or from the `fwd` of `layers.GraphAttention`.

    Returns
    -------
    (*batch, E, H) of the accumulator's dtype
        In the order of the edges, before dropout. Those of the edges that end in a node sum to 1; masked edges have 0.

    Raises
    ------
    TypeError
        If `ctx` is not such a context.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> nodes = np.ones((3, 1, 2))
    >>> out, ctx = aa.graph_attention_fwd(nodes, nodes, nodes, np.ones((1, 2)), np.array([[0, 1, 2], [1, 0, 0]]))
    >>> aa.graph_attention_weights(ctx)[:, 0].tolist()
    [1.0, 0.5, 0.5]
    """
    ctx = getattr(ctx, "attention", ctx)
    checks.context("ctx", ctx, GraphContext)
    return restore(ctx.weights, ctx.batch)


def add_self_loops(edges: ArrayT, nodes: int) -> ArrayT:
    """The edges, and after them one from each node to itself, so that a node attends to itself too.

    Parameters
    ----------
    edges : (2, E) integer
        Self-loops that are there already stay, and count beside the new ones.
    nodes : int
        The number N of nodes.

    Returns
    -------
    (2, E + N)
        In the library's default integer dtype. Features and masks of edges need a row for each of the new ones as well.

    Raises
    ------
    TypeError
        If `edges` is not an integer array.
    ValueError
        If it has not two rows, or `nodes` is negative.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.add_self_loops(np.array([[0, 2], [1, 1]]), 3).tolist()
    [[0, 2, 0, 1, 2], [1, 1, 0, 1, 2]]
    """
    xp = checks.namespace(edges=edges)
    checks.required(edges=edges)
    pairs = checks.integer("edges", edges)
    check_edges(pairs)
    count = checks.whole("nodes", nodes, 0, 2**31, "the number of nodes")
    loops = xp.arange(count, dtype=pairs.dtype, device=device_of(pairs))
    return xp.concat([pairs, xp.stack([loops, loops])], axis=1)

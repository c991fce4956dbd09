"""The arrays and options of graph attention, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from attnarray import checks
from attnarray.attention.options import probability_and_seed
from attnarray.backend import Array
from attnarray.magnitude import check_number
from attnarray.ops.dropout import DropoutContext
from attnarray.ops.embedding import check_range
from attnarray.random import Philox

GraphScore = Literal["gatv2", "gat"]
SCORES: tuple[GraphScore, ...] = get_args(GraphScore)
Graph = tuple[tuple[int, ...], Array, Array, float]


def check_edges(edges: Array) -> None:
    if edges.ndim != 2 or edges.shape[0] != 2:
        pairs = ", that is edges.T of pairs (E, 2)" if edges.ndim == 2 and edges.shape[1] == 2 else ""
        raise ValueError(
            f"`edges` has shape {tuple(edges.shape)}, expected (2, E), the sources and the targets of the edges{pairs}."
        )


def checked_graph(
    named: Mapping[str, Array | None],
    edges: Array,
    score: GraphScore,
    negative_slope: float,
    edge_mask: Array | None,
    dropout_mask: Array | None,
) -> Graph:
    """Check everything but dropout; returns the batch, sources (E,), targets (E,) and the slope."""
    checks.choice("score", score, SCORES)
    checks.required(**{name: x for name, x in named.items() if name != "edge_features"}, edges=edges)
    checks.namespace(**named, edges=edges, edge_mask=edge_mask, dropout_mask=dropout_mask)
    dtype = checks.floating(**named)
    checks.integer_dtype("edges", edges)
    slope = checks.real(negative_slope)
    if not math.isfinite(slope):
        raise ValueError(f"`negative_slope` is {checks.shown(negative_slope)}, expected a finite number such as 0.2.")
    check_number("negative_slope", slope, dtype, small=True)
    check_edges(edges)
    batch = _check_shapes(named, edges.shape[1], score)
    query, key = named["query"], named["key"]
    assert query is not None
    assert key is not None
    check_range("edges[0]", edges[0, :], key.shape[-3], "the nodes of `key`, where edges come from")
    check_range("edges[1]", edges[1, :], query.shape[-3], "the nodes of `query`, where edges end")
    if edge_mask is not None:
        checks.boolean("edge_mask", edge_mask)
        checks.broadcasts("edge_mask", edge_mask, (*batch, edges.shape[1]), "(*batch, E)")
    indices = checks.integer("edges", edges)
    return batch, indices[0, :], indices[1, :], slope


def _check_shapes(named: Mapping[str, Any], edges: int, score: GraphScore) -> tuple[int, ...]:
    """Check the shapes of all floating arrays against that of query and value; returns the batch."""
    query, key, value, vector, features = named.values()
    shapes = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim or query.ndim < 3:
        raise ValueError(
            f"`query`, `key` and `value` have {query.ndim}, {key.ndim} and {value.ndim} axes; they must have equally "
            f"many, at least 3: (*batch, nodes, H, F). {shapes}"
        )
    batch, (heads, width) = tuple(query.shape[:-3]), query.shape[-2:]
    sources = key.shape[-3]
    checks.shape("key", key, (*batch, sources, heads, width), f"(*batch, M, H, F), as `query` has them. {shapes[:-1]}")
    expected = (*batch, sources, heads, value.shape[-1])
    checks.shape("value", value, expected, f"(*batch, M, H, Fv), one value per key. {shapes[:-1]}")
    if features is not None:
        because = "(*batch, E, H, F), one row for each edge, with the heads and features of `query`"
        checks.shape("edge_features", features, (*batch, edges, heads, width), because)
    parts = 1 if score == "gatv2" else 2 if features is None else 3
    axes = ("(H, F)", "(H, 2 F)", "(H, 3 F)")[parts - 1]
    beside = "" if score == "gatv2" else f" {'without' if features is None else 'with'} edge features"
    checks.shape("score_vector", vector, (heads, parts * width), f"{axes} for the score '{score}'{beside}")
    return batch


def checked_dropout(
    p: float, rng: Philox | int | None, keep: Array | None, shape: tuple[int, ...]
) -> DropoutContext | None:
    """The dropout of weights of that shape, (*batch, E, H); None where nothing is dropped."""
    p, seed = probability_and_seed(p, rng, keep)
    if keep is not None:
        checks.broadcasts("dropout_mask", keep, shape, "(*batch, E, H)")
    elif seed is None:
        return None
    return DropoutContext(shape, p, seed, keep)

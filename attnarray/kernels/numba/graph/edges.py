"""Graph attention along edges: scores of GATv2 and sums of values, all features of an edge at once.

Reference: attention/graph/graph_attention.py. The scores are parallel over edges, all else over heads: each head goes
through the edges in their order, so that no two threads add to one number, and the bits do not depend on how many there
are.
Scratch: two rows of features for each thread, and where a node has many edges that of rows/sums.py. Numbers for each
edge and feature exist only there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.graph.edge_passes import (
    Edges,
    aggregate_edges,
    aggregate_edges_backward,
    score_edges,
    score_edges_backward,
)
from attnarray.kernels.numba.rows import sums as row_sums
from attnarray.kernels.numba.rows.sums import addresses, combined
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import empty_call, pack
from attnarray.kernels.numba.runtime.threads import split_rows

FORWARD, BACKWARD, SUM = 0.6, 1.2, 0.5  # nanoseconds for each feature of each edge


def gatv2_scores(q: Any, k: Any, f: Any, w: Any, sources: Any, targets: Any, slope: float) -> Any:
    """See the reference."""
    real = ra.compute_dtype(q)
    edges, nodes = _edges(sources, targets), _nodes(real, q, k, w)
    _check(edges[0], k.shape[1])
    _check(edges[1], q.shape[1])
    features, stride = _features(f, q, real)
    scores = np.empty((q.shape[0], len(sources), q.shape[2]), real)
    work = ra.nanoseconds(scores.size * q.shape[3], FORWARD, real)
    given: Any = dict(zip(("q", "k", "w"), nodes, strict=True), f=features, stride=stride, slope=slope)
    call = Edges(*_sizes(q, k, sources), *edges, **given, scores=scores)
    split_rows(score_edges, len(sources), work, *pack(call, real))
    return scores


def gatv2_scores_backward(
    dscores: Any, q: Any, k: Any, f: Any, w: Any, sources: Any, targets: Any, slope: float
) -> tuple[Any, Any, Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(q)
    edges, nodes = _edges(sources, targets), _nodes(real, q, k, w)
    features, stride = _features(f, q, real)
    (dscores,) = _nodes(real, dscores)
    dq, dk, dw = np.zeros(q.shape, real), np.zeros(k.shape, real), np.zeros(w.shape)  # dw is summed over all edges
    df = np.empty(features.shape, real)
    longs = _long_sums(dk, edges[0]), _long_sums(dq, edges[1])
    work = ra.nanoseconds(dscores.size * q.shape[3], BACKWARD, real)
    given: Any = dict(zip(("q", "k", "w"), nodes, strict=True), f=features, stride=stride, slope=slope)
    (source_marks, dk_doubles), (target_marks, dq_doubles) = map(addresses, longs)
    call = Edges(
        *_sizes(q, k, sources), *edges, **given, dscores=dscores, dq=dq, dk=dk, dw=dw, df=df, source_marks=source_marks,
        dk_doubles=dk_doubles, target_marks=target_marks, dq_doubles=dq_doubles,
    )  # fmt: skip
    split_rows(score_edges_backward, q.shape[2], work, *pack(call, real))
    dk, dq = combined(dk, longs[0]), combined(dq, longs[1])
    return dq, dk, None if f is None else df, dw.astype(real, copy=False)


def aggregate(weights: Any, v: Any, sources: Any, targets: Any, count: int) -> Any:
    """See the reference."""
    real = ra.compute_dtype(v)
    edges, nodes = _edges(sources, targets), _nodes(real, weights, v)
    _check(edges[0], v.shape[1])
    out = np.zeros((v.shape[0], count, *v.shape[2:]), real)
    long = _long_sums(out, edges[1])
    work = ra.nanoseconds(weights.size * v.shape[3], SUM, real)
    marks, doubles = addresses(long)
    sizes = _sizes(out, v, sources)
    call = Edges(*sizes, *edges, weights=nodes[0], v=nodes[1], out=out, marks=marks, doubles=doubles)
    split_rows(aggregate_edges, v.shape[2], work, *pack(call, real))
    return combined(out, long)


def aggregate_backward(dout: Any, weights: Any, v: Any, sources: Any, targets: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(v)
    edges = _edges(sources, targets)
    _check(edges[1], dout.shape[1])
    nodes = _nodes(real, dout, weights, v)
    dweights, dv = np.empty(weights.shape, real), np.zeros(v.shape, real)
    long = _long_sums(dv, edges[0])
    work = ra.nanoseconds(weights.size * v.shape[3], 2 * SUM, real)
    marks, doubles = addresses(long)
    given: Any = dict(zip(("dout", "weights", "v"), nodes, strict=True), dweights=dweights, dv=dv)
    call = Edges(*_sizes(dout, v, sources), *edges, **given, marks=marks, doubles=doubles)
    split_rows(aggregate_edges_backward, v.shape[2], work, *pack(call, real))
    return dweights, combined(dv, long)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    for kernel in (score_edges, score_edges_backward, aggregate_edges, aggregate_edges_backward):
        kernel(0, 0, *pack(empty_call(Edges), dtype))
    row_sums.warmup()


def _sizes(q: Any, k: Any, sources: Any) -> tuple[int, int, int, int, int, int]:
    """Batches, targets, sources, edges, heads and features."""
    batch, targets, heads, width = q.shape
    return batch, targets, k.shape[1], len(sources), heads, width


def _edges(sources: Any, targets: Any) -> tuple[Any, Any]:
    return ra.flat(sources, np.dtype(np.int64)), ra.flat(targets, np.dtype(np.int64))


def _check(nodes: Any, count: int) -> None:
    """Check nodes that are only read; those that are added to are checked in rows/sums.py."""
    if nodes.size and not 0 <= nodes.min() <= nodes.max() < count:  # they may have changed since they were checked
        raise Declined(f"a node is not from 0 to {count - 1}")


def _long_sums(sums: Any, indices: Any) -> Any:
    """Marks and float64 rows for `sums` (B, nodes, ...): marks are the same for all batches."""
    return row_sums.long_sums(indices, sums.shape[1], sums, "a node")


def _nodes(real: Any, *arrays: Any) -> list[Any]:
    return [np.ascontiguousarray(ra.aligned(x, real)) for x in arrays]


def _features(f: Any, q: Any, real: Any) -> tuple[Any, int]:
    """The features of the edges, and the stride between edges; one row of zeros for all edges where there are none."""
    if f is None:
        return np.zeros(q.shape[2:], real), 0
    return _nodes(real, f)[0], q.shape[2] * q.shape[3]

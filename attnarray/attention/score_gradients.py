"""From gradients of scores to those of queries, keys and bias: for mechanisms that weigh dot products in other ways."""

from __future__ import annotations

import math
from collections.abc import Callable

from attnarray.attention.core import (
    bias_gradient,
    dot_products,
    join,
    query_blocks,
    sum_to_shape,
    times,
    transposed_times,
)
from attnarray.attention.scoring import Scoring, scores_of
from attnarray.backend import Array, namespace_of

# Arrays of the size of a block of scores that are held at a time.
EACH = 4


def scored(q: Array, k: Array, scoring: Scoring, start: int, stop: int) -> tuple[Array, Array, Scoring]:
    """The dot products and the scores of the queries [start, stop), (B, H, rows, S), and their own scoring."""
    block = scoring.rows(start, stop)
    dots = dot_products(q[:, :, start:stop, :], k)
    return dots, scores_of(dots, block), block


def gradients_of_scores(
    q: Array,
    k: Array,
    v: Array,
    scoring: Scoring,
    of_block: Callable[[Array, Scoring, slice], tuple[Array, Array]],
) -> tuple[Array, Array, Array, Array | None]:
    r"""dq, dk, dv and dbias, block by block of queries.

    .. math::
        g_{ij} = \mathrm{scale}\; ds_{ij} \bigl(1 - \tanh^2(\mathrm{scale}\; q_i \cdot k_j / c)\bigr), \quad
        dq_i = \sum_j g_{ij} k_j, \quad dk_j = \sum_i g_{ij} q_i, \quad db = ds

    (the last factor of g only with a softcap c). `of_block(scores, scoring, rows)` gives ds, which is 0 where a key is
    hidden, and what the block adds to dv.
    """
    xp = namespace_of(q)
    hides = scoring.hides()
    dqs, dbiases = [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for start, stop in query_blocks(q, k, EACH):
        dots, scores, block = scored(q, k, scoring, start, stop)
        dscores, dv_block = of_block(scores, block, slice(start, stop))
        ddots = dscores * scoring.scale
        if scoring.softcap is not None:
            slope = 1.0 - xp.tanh(dots * (scoring.scale / scoring.softcap)) ** 2
            ddots = xp.where(scores == -math.inf, 0.0, ddots * slope)
        dqs.append(times(ddots, k, hides))
        dk = dk + transposed_times(ddots, q[:, :, start:stop, :], k.shape[1], hides)
        dv = dv + dv_block
        if block.bias is not None:
            dbiases.append(sum_to_shape(dscores, block.bias.shape))
    return join(dqs), dk, dv, bias_gradient(dbiases, scoring.bias)

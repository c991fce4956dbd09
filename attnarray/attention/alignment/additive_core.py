"""Additive attention on canonical arrays (B, 1, T, A), block by block of queries: never an array of size T S A."""

from __future__ import annotations

from attnarray.attention.core import bias_gradient, hiding_product, join, query_blocks, weigh, weigh_backward
from attnarray.attention.scoring import Scoring
from attnarray.backend import Array, accumulator_dtype, namespace_of
from attnarray.dispatch import accelerated

HELD = 8  # how many numbers each score counts for in the size of a block, beside the hidden layer


def attend_additive(q: Array, k: Array, v: Array, w: Array, scoring: Scoring) -> tuple[Array, Array]:
    """The output (B, 1, T, Dv) of the dtype of q, and the lse (B, 1, T) of the accumulator's dtype.

    q is (B, 1, T, A), k (B, 1, S, A), v (B, 1, S, Dv), w (A,).
    """
    xp = namespace_of(q, k, v, w)
    wide = accumulator_dtype(xp, q.dtype)
    k, v, w = (xp.astype(x, wide, copy=False) for x in (k, v, w))
    outs, lses = [], []
    for start, stop in query_blocks(q, k, HELD):
        rows = xp.astype(q[:, :, start:stop, :], wide, copy=False)
        out, lse = weigh(additive_scores(rows, k, w), v, scoring.rows(start, stop))
        outs.append(xp.astype(out, q.dtype, copy=False))
        lses.append(lse)
    return join(outs), join(lses)


def attend_additive_backward(
    dout: Array, q: Array, k: Array, v: Array, w: Array, out: Array, lse: Array, scoring: Scoring
) -> tuple[Array, Array, Array, Array, Array | None]:
    """dq, dk, dv, dw and dbias in the shapes of their arrays. Scores and hidden layer are computed again."""
    xp = namespace_of(q, k, v, w, dout)
    wide, dtype = accumulator_dtype(xp, q.dtype), q.dtype
    q, k, v, w, dout = (xp.astype(x, wide, copy=False) for x in (q, k, v, w, dout))
    delta = xp.sum(hiding_product(xp.astype(out, wide, copy=False), dout), axis=-1)  # (B, 1, T)
    dqs, dbiases = [], []
    dk, dv, dw = xp.zeros_like(k), xp.zeros_like(v), xp.zeros_like(w)
    for start, stop in query_blocks(q, k, HELD):
        rows, drows, block = q[:, :, start:stop, :], dout[:, :, start:stop, :], scoring.rows(start, stop)
        dscores, dv_block, dbias = weigh_backward(
            drows, additive_scores(rows, k, w), v, lse[:, :, start:stop], delta[:, :, start:stop], block
        )
        dq_block, dk_block, dw_block = additive_scores_backward(dscores, rows, k, w)
        dqs.append(dq_block)
        dk, dv, dw = dk + dk_block, dv + dv_block, dw + dw_block
        dbiases.append(dbias)
    dq, dk, dv, dw = (xp.astype(x, dtype, copy=False) for x in (join(dqs), dk, dv, dw))
    return dq, dk, dv, dw, bias_gradient(dbiases, scoring.bias)


@accelerated
def additive_scores(q: Array, k: Array, w: Array) -> Array:
    r"""The scores of all pairs.

    .. math:: e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja})

    Parameters
    ----------
    q : (B, 1, T, A) float32 or float64, k : (B, 1, S, A), w : (A,)

    Returns
    -------
    (B, 1, T, S)
    """
    xp = namespace_of(q, k, w)
    blocks = []
    for start, stop in query_blocks(q, k, q.shape[3]):
        hidden = xp.tanh(q[:, :, start:stop, None, :] + k[:, :, None, :, :])  # (B, 1, rows, S, A)
        blocks.append(xp.matmul(hidden, w[:, None])[..., 0])
    return join(blocks)


@accelerated
def additive_scores_backward(dscores: Array, q: Array, k: Array, w: Array) -> tuple[Array, Array, Array]:
    r"""The gradients of the scores with respect to q, k and w. The hidden layer is computed again.

    .. math::
        g_{ija} = de_{ij}\, w_a \bigl(1 - \tanh^2(q_{ia} + k_{ja})\bigr), \quad
        dq_{ia} = \sum_j g_{ija}, \quad dk_{ja} = \sum_i g_{ija}, \quad
        dw_a = \sum_{ij} de_{ij} \tanh(q_{ia} + k_{ja})

    Where a score has gradient 0, the pair does not matter, even if it holds NaN.

    Parameters
    ----------
    dscores : (B, 1, T, S)
    q : (B, 1, T, A) float32 or float64, k : (B, 1, S, A), w : (A,)

    Returns
    -------
    dq, dk, dw : the shapes of q, k, w
    """
    xp = namespace_of(dscores, q, k, w)
    dqs, dk, dw = [], xp.zeros_like(k), xp.zeros_like(w)
    for start, stop in query_blocks(q, k, q.shape[3]):
        hidden = xp.tanh(q[:, :, start:stop, None, :] + k[:, :, None, :, :])  # (B, 1, rows, S, A)
        weight = dscores[:, :, start:stop, :, None]
        slopes = xp.where(weight == 0, 0.0, weight * (1.0 - hidden**2))
        dqs.append(xp.sum(slopes, axis=3) * w)
        dk = dk + xp.sum(slopes, axis=2) * w
        dw = dw + xp.sum(xp.where(weight == 0, 0.0, weight * hidden), axis=(0, 1, 2, 3))
    return join(dqs), dk, dw

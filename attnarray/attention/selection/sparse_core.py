"""Attention with sparse weights on canonical arrays (B, H, T, D), block by block of queries."""

from __future__ import annotations

from attnarray.attention.core import join, query_blocks, weighted_sum, weighted_sum_backward
from attnarray.attention.score_gradients import EACH, gradients_of_scores, scored
from attnarray.attention.scoring import Scoring
from attnarray.backend import Array
from attnarray.ops.entmax_core import entmax_backward, entmax_forward


def attend_sparsely(q: Array, k: Array, v: Array, scoring: Scoring, alpha: float) -> Array:
    r"""The forward pass.

    .. math:: o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{entmax}_\alpha(s_i)

    Parameters
    ----------
    q : (B, H, T, D), k : (B, Hkv, S, D), v : (B, Hkv, S, Dv), float32 or float64

    Returns
    -------
    (B, H, T, Dv)
    """
    outs = []
    for start, stop in query_blocks(q, k, EACH):
        _, scores, block = scored(q, k, scoring, start, stop)
        outs.append(weighted_sum(entmax_forward(scores, None, 3, alpha), v, block))
    return join(outs)


def attend_sparsely_backward(
    dout: Array, q: Array, k: Array, v: Array, scoring: Scoring, alpha: float
) -> tuple[Array, Array, Array, Array | None]:
    r"""The backward pass: weights are computed again, by the same operations, so that they have the same bits.

    .. math::
        dv_j = \sum_i p_{ij}\, do_i, \qquad dp_{ij} = do_i \cdot v_j, \qquad
        ds_{ij} = r_{ij} \Bigl(dp_{ij} - \frac{\sum_l r_{il}\, dp_{il}}{\sum_l r_{il}}\Bigr), \qquad
        r_{ij} = p_{ij}^{2 - \alpha}

    Returns
    -------
    dq, dk, dv : the shapes of q, k, v
    dbias : the shape of scoring.bias, or None
    """

    def of_block(scores: Array, block: Scoring, rows: slice) -> tuple[Array, Array]:
        weights = entmax_forward(scores, None, 3, alpha)
        dweights, dv = weighted_sum_backward(dout[:, :, rows, :], weights, v, block)
        return entmax_backward(dweights, weights, 3, alpha), dv

    return gradients_of_scores(q, k, v, scoring, of_block)

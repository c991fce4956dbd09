"""Where predictive local attention looks: a position for each query, predicted from the query alone."""

from __future__ import annotations

import math
from typing import NamedTuple

from attnarray.attention.sequences import contributing_rows, project, project_backward, wide
from attnarray.backend import Array, namespace_of
from attnarray.ops.activations import SigmoidContext, TanhContext, sigmoid_bwd, sigmoid_fwd, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd


class PositionContext(NamedTuple):
    """What the backward needs of the small network that predicts the positions."""

    hidden_map: LinearContext
    hidden: TanhContext
    vector_map: LinearContext
    share: SigmoidContext
    lengths: Array | float  # (B, 1, 1), or one number


class PositionGrads(NamedTuple):
    """In the dtype of sums."""

    query: Array
    weight: Array
    vector: Array


def predicted(query: Array, weight: Array, vector: Array, lengths: Array | float) -> tuple[Array, PositionContext]:
    r"""The positions (B, 1, T) of queries (*batch, T, D).

    .. math:: c_i = L\, \mathrm{sigmoid}\bigl(v_p \cdot \tanh(W_p q_i)\bigr)

    `weight` W_p is (A, D), `vector` v_p (A,); `lengths` L is a number or (B, 1, 1).
    """
    xp = namespace_of(query)
    hidden, hidden_map = project(query, weight)  # (*batch, T, A)
    hidden, tanh_ctx = tanh_fwd(hidden)
    logits, vector_map = linear_fwd(hidden, wide(vector)[None, :])  # (*batch, T, 1)
    share, sigmoid_ctx = sigmoid_fwd(logits)
    centers = xp.reshape(share, (math.prod(query.shape[:-2]), 1, query.shape[-2])) * lengths
    return centers, PositionContext(hidden_map, tanh_ctx, vector_map, sigmoid_ctx, lengths)


def predicted_backward(dcenters: Array, ctx: PositionContext) -> PositionGrads:
    r"""The gradients of `predicted`, with u the logits and h the hidden layer.

    .. math::
        du_i = L\, \sigma'(u_i)\, dc_i, \quad dv_p = \sum_i du_i h_i, \quad
        dz_i = du_i\, v_p \odot (1 - h_i^2), \quad dW_p = \sum_i dz_i q_i^T, \quad dq_i = W_p^T dz_i
    """
    xp = namespace_of(dcenters)
    dshare = xp.reshape(dcenters * ctx.lengths, ctx.share.out.shape)  # (*batch, T, 1)
    share, hidden = (contributing_rows(x, dshare) for x in (ctx.share.out, ctx.hidden.out))
    vector = linear_bwd(sigmoid_bwd(dshare, SigmoidContext(share)).x, ctx.vector_map._replace(x=hidden))
    grads = project_backward(tanh_bwd(vector.x, TanhContext(hidden)).x, ctx.hidden_map)
    return PositionGrads(grads.x, grads.weight, vector.weight[0, :])

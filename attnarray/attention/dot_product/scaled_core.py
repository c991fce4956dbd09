"""Dot-product attention with a temperature of each query outside the softcap: the reference, block by block of queries.

Without a softcap a temperature is a factor of the query, and the way is that of core.py.
"""

from __future__ import annotations

from typing import NamedTuple

from attnarray.attention.core import (
    bias_gradient,
    dot_products,
    hiding_product,
    join,
    query_blocks,
    times,
    transposed_times,
    weigh,
    weigh_backward,
)
from attnarray.attention.form import Form
from attnarray.attention.scoring import Scoring
from attnarray.backend import Array, namespace_of


class Capped(NamedTuple):
    """A problem in canonical form; `scoring` comes after the scores, and has neither scale nor softcap."""

    q: Array  # (B, 1, T, D)
    k: Array  # (B, 1, S, D)
    v: Array  # (B, 1, S, Dv)
    temperature: Array  # (B, 1, T, 1): the inverse temperature beta
    scale: float
    softcap: float
    scoring: Scoring

    def capped(self, start: int, stop: int) -> Array:
        """c tanh(scale q_i . k_j / c) of the queries [start, stop): (B, 1, rows, S)."""
        dots = dot_products(self.q[:, :, start:stop, :], self.k)
        return self.softcap * namespace_of(dots).tanh(dots * (self.scale / self.softcap))


class CappedContext(NamedTuple):
    problem: Capped
    out: Array  # (B, 1, T, Dv)
    lse: Array  # (B, 1, T)
    form: Form
    bias_shape: tuple[int, ...] | None

    @property
    def scoring(self) -> Scoring:
        return self.problem.scoring

    def dots(self, start: int, stop: int) -> Array:
        """The scores of the queries [start, stop) again, before bias and masks: (B, 1, rows, S)."""
        return self.problem.temperature[:, :, start:stop, :] * self.problem.capped(start, stop)


def attend_capped(problem: Capped) -> tuple[Array, Array]:
    r"""The forward pass.

    .. math:: e_{ij} = c \tanh(\mathrm{scale}\; q_i \cdot k_j / c), \qquad o_i = \sum_j p_{ij} v_j

    with the weights p that the scoring makes of the scores :math:`\beta_i e_{ij}`.

    Returns
    -------
    out : (B, 1, T, Dv), lse : (B, 1, T)
    """
    outs, lses = [], []
    for start, stop in query_blocks(problem.q, problem.k):
        scores = problem.temperature[:, :, start:stop, :] * problem.capped(start, stop)
        out, lse = weigh(scores, problem.v, problem.scoring.rows(start, stop))
        outs.append(out)
        lses.append(lse)
    return join(outs), join(lses)


def attend_capped_backward(
    dout: Array, problem: Capped, out: Array, lse: Array
) -> tuple[Array, Array, Array, Array, Array | None]:
    r"""The backward pass, with ds the gradients of the scores.

    .. math::
        d\beta_i = \sum_j ds_{ij}\, e_{ij}, \quad
        g_{ij} = \mathrm{scale}\; \beta_i\, ds_{ij} \bigl(1 - (e_{ij} / c)^2\bigr), \quad
        dq_i = \sum_j g_{ij} k_j, \quad dk_j = \sum_i g_{ij} q_i

    Returns
    -------
    dq, dk, dv, dtemperature : the shapes of q, k, v and temperature
    dbias : the shape of scoring.bias, or None
    """
    q, k, v, temperature, scale, softcap, scoring = problem
    xp = namespace_of(q)
    hides = scoring.hides()
    delta = xp.sum(hiding_product(out, dout), axis=-1)  # (B, 1, T)
    dqs, dtemperatures, dbiases = [], [], []
    dk, dv = xp.zeros_like(k), xp.zeros_like(v)
    for start, stop in query_blocks(q, k):
        rows, betas = q[:, :, start:stop, :], temperature[:, :, start:stop, :]
        capped = problem.capped(start, stop)
        dscores, dv_block, dbias = weigh_backward(
            dout[:, :, start:stop, :], betas * capped, v, lse[:, :, start:stop], delta[:, :, start:stop],
            scoring.rows(start, stop),
        )  # fmt: skip
        seen = xp.where(dscores == 0, 0.0, capped)  # hidden scores may be NaN
        ddots = hiding_product(dscores, scale * betas * (1.0 - (seen / softcap) ** 2))
        dqs.append(times(ddots, k, hides))
        dk, dv = dk + transposed_times(ddots, rows, k.shape[1], hides), dv + dv_block
        dtemperatures.append(xp.sum(dscores * seen, axis=-1, keepdims=True))
        dbiases.append(dbias)
    return join(dqs), dk, dv, join(dtemperatures), bias_gradient(dbiases, scoring.bias)

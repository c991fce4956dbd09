"""Contextual positions, as a scorer of `attend`: distances are counted by gates of queries and keys (CoPE)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.attention.engine import DOT_PRODUCT
from attnarray.attention.options import scale_or_default
from attnarray.attention.parts import declare
from attnarray.attention.products import dot_products
from attnarray.backend import Array, device_of, namespace_of, scatter_add
from attnarray.ops.entmax import cumulative_sum


@declare(GROUPED=True, HELD=8)
class CoPE(NamedTuple):
    r"""A scorer: scaled dot products, and those of the query with a vector of a position that gates count.

    .. math::
        s_{ij} = a_{ij} + q_i \cdot e(p_{ij}), \qquad a_{ij} = \mathrm{scale}\; q_i \cdot k_j, \qquad
        p_{ij} = \min\Bigl(\sum_{l = j}^{i} \sigma(a_{il}),\; P - 1\Bigr)

    e(p) is linear between the vectors of whole positions. Only keys up to the query are counted, so give
    ``is_causal=True``. Other masks do not change what is counted.

    Parameters
    ----------
    position_embedding : (P, D)
        e(0), ..., e(P - 1), for all heads.
    scale : float, optional
        1 / sqrt(D) by default. The option `scale` of `attend` would multiply all of s.
    q_offset : int
        That of the call.

    References
    ----------
    Golovneva et al., "Contextual position encoding: learning to count what's important", 2024, arXiv:2405.18719.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 8))
    >>> cope = aa.CoPE(np.random.default_rng(1).standard_normal((4, 8)))
    >>> out, ctx = aa.attend_fwd(q, k, v, is_causal=True, scorer=cope)
    >>> aa.attend_bwd(out, ctx).scorer.position_embedding.shape
    (4, 8)
    """

    position_embedding: Any
    scale: float | None = None
    q_offset: int = 0

    def check(self, name: str, heads: int, dim: int) -> None:
        """Check the fields."""
        size = max(self.position_embedding.shape[0], 1) if checks.is_array(self.position_embedding) else 1
        meaning = "(P, D): a vector as long as a query for each of P positions"
        checks.shape(f"{name}.position_embedding", self.position_embedding, (size, dim), meaning)
        checks.whole(f"{name}.q_offset", self.q_offset, -(2**31), 2**31, "the position of the first query")
        if self.scale is not None:
            scale_or_default(self.scale, 1.0)

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        found = self._positions(q, k, rows)
        below, above = self._logits(q, found)
        return found.dots + (1.0 - found.rest) * below + found.rest * above

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, CoPE]:
        r"""The gradients, with :math:`z_{ip} = q_i \cdot e_p`, f = floor(p) and g the gates.

        .. math::
            dz_{ip} = \sum_j ds_{ij} \max(0, 1 - |p_{ij} - p|), \qquad
            dp_{ij} = ds_{ij} (z_{i, f + 1} - z_{if}) \; [p_{ij} < P - 1], \qquad
            da_{il} = ds_{il} + g_{il} (1 - g_{il}) \sum_{j \le l} dp_{ij}

        .. math::
            dq_i = \mathrm{scale} \sum_j da_{ij} k_j + \sum_p dz_{ip} e_p, \qquad
            dk_j = \mathrm{scale} \sum_i da_{ij} q_i, \qquad de_p = \sum_i dz_{ip} q_i
        """
        xp, found = namespace_of(q), self._positions(q, k, rows)
        below, above = self._logits(q, found)
        dlogits = self._sum_by_position(dscores, found)  # (B, H, rows, P)
        dpositions = xp.where(found.inside, dscores * (above - below), 0.0)
        slope = xp.where(found.seen, found.gates * (1.0 - found.gates), 0.0)
        ddots = self._scale(q) * (dscores + slope * cumulative_sum(dpositions, 3))
        dq, dk, _ = DOT_PRODUCT.backward(ddots, q, k, rows)
        P, D = self.position_embedding.shape
        dembedding = xp.matmul(xp.reshape(dlogits, (-1, P)).mT, xp.reshape(q, (-1, D)))
        return dq + xp.matmul(dlogits, self.position_embedding), dk, CoPE(dembedding, None, None)  # type: ignore[arg-type]

    def _scale(self, q: Array) -> float:
        return 1.0 / math.sqrt(q.shape[3] or 1) if self.scale is None else self.scale

    def _positions(self, q: Array, k: Array, rows: slice) -> _Positions:
        xp, last = namespace_of(q, k), self.position_embedding.shape[0] - 1
        dots = self._scale(q) * dot_products(q, k)
        i = xp.arange(rows.start, rows.start + q.shape[2], device=device_of(q)) + self.q_offset
        seen = xp.arange(k.shape[2], device=device_of(q))[None, :] <= i[:, None]
        seen = seen & ~xp.isnan(dots)  # a masked key may hold NaN
        gates = xp.where(seen, 1.0 / (1.0 + xp.exp(-dots)), 0.0)
        counts = xp.flip(cumulative_sum(xp.flip(gates, axis=3), 3), axis=3)
        inside = counts < last
        counts = xp.where(inside, counts, float(last))
        whole = xp.floor(counts)
        return _Positions(dots, seen, gates, inside, xp.astype(whole, xp.int64), counts - whole)

    def _logits(self, q: Array, found: _Positions) -> tuple[Array, Array]:
        """q . e of the whole positions below and above (B, H, rows, S)."""
        xp = namespace_of(q)
        logits = xp.matmul(q, self.position_embedding.mT)
        return tuple(xp.take_along_axis(logits, index, axis=3) for index in (found.whole, self._next(found)))

    def _next(self, found: _Positions) -> Array:
        xp = namespace_of(found.rest)
        return xp.where(found.inside, found.whole + 1, found.whole)

    def _sum_by_position(self, dscores: Array, found: _Positions) -> Array:
        """The gradient of the products of queries and vectors (B, H, rows, P)."""
        xp, P = namespace_of(dscores), self.position_embedding.shape[0]
        count = math.prod(dscores.shape[:3])
        starts = xp.reshape(xp.arange(count, dtype=xp.int64, device=device_of(dscores)) * P, (*dscores.shape[:3], 1))
        places = xp.stack([starts + found.whole, starts + self._next(found)])
        values = xp.stack([dscores * (1.0 - found.rest), dscores * found.rest])
        total = scatter_add(xp.reshape(values, (-1, 1)), xp.reshape(places, (-1,)), count * P)
        return xp.reshape(total, (*dscores.shape[:3], P))


class _Positions(NamedTuple):
    """The positions that gates count, each (B, H, rows, S)."""

    dots: Array
    seen: Array
    gates: Array
    inside: Array  # below the last position
    whole: Array  # the whole position below
    rest: Array

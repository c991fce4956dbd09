"""Attention with relative positions on canonical arrays, block by block of queries.

    s_ij = scale ((q_i + u) . k_j + (q_i + v) . r_(i-j)) + b_ij

The rows of r go from the largest distance down: row n is for the pairs with n = T - 1 - i + j. So the products of a
query with all rows hold its scores in order, those of each query one place further left than those of the query before.
What they add goes to dot-product attention as a bias; no more of it is there at a time than that of a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from attnarray.attention.core import (
    attend,
    attend_backward,
    bias_gradient,
    dot_products,
    join,
    query_blocks,
    sum_to_shape,
    times,
    transposed_times,
)
from attnarray.attention.scoring import Scoring
from attnarray.backend import Array, device_of, namespace_of


class Parts(NamedTuple):
    """What scores and outputs are made of, all of the dtype of sums."""

    q: Array  # (B, H, T, D)
    k: Array  # (B, Hkv, S, D)
    v: Array  # (B, Hkv, S, Dv)
    r: Array  # (Hkv, R, D)
    content_bias: Array  # u, (H, 1, D)
    position_bias: Array  # v, (H, 1, D)


def attend_relative(parts: Parts, scoring: Scoring) -> tuple[Array, Array]:
    """The output (B, H, T, Dv) and the lse (B, H, T)."""
    outs, lses = [], []
    for start, stop in query_blocks(parts.q, parts.k):
        rows = parts.q[:, :, start:stop, :] + parts.content_bias
        out, lse = attend(rows, parts.k, parts.v, _with_positions(parts, scoring, start, stop))
        outs.append(out)
        lses.append(lse)
    return join(outs), join(lses)


def relative_products(parts: Parts, start: int, stop: int) -> Array:
    """The scores of the queries [start, stop) before scale, bias and masks: (B, H, rows, S)."""
    content = dot_products(parts.q[:, :, start:stop, :] + parts.content_bias, parts.k)
    return content + _positional(parts, 1.0, start, stop)


def attend_relative_backward(
    dout: Array, parts: Parts, out: Array, lse: Array, scoring: Scoring
) -> tuple[Parts, Array | None, Array | None]:
    """The gradients of the parts, of the bias and of the sinks, in the shapes of their arrays."""
    q, k, v, r, content_bias, position_bias = parts
    xp = namespace_of(*parts, dout)
    of_content, of_positions, dbiases, dsinks = [], [], [], None
    dk, dv, dr = xp.zeros_like(k), xp.zeros_like(v), xp.zeros_like(r)
    for start, stop in query_blocks(q, k):
        rows, block = q[:, :, start:stop, :], _with_positions(parts, scoring, start, stop)
        dcontent, dk_block, dv_block, dscores, dsinks_block = attend_backward(
            dout[:, :, start:stop, :], None, rows + content_bias, k, v, out[:, :, start:stop, :],
            lse[:, :, start:stop], block,
        )  # fmt: skip
        assert dscores is not None  # since the positions are a bias
        dproducts = unshifted(dscores)  # (B, H, rows, rows + S), 0 where a query has no key at that distance
        first = q.shape[2] - stop
        asked = scoring.scale * (rows + position_bias)
        dr_block = transposed_times(dproducts, asked, k.shape[1], True)  # (B, Hkv, rows + S, D)
        of_content.append(dcontent)
        of_positions.append(scoring.scale * times(dproducts, used_rows(r, first, dproducts.shape[3]), True))
        dk, dv, dr = dk + dk_block, dv + dv_block, dr + _placed(xp.sum(dr_block, axis=0), first, r)
        if scoring.bias is not None:
            B, H, rows_of_bias, S = scoring.bias.shape
            dbiases.append(sum_to_shape(dscores, (B, H, min(rows_of_bias, stop - start), S)))
        if dsinks_block is not None:
            dsinks = dsinks_block if dsinks is None else dsinks + dsinks_block
    sums = of_content, of_positions = join(of_content), join(of_positions)
    dbias_of_content, dbias_of_positions = (xp.sum(dq, axis=(0, 2))[:, None, :] for dq in sums)  # (H, 1, D)
    dparts = Parts(of_content + of_positions, dk, dv, dr, dbias_of_content, dbias_of_positions)
    return dparts, bias_gradient(dbiases, scoring.bias), dsinks


def _positional(parts: Parts, scale: float, start: int, stop: int) -> Array:
    """scale (q_i + v) . r_(i-j) for the queries [start, stop): (B, H, rows, S)."""
    rows = scale * (parts.q[:, :, start:stop, :] + parts.position_bias)
    keys = parts.k.shape[2]
    used = used_rows(parts.r, parts.q.shape[2] - stop, stop - start + keys)
    return shifted(dot_products(rows, used), keys)


def _with_positions(parts: Parts, scoring: Scoring, start: int, stop: int) -> Scoring:
    """The scoring of the queries [start, stop), with what their positions add to the scores in its bias."""
    xp = namespace_of(*parts)
    added, block = _positional(parts, scoring.scale, start, stop), scoring.rows(start, stop)
    if block.bias is not None:
        bias = xp.astype(block.bias, added.dtype, copy=False)
        added = xp.where(bias == -math.inf, -math.inf, added + bias)
    return block._replace(bias=added)


def used_rows(r: Array, first: int, count: int) -> Array:
    """`count` rows of r from `first` on, 0 past its end: (1, Hkv, count, D)."""
    rows = r[None, :, first : min(first + count, r.shape[1]), :]
    return padded(rows, 2, 0, count - rows.shape[2])


def _placed(rows: Array, first: int, r: Array) -> Array:
    """The gradient of r of that of `used_rows`, (Hkv, count, D)."""
    kept = rows[:, : min(r.shape[1] - first, rows.shape[1]), :]
    return padded(kept, 1, first, r.shape[1] - first - kept.shape[1])


def shifted(products: Array, keys: int) -> Array:
    """The first `keys` entries of each row n of N from entry N - 1 - n on: (B, H, N, N + S) -> (B, H, N, S)."""
    xp = namespace_of(products)
    *batch, rows, columns = products.shape
    if not rows:
        return xp.reshape(products, (*batch, rows, keys))
    flat = xp.reshape(products, (*batch, rows * columns))
    flat = flat[..., rows - 1 : rows * columns - 1]  # where rows are read one entry shorter, they begin one earlier
    return xp.reshape(flat, (*batch, rows, columns - 1))[..., :keys]


def unshifted(dshifted: Array) -> Array:
    """The gradient of `shifted`: every entry back to its place, 0 elsewhere: (B, H, N, S) -> (B, H, N, N + S)."""
    xp = namespace_of(dshifted)
    *batch, rows, keys = dshifted.shape
    if not rows:
        return dshifted
    flat = xp.reshape(padded(dshifted, 3, 0, rows - 1), (*batch, rows * (rows + keys - 1)))
    return xp.reshape(padded(flat, 2, rows - 1, 1), (*batch, rows, rows + keys))


def padded(x: Array, axis: int, before: int, after: int) -> Array:
    """x with that many zeros before and after it along an axis."""
    xp = namespace_of(x)

    def zeros(count: int) -> Array:
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        return xp.zeros(shape, dtype=x.dtype, device=device_of(x))

    parts = [zeros(before), x, zeros(after)]
    return xp.concat([part for part in parts if part.shape[axis]] or [x], axis=axis)

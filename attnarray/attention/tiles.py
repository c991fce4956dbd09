"""Array code of attention whose mask is given in tiles: for a row of tiles, only keys that some query may attend to.

Each row of tiles is attention over fewer keys, by the same code as without tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from attnarray.attention.blocks import join, total_gradient
from attnarray.attention.modifiers import ScoreModifiers, allowed, dropout_keep
from attnarray.backend import Array, accumulator_dtype, device_of, namespace_of, to_numpy, write_rows

Ranges = list[tuple[int, int]]


def forward_by_tiles(
    run: Callable[..., tuple[Array, Array]], q: Array, k: Array, v: Array, modifiers: ScoreModifiers
) -> tuple[Array, Array]:
    """The output and lse of attention; `run(q, k, v, modifiers)` computes them for some queries and keys."""
    outs, lses = zip(
        *(run(q[:, :, rows, :], among(k, keys, 2), among(v, keys, 2), part)
          for rows, keys, part in tile_rows(q, k, modifiers)),
        strict=True,
    )  # fmt: skip
    return join(outs), join(lses)


def backward_by_tiles(
    run: Callable[..., tuple[Any, ...]], dout: Array, dlse: Array | None, q: Array, k: Array, v: Array, out: Array,
    lse: Array, modifiers: ScoreModifiers,
) -> tuple[Array, Array, Array, Any, Any]:  # fmt: skip
    """The gradients of attention; `run`, of the same arguments, computes them for some queries and keys.

    .. math:: dq_i = dq_i^{(I)}, \\qquad dk_j = \\sum_I dk_j^{(I)}, \\qquad dv_j = \\sum_I dv_j^{(I)}

    over the rows I of tiles whose queries see key j.
    """
    xp, bias = namespace_of(q, k, v), modifiers.bias
    wide = accumulator_dtype(xp, q.dtype)
    q_wide, k_wide, v_wide, dout = (xp.astype(x, wide, copy=False) for x in (q, k, v, dout))
    dk, dv = (xp.zeros(x.shape, dtype=wide, device=device_of(x)) for x in (k, v))
    dqs, dbiases, dsinks = [], [], []
    for rows, keys, part in tile_rows(q, k, modifiers):
        few = [among(x, keys, 2) for x in (k_wide, v_wide)]
        mine = dout[:, :, rows, :], None if dlse is None else dlse[:, :, rows], q_wide[:, :, rows, :]
        dq, dk_part, dv_part, dbias, dsink = run(*mine, *few, out[:, :, rows, :], lse[:, :, rows], part)
        dqs.append(dq)
        dk, dv = add_among(dk, dk_part, keys), add_among(dv, dv_part, keys)
        if bias is not None:
            dbiases.append(dbias if bias.shape[3] == 1 else spread(dbias, keys, bias.shape[3]))
        dsinks.append(dsink)
    dq, dk, dv = (xp.astype(x, like.dtype, copy=False) for x, like in ((join(dqs), q), (dk, k), (dv, v)))
    total = None if modifiers.sinks is None else sum(dsinks[1:], start=dsinks[0])
    return dq, dk, dv, total_gradient(dbiases, bias), total


def tile_rows(q: Array, k: Array, modifiers: ScoreModifiers) -> Iterator[tuple[slice, Ranges, ScoreModifiers]]:
    """The queries of each row of tiles, the keys that they see, and the modifiers of both."""
    tiles = modifiers.tiles
    assert tiles is not None
    for row in range(max(tiles.table.shape[2], 1)):
        rows = slice(row * tiles.size, min((row + 1) * tiles.size, q.shape[2]))
        keys = _in_band(tiles.columns(row), rows, k.shape[2], modifiers) if tiles.table.shape[2] else []
        yield rows, keys, _modifiers_among(modifiers.rows(rows.start, rows.stop), keys, q[:, :, rows, :], k.shape[2])


def _in_band(keys: Ranges, rows: slice, count: int, modifiers: ScoreModifiers) -> Ranges:
    """Of these keys those that band and lengths leave to some query."""
    offset, lengths = (
        np.asarray(x) if isinstance(x, int) else to_numpy(x)
        for x in (modifiers.q_offset, count if modifiers.kv_lengths is None else modifiers.kv_lengths)
    )
    if not offset.size:
        return keys
    first = 0 if modifiers.left is None else max(int(offset.min()) + rows.start - modifiers.left, 0)
    past = int(lengths.max())
    if modifiers.right is not None:
        past = min(past, int(offset.max()) + rows.stop + modifiers.right)
    clipped = [(max(start, first), min(stop, past)) for start, stop in keys]
    return [(start, stop) for start, stop in clipped if start < stop]


def _modifiers_among(modifiers: ScoreModifiers, keys: Ranges, q: Array, count: int) -> ScoreModifiers:
    """The modifiers of these keys: positions are no longer counted, so their rules become a mask."""
    bias, dropout = modifiers.bias, modifiers.dropout
    mask = allowed(modifiers, q.shape[2], count, q)
    if dropout is not None:
        keep = dropout_keep(dropout, modifiers.q_offset, (*q.shape[:3], count), q)
        dropout = dropout._replace(keep=among(keep, keys, 3))
    return modifiers._replace(
        mask=None if mask is None else among(mask, keys, 3), left=None, right=None, kv_lengths=None, dropout=dropout,
        bias=None if bias is None else among(bias, keys, 3),
    )  # fmt: skip


def among(x: Array, keys: Ranges, axis: int) -> Array:
    """The entries of these keys along an axis, which may be of size 1."""
    if x.shape[axis] == 1 and axis == 3:
        return x
    parts = [x[:, :, :, first:past] if axis == 3 else x[:, :, first:past, :] for first, past in keys or [(0, 0)]]
    return parts[0] if len(parts) == 1 else namespace_of(x).concat(parts, axis=axis)


def add_among(total: Array, part: Array, keys: Ranges) -> Array:
    """Add to the rows of these keys the rows of `part`, one range after the other."""
    start = 0
    for first, past in keys:
        rows = total[:, :, first:past, :] + part[:, :, start : start + past - first, :]
        total, start = write_rows(total, first, rows), start + past - first
    return total


def spread(x: Array, keys: Ranges, count: int) -> Array:
    """The entries (..., N) of these keys among `count` ones, the others 0."""
    xp, parts, done, start = namespace_of(x), list[Array](), 0, 0
    for first, past in [*keys, (count, count)]:
        parts.append(xp.zeros((*x.shape[:3], first - done), dtype=x.dtype, device=device_of(x)))
        parts.append(x[:, :, :, start : start + past - first])
        done, start = past, start + past - first
    return xp.concat(parts, axis=3)

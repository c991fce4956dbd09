"""Masked softmax over the scores with scale, softcap, bias, masks and sinks, forward and backward.

Reference: attention/scoring.py, `weights_from_dots` and `gradients_of_dots`.
Parallel over the B * H * T rows. A row visits only the keys between the bounds that causal, window and lengths leave.
Scratch: one row of slopes per call when there is a softcap; results overwrite `dots` and `dweights`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.numba.runtime.jit import EXACT, FASTMATH, jit
from attnarray.kernels.numba.runtime.threads import split_rows
from attnarray.kernels.numba.vector.lanes import Lanes, exp, multiply_add, where
from attnarray.kernels.numba.vector.memory import pointer
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass

UNBOUNDED = 2**40  # farther than any position


def weights_from_dots(dots: Any, scoring: Any) -> tuple[Any, Any]:
    """See the reference. Overwrites `dots` with the weights."""
    rows = _writable_rows(dots)
    lse = np.empty(rows.shape[0], dots.dtype)
    split_rows(_forward, rows.shape[0], rows.size, rows, lse, *_plan(dots, scoring))
    return rows.reshape(dots.shape), lse.reshape(dots.shape[:3])


def gradients_of_dots(dots: Any, dweights: Any, lse: Any, delta: Any, scoring: Any) -> tuple[Any, Any, Any]:
    """See the reference. Overwrites `dots` with the weights and `dweights` with the gradient of the dot products."""
    rows, drows = _writable_rows(dots), _writable_rows(dweights)
    dscores = np.empty(rows.shape if scoring.bias is not None else (0, 0), dots.dtype)
    per_row = (np.ascontiguousarray(lse).reshape(-1), np.ascontiguousarray(delta).reshape(-1))
    split_rows(_backward, rows.shape[0], rows.size, rows, drows, dscores, *per_row, *_plan(dots, scoring))
    gradient = dscores.reshape(dots.shape) if scoring.bias is not None else None
    return rows.reshape(dots.shape), drows.reshape(dots.shape), gradient


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    rows, per_row = np.zeros((0, 1), dtype), np.zeros(0, dtype)
    plan = _plan(np.zeros((0, 1, 1, 1), dtype), _EMPTY)
    _forward(0, 0, rows, per_row, *plan)
    _backward(0, 0, rows, rows, rows, per_row, per_row, *plan)


class _Scoring(NamedTuple):
    scale: float = 1.0
    softcap: float | None = None
    bias: Any = None
    mask: Any = None
    left: int | None = None
    right: int | None = None
    q_offset: Any = 0
    kv_lengths: Any = None
    sinks: Any = None


_EMPTY = _Scoring()


def _writable_rows(array: Any) -> Any:
    if array.dtype.name not in ("float32", "float64"):
        raise Declined(f"dtype {array.dtype.name}: float32 and float64 only")
    rows = np.require(array, requirements=["C", "W"])
    return rows.reshape(math.prod(array.shape[:3]), array.shape[3])


def _plan(dots: Any, scoring: Any) -> tuple[Any, ...]:
    """The scoring as arrays and numbers of fixed types, so that each dtype is compiled once."""
    batch, heads, queries, keys = dots.shape
    dtype = dots.dtype.type
    left = UNBOUNDED if scoring.left is None else scoring.left
    right = UNBOUNDED if scoring.right is None else scoring.right
    offsets = np.broadcast_to(np.asarray(scoring.q_offset, np.int64), (batch,)).copy()
    lengths = np.full(batch, keys, np.int64) if scoring.kv_lengths is None else scoring.kv_lengths.astype(np.int64)
    sinks = np.full(heads, -math.inf, dtype) if scoring.sinks is None else scoring.sinks.astype(dtype)
    return (
        (heads, queries),
        dtype(scoring.scale),
        dtype(scoring.softcap or 0.0),
        _table(scoring.bias, dtype, keys),
        _table(scoring.mask, np.bool_, keys),
        (left, right),
        offsets,
        lengths,
        sinks,
    )


def _table(array: Any, dtype: Any, keys: int) -> Any:
    """A bias or mask with contiguous rows of all keys: (B|1, H|1, T|1, S); of size 0 when there is none."""
    if array is None:
        return np.empty((0, 0, 0, 0), dtype)
    full = np.broadcast_to(array, (*array.shape[:3], keys))
    return np.require(full, dtype, requirements=["C", "W"])


def _bounds(n: int, shape: Any, limits: Any, offsets: Any, lengths: Any, keys: int) -> Any:
    """Batch, head and query of row n, and the keys [start, stop) that causal, window and lengths leave to it."""
    heads, queries = shape
    b = n // (heads * queries)
    position = n % queries + offsets[b]
    start = min(max(position - limits[0], 0), keys)
    stop = max(min(position + limits[1] + 1, lengths[b], keys), start)
    return b, (n // queries) % heads, n % queries, start, stop


def _score(row: Any, scale: Any, softcap: Any, slopes: Any) -> None:
    """Scale and softcap a row in place; with a softcap, `slopes` receives the derivative."""
    if softcap == 0:
        for j in range(row.size):
            row[j] *= scale
        return
    for j in range(row.size):
        capped = math.tanh(row[j] * (scale / softcap))
        slopes[j] = scale * (softcap / softcap - capped * capped)
        row[j] = softcap * capped


def _bias_and_mask(row: Any, start: int, b: int, h: int, i: int, bias: Any, mask: Any) -> None:
    lowest = row.dtype.type(-math.inf)
    if bias.size:
        added = bias[b if bias.shape[0] > 1 else 0, h if bias.shape[1] > 1 else 0, i if bias.shape[2] > 1 else 0]
        for j in range(row.size):
            row[j] = row[j] + added[start + j] if added[start + j] != lowest else lowest
    if mask.size:
        keep = mask[b if mask.shape[0] > 1 else 0, h if mask.shape[1] > 1 else 0, i if mask.shape[2] > 1 else 0]
        for j in range(row.size):
            row[j] = row[j] if keep[start + j] else lowest


def _largest(row: Any, value: Any) -> Any:
    for j in range(row.size):
        value = row[j] if row[j] > value else value
    return value


@row_pass(vectors=1)
def exponentiate(scores: Row, shift: Scalar, total: Sum) -> dict[str, Lanes]:
    """What is hidden stays 0 where the shift is NaN."""
    weights = where(scores.equals(-math.inf), 0.0, exp(scores - shift))
    return {"scores": weights, "total": total + weights}


@row_pass(vectors=2)
def divide(weights: Row, inverse: Scalar, rest: Scalar) -> dict[str, Lanes]:
    """Times a number that is given as a sum of two: the error of one would be that of all weights."""
    return {"weights": multiply_add(weights, inverse, weights * rest)}


def _exponentials(row: Any, shift: Any) -> Any:
    """e^(row - shift) in place; returns the sum."""
    return exponentiate(row.size, pointer(row), shift)


def _forward(
    first: int, past: int, rows: Any, lse: Any, shape: Any, scale: Any, softcap: Any, bias: Any, mask: Any,
    limits: Any, offsets: Any, lengths: Any, sinks: Any,
) -> None:  # fmt: skip
    real = rows.dtype.type
    lowest = real(-math.inf)
    slopes = np.empty(rows.shape[1] if softcap != 0 else 0, rows.dtype)
    for n in range(first, past):
        b, h, i, start, stop = _bounds(n, shape, limits, offsets, lengths, rows.shape[1])
        row = rows[n, start:stop]
        _score(row, scale, softcap, slopes)
        _bias_and_mask(row, start, b, h, i, bias, mask)
        shift = _largest(row, sinks[h])
        shift = real(0) if shift == lowest else shift
        total = _exponentials(row, shift) + real(math.exp(sinks[h] - shift))
        wide = 0.0 if total == 0 else 1.0 / float(total)
        inverse = real(wide)
        divide(row.size, pointer(row), inverse, real(wide - float(inverse)))
        rows[n, :start] = 0
        rows[n, stop:] = 0
        lse[n] = shift + math.log(total) if total != 0 else lowest


def _backward(
    first: int, past: int, rows: Any, drows: Any, dscores: Any, lse: Any, delta: Any, shape: Any, scale: Any,
    softcap: Any, bias: Any, mask: Any, limits: Any, offsets: Any, lengths: Any, sinks: Any,
) -> None:  # fmt: skip
    real = rows.dtype.type
    slopes = np.full(rows.shape[1], scale, rows.dtype)
    for n in range(first, past):
        b, h, i, start, stop = _bounds(n, shape, limits, offsets, lengths, rows.shape[1])
        row, drow, difference = rows[n, start:stop], drows[n, start:stop], delta[n]
        _score(row, scale, softcap, slopes)
        _bias_and_mask(row, start, b, h, i, bias, mask)
        _exponentials(row, real(0) if lse[n] == real(-math.inf) else lse[n])
        for j in range(row.size):
            drow[j] = row[j] * (drow[j] - difference) if row[j] != 0 else real(0)
        rows[n, :start], rows[n, stop:] = 0, 0
        drows[n, :start], drows[n, stop:] = 0, 0
        if dscores.size:
            dscores[n] = drows[n]
        for j in range(row.size):
            drow[j] = drow[j] * slopes[j] if row[j] != 0 else real(0)


# A maximum becomes vector code only where LLVM may ignore NaN in the comparison; NaN still comes through the sum.
_largest = jit(_largest, fastmath=FASTMATH | {"nnan"})
_bounds, _score, _bias_and_mask = jit(_bounds), jit(_score), jit(_bias_and_mask)
_exponentials = jit(_exponentials, fastmath=EXACT)
_forward, _backward = jit(_forward, fastmath=EXACT), jit(_backward)
